"""Events of a host's connections: a peer connected, disconnected, or reported which protocols it serves."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Final

from libp2p.abc import IHost, INetStream, INetwork, INotifee
from libp2p.identity.identify.identify import ID as IDENTIFY
from libp2p.identity.identify_push.identify_push import ID_PUSH
from libp2p.peer.id import ID

if TYPE_CHECKING:
    from libp2p.abc import INetConn
    from multiaddr import Multiaddr  # type: ignore[import-untyped]  # it has no types

__all__ = ["ConnectionEvents", "notifees", "watching"]

_TELLING: Final = frozenset({IDENTIFY, ID_PUSH})


def _nothing(peer_id: ID) -> None:
    """Ignore the event."""


class ConnectionEvents(INotifee):
    """Calls the given functions, which must not block."""

    def __init__(
        self, came: Callable[[ID], None], left: Callable[[ID], None], told: Callable[[ID], None] = _nothing
    ) -> None:
        self._came = came
        self._left = left
        self._told = told

    async def connected(self, network: INetwork, conn: INetConn) -> None:
        """A connection was made, in either direction."""
        self._came(conn.muxed_conn.peer_id)

    async def disconnected(self, network: INetwork, conn: INetConn) -> None:
        """A connection has ended; there may be another to the same peer."""
        self._left(conn.muxed_conn.peer_id)

    async def opened_stream(self, network: INetwork, stream: INetStream) -> None:
        """Ignored."""

    async def closed_stream(self, network: INetwork, stream: INetStream) -> None:
        """An identify stream has ended: its message is now in the peer store."""
        if stream.get_protocol() in _TELLING:
            self._told(stream.muxed_conn.peer_id)

    async def listen(self, network: INetwork, multiaddr: Multiaddr) -> None:
        """Ignored."""

    async def listen_close(self, network: INetwork, multiaddr: Multiaddr) -> None:
        """Ignored."""


@contextmanager
def watching(host: IHost, events: ConnectionEvents) -> Iterator[None]:
    """Report to `events` while the block runs."""
    host.get_network().register_notifee(events)
    try:
        yield
    finally:
        with suppress(ValueError):
            notifees(host).remove(events)


def notifees(host: IHost) -> list[INotifee]:
    """The list of a host's notifees; the library has no method to remove one."""
    found: list[INotifee] = host.get_network().notifees  # type: ignore[attr-defined]  # INetwork lacks it
    return found
