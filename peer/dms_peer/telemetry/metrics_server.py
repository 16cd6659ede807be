"""Serves the metrics over HTTP, for Prometheus to fetch.

Rules:

1. It listens on loopback unless the owner names another address, and answers `GET /metrics` and nothing else.
2. Connections, their requests and the time for each are bounded: whoever does not finish a request in time is dropped.
3. Whatever a request says, and whatever fails while it is answered, ends no more than its connection.
4. The metrics are collected on the event loop, between two requests, so that they agree with each other.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Final

import h11
import trio
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector, CollectorRegistry

from dms_host.errors import ListenError
from dms_resources.tasks import open_background

__all__ = ["serve_metrics"]

_log = logging.getLogger(__name__)

_CONNECTIONS: Final = 8
_READ_BYTES: Final = 4096
_REQUEST_SECONDS: Final = 5.0
_BACKLOG: Final = 16


@asynccontextmanager
async def serve_metrics(collector: Collector, host: str, port: int) -> AsyncIterator[int]:
    """Answers `GET /metrics` with what `collector` collects while the block runs; yields the port (0: any free one).

    Raises ListenError when the operating system refuses the address.
    """
    registry = CollectorRegistry(auto_describe=False)
    registry.register(collector)
    try:
        listeners = await trio.open_tcp_listeners(port, host=host, backlog=_BACKLOG)
    except OSError as error:
        raise ListenError(
            f"cannot serve metrics on {host}:{port}: {error.strerror or error}",
            code="address_unavailable",
            address=f"{host}:{port}",
            hint="choose another address with --metrics",
        ) from error
    limiter = trio.CapacityLimiter(_CONNECTIONS)

    async def answer(stream: trio.SocketStream) -> None:
        try:
            limiter.acquire_nowait()
        except trio.WouldBlock:
            await stream.aclose()
            return
        try:
            with trio.move_on_after(_REQUEST_SECONDS):
                await _answer(stream, registry)
        except Exception as error:
            _log.warning("the metrics could not be answered: %.300r", error)
        finally:
            limiter.release()
            await trio.aclose_forcefully(stream)

    async with open_background(partial(trio.serve_listeners, answer, listeners)):
        yield int(listeners[0].socket.getsockname()[1])


async def _answer(stream: trio.SocketStream, registry: CollectorRegistry) -> None:
    connection = h11.Connection(h11.SERVER)
    try:
        request = await _request(stream, connection)
        if request is None:
            return
        status, headers, body = _response(request, registry)
        if request.method == b"HEAD":
            body = b""
    except h11.RemoteProtocolError as error:
        status, headers, body = error.error_status_hint, {}, b""
        if connection.our_state is not h11.IDLE and connection.our_state is not h11.SEND_RESPONSE:
            return
    all_headers = [*headers.items(), ("Content-Length", str(len(body))), ("Connection", "close")]
    sent = connection.send(h11.Response(status_code=status, headers=all_headers)) or b""
    if body:
        sent += connection.send(h11.Data(data=body)) or b""
    sent += connection.send(h11.EndOfMessage()) or b""
    try:
        await stream.send_all(sent)
    except trio.BrokenResourceError:
        _log.debug("nobody waited for the metrics")


async def _request(stream: trio.SocketStream, connection: h11.Connection) -> h11.Request | None:
    while True:
        event = connection.next_event()
        if isinstance(event, h11.Request):
            return event
        if event is not h11.NEED_DATA:
            return None
        try:
            connection.receive_data(await stream.receive_some(_READ_BYTES))
        except trio.BrokenResourceError:
            return None


def _response(request: h11.Request, registry: CollectorRegistry) -> tuple[int, dict[str, str], bytes]:
    path = request.target.partition(b"?")[0]
    if path != b"/metrics":
        return 404, {"Content-Type": "text/plain"}, b"there is /metrics only\n"
    if request.method != b"GET":
        return 405, {"Allow": "GET"}, b""
    accept = next((value.decode("latin-1") for name, value in request.headers if name == b"accept"), "")
    try:
        encode, content_type = choose_encoder(accept)
    except (TypeError, ValueError):
        # The library falls over versions that are none.
        encode, content_type = choose_encoder("")
    return 200, {"Content-Type": content_type}, encode(registry)
