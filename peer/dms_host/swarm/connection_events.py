"""Tells who connects to a host, who leaves it, and who has said what it serves; nobody has to look again and again."""

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
    """It is not of interest."""


class ConnectionEvents(INotifee):
    """Calls what it is given; none of it may wait."""

    def __init__(
        self, came: Callable[[ID], None], left: Callable[[ID], None], told: Callable[[ID], None] = _nothing
    ) -> None:
        self._came = came
        self._left = left
        self._told = told

    async def connected(self, network: INetwork, conn: INetConn) -> None:
        """Somebody has connected, or was reached."""
        self._came(conn.muxed_conn.peer_id)

    async def disconnected(self, network: INetwork, conn: INetConn) -> None:
        """A connection has ended; there may be another one to the same peer."""
        self._left(conn.muxed_conn.peer_id)

    async def opened_stream(self, network: INetwork, stream: INetStream) -> None:
        """Nothing."""

    async def closed_stream(self, network: INetwork, stream: INetStream) -> None:
        """What a peer says of itself is in the peer store when the stream on which it said so is over."""
        if stream.get_protocol() in _TELLING:
            self._told(stream.muxed_conn.peer_id)

    async def listen(self, network: INetwork, multiaddr: Multiaddr) -> None:
        """Nothing."""

    async def listen_close(self, network: INetwork, multiaddr: Multiaddr) -> None:
        """Nothing."""


@contextmanager
def watching(host: IHost, events: ConnectionEvents) -> Iterator[None]:
    """Tells `arrivals` while the block runs."""
    host.get_network().register_notifee(events)
    try:
        yield
    finally:
        with suppress(ValueError):
            notifees(host).remove(events)


def notifees(host: IHost) -> list[INotifee]:
    """Whom a host tells, for taking one off: the library has no other way."""
    found: list[INotifee] = host.get_network().notifees  # type: ignore[attr-defined]  # INetwork lacks it
    return found
