"""Attaches protocols to a host, ours or a plain one, and removes them again.

What breaks: removing a handler leaves its running calls behind. On a plain host, a handler that raises ends the host.
Measure: `attach_protocols`; `identify.push` announces them to connected peers.
Upstream: no upstream report found (November 2026).
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager

import trio
from libp2p.abc import IHost, INetStream
from libp2p.custom_types import TProtocol

from ..errors import ProtocolTakenError
from ..identify.push import announcing
from ..limits import HostLimits
from ..logs import RateLimiter, log_limited
from .handlers import guarded
from .stream import PeerStream, reset_stream

__all__ = ["StreamHandler", "attach_protocols"]

logger = logging.getLogger(__name__)
limiter = RateLimiter()

StreamHandler = Callable[[PeerStream, str], Awaitable[None]]
"""Handles one inbound stream of the peer with this id. When it returns, the stream is closed."""


@asynccontextmanager
async def attach_protocols(
    host: IHost, handlers: Mapping[str, StreamHandler], stop_timeout: float = 5.0
) -> AsyncIterator[None]:
    """Serve protocols on `host` while the block runs: `handlers` maps a protocol id to `handler(stream, peer_id)`.

    A handler owns its stream until it returns; then the stream is closed, or reset if the handler raised. At the end of
    the block the handlers are unregistered and their streams receive no more; after `stop_timeout` seconds they are
    cancelled. The protocols are announced to connected peers at the beginning and at the end. Inside a block of
    `announcing` all protocols that are attached or removed together are announced once. Raises ProtocolTakenError if
    the host already serves a protocol. An exception of the block is raised as it is.
    """
    attached = _Attached(host, handlers)
    attached.register()
    async with announcing(host) as announcements:
        announcements.changed()
        failed = False
        try:
            yield
        except Exception:
            failed = True
            raise
        finally:
            attached.unregister()
            await attached.stop(0 if failed else stop_timeout)
            announcements.changed()
            if announcements.over:
                # The outer block that announces has already ended.
                await announcements.goodbye()


class _Attached:
    """The handlers on one host, and their running calls."""

    def __init__(self, host: IHost, handlers: Mapping[str, StreamHandler]) -> None:
        self._host = host
        self._handlers = {TProtocol(protocol): handler for protocol, handler in handlers.items()}
        self._limits: HostLimits = getattr(host, "limits", HostLimits())
        self._calls: dict[trio.CancelScope, PeerStream] = {}
        self._calls_per_peer: Counter[str] = Counter()
        self._idle = trio.Event()
        self._stopped = False

    def register(self) -> None:
        served = self._host.get_mux().get_protocols()
        for protocol in self._handlers:
            if protocol in served:
                raise ProtocolTakenError(
                    f"this host serves {protocol} already",
                    code="protocol_taken",
                    protocol=protocol,
                    hint="attach it once only",
                )
        for protocol, handler in self._handlers.items():
            self._host.set_stream_handler(protocol, guarded(self._call_of(handler), self._limits.close_timeout))

    def unregister(self) -> None:
        for protocol in self._handlers:
            self._host.remove_stream_handler(protocol)

    def _call_of(self, handler: StreamHandler) -> Callable[[INetStream], Awaitable[None]]:
        async def call(net_stream: INetStream) -> None:
            stream = PeerStream(net_stream, self._limits.close_timeout)
            peer_id = stream.remote_peer_id
            if self._stopped:
                # Its protocol was negotiated just before the handlers were removed.
                await reset_stream(net_stream, self._limits.close_timeout)
                return
            # Our own host limits this for each connection. A plain host does not.
            if self._calls_per_peer[peer_id] >= self._limits.max_inbound_streams:
                log_limited(logger, limiter, logging.INFO, "reset a stream of %s: it has too many", peer_id)
                await reset_stream(net_stream, self._limits.close_timeout)
                return
            with self._counted(peer_id), trio.CancelScope() as scope:
                self._calls[scope] = stream
                try:
                    await handler(stream, peer_id)
                finally:
                    del self._calls[scope]
            if scope.cancelled_caught:
                await reset_stream(net_stream, self._limits.close_timeout)

        return call

    @contextmanager
    def _counted(self, peer_id: str) -> Iterator[None]:
        self._calls_per_peer[peer_id] += 1
        try:
            yield
        finally:
            self._calls_per_peer[peer_id] -= 1
            # A Counter would keep a zero for each peer that ever connected.
            if not self._calls_per_peer[peer_id]:
                del self._calls_per_peer[peer_id]
            if not self._calls_per_peer:
                self._idle.set()

    async def stop(self, timeout: float) -> None:  # noqa: ASYNC109  # shielded
        """Wait for the running calls, then cancel them and wait for that. Not cancellable, but bounded."""
        self._stopped = True
        for stream in self._calls.values():
            # A handler that waits for the next request has nothing to finish.
            stream.end_receiving()
        with trio.CancelScope(shield=True):
            await self._wait_idle(timeout)
            for scope in self._calls:
                scope.cancel()
            await self._wait_idle(self._limits.close_timeout)

    async def _wait_idle(self, timeout: float) -> None:  # noqa: ASYNC109  # not an error
        if self._calls_per_peer:
            self._idle = trio.Event()
            with trio.move_on_after(timeout):
                await self._idle.wait()
