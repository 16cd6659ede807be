"""Local ports that lead through tunnels to ports of jobs.

Rules:

1. It listens on 127.0.0.1 unless the caller names another address. Every program on this machine can connect, web pages
   in a browser included.
2. Each local connection has a tunnel of its own. The failure of one ends that connection alone.
3. A connection beyond the limit waits to be accepted until another one ends.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Final, TypeAlias

import trio

from dms_protocols.jobs.joined_streams import break_stream, join_streams
from dms_resources.tasks import open_background

from ..errors import PeerError
from .peers import CallError

__all__ = ["Forward", "OpenTunnel", "open_forward"]

_log = logging.getLogger(__name__)

LOOPBACK: Final = "127.0.0.1"
# As many tunnels as a provider takes for one lease.
_MOST: Final = 32
# Errors of `accept` that pass when other connections end.
_EXHAUSTED: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_PAUSE: Final = 0.1

OpenTunnel: TypeAlias = Callable[[], AbstractAsyncContextManager[trio.abc.HalfCloseableStream]]
"""Opens a tunnel. Raises CallError."""


class Forward:
    """A local port that leads to a port of a job; made by `open_forward`."""

    def __init__(self, listener: trio.SocketListener, connect: OpenTunnel, on_failure: Callable[[str], None]) -> None:
        self.address, self.port = listener.socket.getsockname()[:2]
        self.connections = 0
        """Connections that are open now."""
        self.sent = 0
        """Bytes to the job."""
        self.received = 0
        """Bytes from the job."""
        self._listener = listener
        self._connect = connect
        self._on_failure = on_failure

    async def run(self) -> None:
        """Accepts connections until cancelled. Run by `open_forward`."""
        turns = trio.Semaphore(_MOST)
        async with trio.open_nursery() as nursery:
            while True:
                await turns.acquire()
                nursery.start_soon(self._serve, await self._accept(), turns)

    async def _accept(self) -> trio.SocketStream:
        while True:
            try:
                return await self._listener.accept()
            except OSError as error:
                if error.errno not in _EXHAUSTED:
                    raise
                _log.warning("cannot accept a connection: %s", error)
                await trio.sleep(_PAUSE)

    async def _serve(self, local: trio.SocketStream, turns: trio.Semaphore) -> None:
        self.connections += 1
        try:
            async with self._connect() as tunnel:
                await join_streams(local, tunnel, to_right=self._count_sent, to_left=self._count_received)
        except CallError as error:
            _log.info("a connection was not forwarded: %s (%s)", error.message, error.code)
            self._on_failure(f"{error.message} ({error.code})")
        finally:
            self.connections -= 1
            turns.release()
            # Costs nothing if it is closed already.
            await break_stream(local)

    def _count_sent(self, size: int) -> None:
        self.sent += size

    def _count_received(self, size: int) -> None:
        self.received += size


@asynccontextmanager
async def open_forward(
    connect: OpenTunnel,
    *,
    port: int = 0,
    address: str = LOOPBACK,
    on_failure: Callable[[str], None] = lambda message: None,
) -> AsyncIterator[Forward]:
    """Listens on a local port while the block runs, and connects each connection through a tunnel of its own.

    Port 0 takes any free one; `Forward.port` tells which. `on_failure` is told why a connection was not forwarded, and
    must not wait. Raises PeerError `listen_failed`. At the end the connections are reset.
    """
    try:
        (listener,) = await trio.open_tcp_listeners(port, host=address)
    except (OSError, ValueError) as error:
        raise PeerError(
            f"cannot listen on {address}:{port}: {getattr(error, 'strerror', None) or error}",
            code="listen_failed",
            hint="another program may listen there; choose another port, or 0 for any free one",
        ) from error
    async with listener:
        forward = Forward(listener, connect, on_failure)
        async with open_background(forward.run):
            yield forward
