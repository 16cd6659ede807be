"""Serves the metrics over HTTP, for Prometheus to fetch.

Rules:

1. It listens on loopback unless the owner names another address, and answers only `GET /metrics`.
2. The number of connections, and the size and time of each request, are bounded. A slow client is dropped.
3. A request, or a failure while it is answered, never ends more than its connection.
4. The metrics are collected on the event loop in one step, so that they are consistent.
5. On loopback the `Host` of a request must be an IP address or `localhost`. Otherwise a web page in the owner's browser
   could point its own name at loopback (DNS rebinding) and read the metrics.
"""

from __future__ import annotations

import ipaddress
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Final
from urllib.parse import urlsplit

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
    """Serve the metrics of `collector` while the block runs. Yields the port, which the system chooses for port 0.

    Raises ListenError if the operating system refuses the address.
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
    loopback = all(_is_loopback(one.socket.getsockname()[0]) for one in listeners)

    async def answer(stream: trio.SocketStream) -> None:
        try:
            limiter.acquire_nowait()
        except trio.WouldBlock:
            await stream.aclose()
            return
        try:
            with trio.move_on_after(_REQUEST_SECONDS):
                await _answer(stream, registry, loopback)
        except Exception as error:
            _log.warning("cannot serve the metrics: %.300r", error)
        finally:
            limiter.release()
            await trio.aclose_forcefully(stream)

    async with open_background(partial(trio.serve_listeners, answer, listeners)):
        yield int(listeners[0].socket.getsockname()[1])


async def _answer(stream: trio.SocketStream, registry: CollectorRegistry, loopback: bool) -> None:
    connection = h11.Connection(h11.SERVER)
    try:
        request = await _request(stream, connection)
        if request is None:
            return
        status, headers, body = _response(request, registry, loopback)
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
        _log.debug("the client closed before it had the metrics")


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


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return False


def _names_this_machine(host: str) -> bool:
    """Whether a `Host` header is an IP address or `localhost`. A port may follow."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
        if name == "localhost":
            return True
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _response(request: h11.Request, registry: CollectorRegistry, loopback: bool) -> tuple[int, dict[str, str], bytes]:
    host = next((value.decode("latin-1") for name, value in request.headers if name == b"host"), "")
    if loopback and not _names_this_machine(host):
        return 403, {"Content-Type": "text/plain"}, b"use the address 127.0.0.1 or the name localhost\n"
    path = request.target.partition(b"?")[0]
    if path != b"/metrics":
        return 404, {"Content-Type": "text/plain"}, b"only /metrics is served\n"
    if request.method != b"GET":
        return 405, {"Allow": "GET"}, b""
    accept = next((value.decode("latin-1") for name, value in request.headers if name == b"accept"), "")
    try:
        encode, content_type = choose_encoder(accept)
    except (TypeError, ValueError):
        # The library raises for an invalid version in Accept.
        encode, content_type = choose_encoder("")
    return 200, {"Content-Type": content_type}, encode(registry)
