"""Exclusive TCP listening, with tasks in the swarm's nursery.

What breaks:
- The library listens with SO_REUSEPORT: a second peer on the same port starts without an error, and the kernel
  distributes connections between the two.
- Its accept loop is a trio system task, whose failure ends the program. A refused address is only logged.
- It does not know the other side's address over IPv6, so that its own connection gate lets every peer through.
- Each message takes two system calls, and before encryption each byte takes one. The end of a connection is read a
  hundred times.
Measure: `ExclusiveTCP` listens without SO_REUSEPORT in the swarm's nursery, and reports the operating system's error.
`PeerSocket` knows the address and reads ahead. None of the library's methods dials addresses that the gater denies.
Upstream: https://github.com/libp2p/py-libp2p/issues/1212 (the end of a connection is read a hundred times, there on a
WebSocket); for the others no upstream report found (November 2026).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import trio
from libp2p.abc import IListener, IRawConnection
from libp2p.custom_types import THandler
from libp2p.io.exceptions import ConnectionClosedError
from libp2p.io.trio import TrioTCPStream
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.transport.exceptions import OpenConnectionError
from libp2p.transport.tcp.tcp import TCP
from libp2p.utils.multiaddr_utils import extract_ip_from_multiaddr, multiaddr_from_socket
from multiaddr import Multiaddr  # type: ignore[import-untyped]  # it has no types

from ..logs import RateLimiter, log_limited
from ..streams.locks import QuickLock

__all__ = ["ExclusiveTCP", "PeerSocket"]

logger = logging.getLogger(__name__)
limiter = RateLimiter()


# The most bytes that are received at once and kept.
FETCH_SIZE = 64 * 1024


class PeerSocket(TrioTCPStream):
    """A socket that knows the other side's address and reads ahead.

    Read by one task at a time.
    """

    def __init__(self, stream: trio.SocketStream) -> None:
        super().__init__(stream)
        self.read_lock = QuickLock()  # type: ignore[assignment]  # used as a lock is, no more
        self.write_lock = QuickLock()  # type: ignore[assignment]
        # The received bytes, and how many of them were read.
        self._fetched = b""
        self._taken = 0
        self._ended = False

    async def read(self, n: int | None = None) -> bytes:
        """Up to `n` bytes as soon as there are any; none at the end, and after that an error.

        Raises ConnectionClosedError. May be cancelled.
        """
        if n == 0:
            return b""
        if self._taken == len(self._fetched):
            if self._ended:
                raise ConnectionClosedError("the other side has closed the connection", transport="tcp")
            self._fetched, self._taken = await super().read(FETCH_SIZE), 0
            self._ended = not self._fetched
        end = len(self._fetched) if n is None else min(self._taken + n, len(self._fetched))
        data = self._fetched[self._taken : end]
        self._taken = end
        if end == len(self._fetched):
            self._fetched, self._taken = b"", 0
        return data

    def get_remote_address(self) -> tuple[str, int] | None:
        """The other side's IP address and port; None if the socket has ended."""
        if self._cached_remote_address is None:
            try:
                # Over IPv6 there are two more fields, which the original mistakes for an error.
                host, port = self.stream.socket.getpeername()[:2]
            except OSError:
                return None
            self._cached_remote_address = (str(host), int(port))
        return self._cached_remote_address


class _ExclusiveListener(IListener):
    """Listens on one address and hands each connection to the swarm."""

    # Set by the swarm before it listens.
    background_nursery: trio.Nursery

    def __init__(self, handler: THandler) -> None:
        self._handler = handler
        self._sockets: Sequence[trio.SocketListener] = ()
        self._scope = trio.CancelScope()

    async def listen(self, maddr: Multiaddr) -> None:
        """Bind and accept. Raises OSError if the operating system refuses."""
        port = int(maddr.value_for_protocol("tcp") or 0)
        self._sockets = await trio.open_tcp_listeners(port, host=extract_ip_from_multiaddr(maddr))
        self.background_nursery.start_soon(self._serve)

    async def _serve(self) -> None:
        with self._scope:
            await trio.serve_listeners(self._handle, self._sockets)

    async def _handle(self, stream: trio.SocketStream) -> None:
        try:
            await self._handler(PeerSocket(stream))
        except* Exception as group:
            log_limited(logger, limiter, logging.INFO, "an inbound connection failed: %r", group.exceptions[0])
        finally:
            # The socket is closed at once. What follows in aclose is only a checkpoint.
            with trio.CancelScope(shield=True):
                await stream.aclose()

    def get_addrs(self) -> tuple[Multiaddr, ...]:
        """The addresses with the ports that were really bound."""
        return tuple(multiaddr_from_socket(listener.socket) for listener in self._sockets)

    async def close(self) -> None:
        """Stop accepting and end the connections that were accepted here."""
        self._scope.cancel()
        for listener in self._sockets:
            await listener.aclose()
        self._sockets = ()


class ExclusiveTCP(TCP):
    """The TCP transport with our listener, and a gater for outbound connections."""

    def __init__(self, allows_address: Callable[[str], bool]) -> None:
        super().__init__()
        self._allows_address = allows_address

    async def _dial_resolved(self, maddr: Multiaddr, source: tuple[str, int] | None = None) -> IRawConnection:
        # Names have been resolved before this point.
        if not self._allows_address(extract_ip_from_multiaddr(maddr) or ""):
            raise OpenConnectionError(f"{maddr} is not allowed")
        connection = await super()._dial_resolved(maddr, source)
        if isinstance(connection, RawConnection) and isinstance(connection.stream, TrioTCPStream):
            connection.stream = PeerSocket(connection.stream.stream)
        return connection

    # The declared type is the library's own listener, but the interface is IListener.
    def create_listener(self, handler_function: THandler) -> _ExclusiveListener:  # type: ignore[override]
        """A listener that is not bound to an address yet."""
        return _ExclusiveListener(handler_function)
