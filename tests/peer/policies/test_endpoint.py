"""Policies behind HTTP: what is sent, which answers are invalid, and that no redirect is followed."""

from __future__ import annotations

import gzip
import json
import logging
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import trio

from dms_peer.policies.open import open_policies
from dms_peer.policies.settings import EndpointSettings
from dms_protocols.bidding.policies import Decision, Decisions, PolicyRequest, no_answer

REFUSED = Decisions(decisions=no_answer(2))
ACCEPTED = Decisions(decisions=(Decision(accept=True),) * 2)
ANSWER = json.dumps({"decisions": [{"node_id": node, "accept": True} for node in "ab"]}).encode()


def response(body: bytes = ANSWER, status: str = "200 OK", *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"content-length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


class Server:
    """Answers every request with the same bytes, and records the requests and the number of connections."""

    def __init__(self) -> None:
        self.answer = response()
        self.requests: list[bytes] = []
        self.connections = 0
        self.closed = 0
        self.url = ""

    async def serve(self, stream: trio.SocketStream) -> None:
        self.connections += 1
        async with stream:
            while await self._take(stream):
                try:
                    await stream.send_all(self.answer)
                except trio.BrokenResourceError:
                    break
        self.closed += 1

    async def _take(self, stream: trio.SocketStream) -> bool:
        request = b""
        while b"\r\n\r\n" not in request:
            try:
                data = await stream.receive_some(65536)
            except trio.BrokenResourceError:
                return False
            if not data:
                return False
            request += data
        head, _, body = request.partition(b"\r\n\r\n")
        length = next(int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
        while len(body) < length:
            body += await stream.receive_some(65536)
        self.requests.append(head + b"\r\n\r\n" + body)
        return True


@pytest.fixture
async def server(nursery: trio.Nursery) -> AsyncIterator[Server]:
    server = Server()
    listeners = await nursery.start(trio.serve_tcp, server.serve, 0)
    port = listeners[0].socket.getsockname()[1]
    server.url = f"http://127.0.0.1:{port}/policy?key=secret"
    yield server
    nursery.cancel_scope.cancel()


async def ask(server: Server, question: PolicyRequest, **bounds: Any) -> Decisions:
    async with open_policies([EndpointSettings(url=server.url, **{"budget": 20.0, **bounds})]) as (policy,):
        return await policy.decide(question)


async def test_it_is_posted_json_and_its_connection_is_used_again(server: Server, question: PolicyRequest) -> None:
    async with open_policies([EndpointSettings(url=server.url, budget=20.0)]) as (policy,):
        for _ in range(3):
            assert await policy.decide(question) == ACCEPTED
    assert server.connections == 1
    head, _, body = server.requests[0].partition(b"\r\n\r\n")
    assert head.startswith(b"POST /policy?key=secret HTTP/1.1\r\n")
    assert b"\r\ncontent-type: application/json" in head.lower()
    asked = json.loads(body)
    assert (asked["version"], asked["requester"], [node["node"]["node_id"] for node in asked["nodes"]]) == (
        1, "peer-1", ["a", "b"],
    )  # fmt: skip


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (response(status="500 Internal Server Error"), "status 500"),
        (response(status="204 No Content", body=b""), "status 204"),
        (response(b"nonsense"), "cannot be read"),
        (response(b""), "cannot be read"),
        (response(gzip.compress(ANSWER), "200 OK", "content-encoding: gzip"), "compressed"),
        (response(b"x" * 70_000), "more than 65536 bytes"),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + b"4000\r\n" + b"x" * 0x4000 + b"\r\n", "no answer"),
        (b"SSH-2.0-none\r\n\r\n", "Error"),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nfffff\r\n" + b"x" * 0xFFFFF, "more than 65536 bytes"),
        (b"HTTP/1.1 200 OK\r\n" + b"x-header: y\r\n" * 20_000, "Error"),
        (b"", "no answer within 0.3 s"),
    ],
)
async def test_what_is_no_answer_is_a_refusal_and_the_log_says_why(
    server: Server, question: PolicyRequest, caplog: pytest.LogCaptureFixture, answer: bytes, reason: str
) -> None:
    server.answer = answer
    with caplog.at_level(logging.ERROR):
        assert await ask(server, question, budget=0.3 if "no answer" in reason else 20.0) == REFUSED
    message = caplog.records[-1].getMessage()
    assert reason in message
    assert "secret" not in message


async def test_a_redirect_is_not_followed(server: Server, question: PolicyRequest) -> None:
    server.answer = response(b"", "307 Temporary Redirect", f"location: {server.url}")
    assert await ask(server, question) == REFUSED
    assert len(server.requests) == 1


async def test_proxies_of_the_environment_are_not_used(
    server: Server, question: PolicyRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    assert await ask(server, question) == ACCEPTED


async def test_nobody_there_is_a_refusal(question: PolicyRequest) -> None:
    async with open_policies([EndpointSettings(url="http://127.0.0.1:1/", budget=20.0)]) as (policy,):
        assert await policy.decide(question) == REFUSED


async def test_at_the_deadline_the_connection_is_closed(
    server: Server, question: PolicyRequest, eventually: Callable[..., Any]
) -> None:
    server.answer = b""
    async with open_policies([EndpointSettings(url=server.url, budget=0.2)]) as (policy,):
        assert await policy.decide(question) == REFUSED
        await eventually(lambda: server.closed == 1)
