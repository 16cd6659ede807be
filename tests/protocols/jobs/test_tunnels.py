from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest
import trio
import trio.testing

from dms_protocols.errors import ConnectionLostError, DeadlineExceededError, RemoteError
from dms_protocols.jobs.joined_streams import join_streams
from dms_protocols.jobs.tunnels import TunnelLimits, TunnelsInUse, open_tunnel, serve_tunnel
from dms_protocols.messages.job import Execution, Job, JobPort
from dms_protocols.rpc.access import NOBODY, Access, AccessRules
from dms_protocols.rpc.operations import Caller
from dms_protocols.tokens.checks import TokenChecker
from memory_jobs import MemoryJobs

LEASE = "lease-1"
HOLDER = "requester"
JOB = Job(execution=Execution(type="memory"), ports=(JobPort(private=80), JobPort(private=81)))
NOTHING: Any = lambda job: None  # noqa: E731


class Hosting:
    """A provider with one running job."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.nursery = nursery
        self.jobs = MemoryJobs({LEASE: (1, HOLDER), "other": (1, HOLDER)}, nursery, NOTHING)
        self.tunnels = TunnelsInUse(TunnelLimits(per_lease=3, per_peer=4))
        self.access: Access | None = None
        self.connect: Any = self.jobs.connect
        self.outcomes: list[str] = []

    async def start(self, lease_id: str = LEASE) -> Any:
        await self.jobs.start(lease_id, 1, JOB, holder=HOLDER)
        return self.jobs.jobs[lease_id]

    def stream(self, peer_id: str = HOLDER) -> trio.StapledStream[Any, Any]:
        # With bounded buffers, as every real stream has.
        ours, theirs = trio.testing.lockstep_stream_pair()
        self.nursery.start_soon(self._serve, theirs, peer_id)
        return ours

    async def open(self, port: int = 80, peer_id: str = HOLDER, lease_id: str = LEASE) -> Any:
        return await open_tunnel(self.stream(peer_id), lease_id, port)

    async def refusal(self, **request: Any) -> str:
        with pytest.raises(RemoteError) as caught:
            await self.open(**request)
        return str(caught.value.code)

    async def _serve(self, stream: trio.abc.HalfCloseableStream, peer_id: str) -> None:
        self.outcomes.append(
            await serve_tunnel(stream, Caller(peer_id), self.connect, self.tunnels, access=self.access)
        )


@pytest.fixture
async def hosting(nursery: trio.Nursery) -> Hosting:
    """A provider of jobs in memory."""
    return Hosting(nursery)


async def read_all(stream: Any) -> bytes:
    data = bytearray()
    while piece := await stream.receive_some():
        data += piece
    return bytes(data)


async def shout(stream: Any) -> None:
    """A service that answers only after it has read everything."""
    async with stream:
        said = await read_all(stream)
        await stream.send_all(said.upper())
        await stream.send_eof()


async def hold(stream: Any) -> None:
    """A service that neither speaks nor leaves."""
    async with stream:
        await trio.sleep_forever()


async def test_an_answer_after_the_end_of_the_question_comes_whole(hosting: Hosting) -> None:
    (await hosting.start()).listeners[80] = shout
    async with await hosting.open() as tunnel, trio.open_nursery() as nursery:
        question = b"hello " * 50_000

        async def ask() -> None:
            await tunnel.send_all(question)
            await tunnel.send_eof()

        nursery.start_soon(ask)
        assert await read_all(tunnel) == question.upper()
    assert (hosting.tunnels.received, hosting.tunnels.sent) == (len(question), len(question))
    await trio.testing.wait_all_tasks_blocked()
    assert hosting.tunnels.open == 0
    assert hosting.outcomes == ["ok"]


async def test_bytes_behind_the_first_frame_are_not_lost(hosting: Hosting, raw_peer: Any) -> None:
    (await hosting.start()).listeners[80] = shout
    stream = hosting.stream()
    peer = raw_peer(stream)
    frame = bytearray()
    collecting = raw_peer(type("", (), {"send_all": staticmethod(partial(_collect, frame))})())
    await collecting.send({"id": 9, "op": "tunnel", "lease_id": LEASE, "port": 80})
    async with trio.open_nursery() as nursery:

        async def ask() -> None:
            await stream.send_all(bytes(frame) + b"at once")
            await stream.send_eof()

        nursery.start_soon(ask)
        assert await peer.receive() == {"id": 9, "ok": {}}
        assert bytes(peer._frames.take_rest()) + await read_all(stream) == b"AT ONCE"


async def _collect(frame: bytearray, data: bytes) -> None:
    await trio.lowlevel.checkpoint()
    frame += data


async def test_only_the_holder_connects_and_only_to_ports_of_the_job(hosting: Hosting) -> None:
    assert await hosting.refusal() == "no_job"
    job = await hosting.start()
    job.listeners[80] = hold
    job.listeners[22] = hold
    assert await hosting.refusal(peer_id="stranger") == "not_holder"
    assert await hosting.refusal(port=22) == "port_closed"
    assert await hosting.refusal(port=81) == "port_closed"
    job.end()
    assert await hosting.refusal() == "job_not_running"
    assert hosting.tunnels.open == 0


async def test_the_owners_rule_for_jobs_closes_tunnels_too(hosting: Hosting) -> None:
    (await hosting.start()).listeners[80] = hold
    rules = AccessRules(operations={"job_start": NOBODY})
    hosting.access = Access(rules, TokenChecker("provider", {}, frozenset()))
    assert await hosting.refusal() == "forbidden"


async def test_tunnels_are_bounded_for_each_lease_and_each_peer(hosting: Hosting) -> None:
    for lease_id in (LEASE, "other"):
        (await hosting.start(lease_id)).listeners[80] = shout
    # What others try does not count against the lease.
    for _ in range(5):
        assert await hosting.refusal(peer_id="stranger") == "not_holder"
    open_ones = [await hosting.open() for _ in range(3)]
    assert await hosting.refusal() == "busy"
    open_ones.append(await hosting.open(lease_id="other"))
    assert await hosting.refusal(lease_id="other") == "busy"
    await open_ones[0].aclose()
    await trio.testing.wait_all_tasks_blocked()
    async with await hosting.open():
        pass
    for tunnel in open_ones:
        await trio.aclose_forcefully(tunnel)


@pytest.mark.parametrize(
    ("first", "code"),
    [
        (b"\x80\x00", "bad_frame"),
        (b"\xff\xff\xff\x7f", "frame_too_large"),
        (b"\x81\x80\x01" + b"x", "frame_too_large"),
        (b"\x03abc", "bad_cbor"),
        (b"\x01\xa0", "bad_message"),
    ],
)
async def test_what_is_no_request_is_refused(hosting: Hosting, raw_peer: Any, first: bytes, code: str) -> None:
    stream = hosting.stream()
    await stream.send_all(first)
    peer = raw_peer(stream)
    assert (await peer.receive())["error"]["code"] == code
    assert await peer.receive() is None
    await trio.testing.wait_all_tasks_blocked()
    assert hosting.outcomes == [code]


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"op": "job_start"}, "unknown_operation"),
        ({"port": 0}, "bad_message"),
        ({"port": 65536}, "bad_message"),
        ({"port": "80"}, "bad_message"),
        ({"lease_id": ""}, "bad_message"),
        ({"lease_id": "x" * 257}, "bad_message"),
        ({"id": -1}, "bad_message"),
    ],
    ids=str,
)
async def test_a_bad_request_is_refused(hosting: Hosting, raw_peer: Any, change: dict[str, Any], code: str) -> None:
    (await hosting.start()).listeners[80] = hold
    peer = raw_peer(hosting.stream())
    await peer.send({"id": 1, "op": "tunnel", "lease_id": LEASE, "port": 80} | change)
    assert (await peer.receive())["error"]["code"] == code


async def test_a_silent_peer_is_dropped(hosting: Hosting, autojump_clock: Any, raw_peer: Any) -> None:
    stream = hosting.stream()
    await stream.send_all(b"\x05a")
    peer = raw_peer(stream)
    assert (await peer.receive())["error"]["code"] == "deadline_exceeded"
    assert trio.current_time() < 30


async def test_a_job_that_takes_no_connection_does_not_hold_the_tunnel(hosting: Hosting, autojump_clock: Any) -> None:
    async def never(lease_id: str, *, holder: str, port: int) -> Any:
        await trio.sleep_forever()

    hosting.connect = never
    assert await hosting.refusal() == "port_closed"


async def test_a_fault_of_the_executor_stays_on_this_side(hosting: Hosting, caplog: Any) -> None:
    async def broken(lease_id: str, *, holder: str, port: int) -> Any:
        await trio.lowlevel.checkpoint()
        raise ZeroDivisionError("a secret")

    hosting.connect = broken
    with pytest.raises(RemoteError) as caught:
        await hosting.open()
    assert caught.value.code == "internal"
    assert "secret" not in caught.value.message
    assert "secret" in caplog.text


# Its end


async def test_a_job_that_breaks_resets_the_requester(hosting: Hosting, nursery: trio.Nursery) -> None:
    begun = trio.Event()

    async def crash(stream: Any) -> None:
        await stream.send_all(b"some")
        await begun.wait()
        await trio.aclose_forcefully(stream)

    (await hosting.start()).listeners[80] = crash
    tunnel = await hosting.open()
    assert await tunnel.receive_some() == b"some"
    begun.set()
    await trio.testing.wait_all_tasks_blocked()
    with pytest.raises(trio.BrokenResourceError):
        await tunnel.send_all(b"x" * 100_000)
    await trio.testing.wait_all_tasks_blocked()
    assert hosting.tunnels.open == 0


async def test_a_half_open_tunnel_that_is_silent_ends_and_one_that_moves_does_not(
    hosting: Hosting, autojump_clock: Any
) -> None:
    async def drip(stream: Any) -> None:
        async with stream:
            await read_all(stream)
            for _ in range(5):
                await trio.sleep(50)
                await stream.send_all(b"drop")
            await trio.sleep_forever()

    (await hosting.start()).listeners[80] = drip
    tunnel = await hosting.open()
    await tunnel.send_eof()
    began = trio.current_time()
    received = bytearray()
    try:
        while piece := await tunnel.receive_some():
            received += piece
    except trio.BrokenResourceError:
        pass
    assert received == b"drop" * 5
    assert 5 * 50 + 58 <= trio.current_time() - began <= 5 * 50 + 61
    await trio.testing.wait_all_tasks_blocked()
    assert hosting.tunnels.open == 0


async def test_a_tunnel_that_is_open_both_ways_may_be_silent(hosting: Hosting, autojump_clock: Any) -> None:
    (await hosting.start()).listeners[80] = hold
    async with await hosting.open():
        await trio.sleep(24 * 3600)
        assert hosting.tunnels.open == 1


async def test_a_cancelled_tunnel_leaves_nothing(hosting: Hosting, nursery: trio.Nursery) -> None:
    (await hosting.start()).listeners[80] = hold
    ours, theirs = trio.testing.memory_stream_pair()
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as inner:
            inner.start_soon(partial(serve_tunnel, theirs, Caller(HOLDER), hosting.connect, hosting.tunnels))
            await open_tunnel(ours, LEASE, 80)
            assert hosting.tunnels.open == 1
            scope.cancel()
    assert hosting.tunnels.open == 0


# Sockets


@asynccontextmanager
async def tcp_pair() -> AsyncIterator[tuple[trio.SocketStream, trio.SocketStream]]:
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listener:
        ours = await trio.open_tcp_stream(*listener.socket.getsockname())
        theirs = await listener.accept()
        async with ours, theirs:
            yield ours, theirs


async def test_a_reset_is_a_reset_on_the_other_side() -> None:
    async with tcp_pair() as (client, near), tcp_pair() as (far, server), trio.open_nursery() as nursery:
        nursery.start_soon(join_streams, near, far)
        await client.send_all(b"x")
        assert await server.receive_some() == b"x"
        server.socket.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        server.socket.close()
        with pytest.raises(trio.BrokenResourceError):
            await client.receive_some()


async def test_an_end_is_an_end_on_the_other_side() -> None:
    whole = []

    async def join(near: Any, far: Any) -> None:
        whole.append(await join_streams(near, far))

    async with tcp_pair() as (client, near), tcp_pair() as (far, server), trio.open_nursery() as nursery:
        nursery.start_soon(join, near, far)
        await client.send_all(b"question")
        await client.send_eof()
        assert await read_all(server) == b"question"
        await server.send_all(b"answer")
        await server.aclose()
        assert await read_all(client) == b"answer"
    assert whole == [True]


# The asking side


async def test_a_provider_that_says_nothing_does_not_hold_the_requester(autojump_clock: Any) -> None:
    ours, theirs = trio.testing.memory_stream_pair()
    with pytest.raises(DeadlineExceededError):
        await open_tunnel(ours, LEASE, 80, timeout=5)
    await theirs.receive_some()
    assert await theirs.receive_some() == b""


async def test_a_provider_that_leaves_is_a_lost_connection() -> None:
    ours, theirs = trio.testing.memory_stream_pair()
    await theirs.aclose()
    with pytest.raises(ConnectionLostError):
        await open_tunnel(ours, LEASE, 80)
