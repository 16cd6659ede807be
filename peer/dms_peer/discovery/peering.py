"""Keeps a peer connected to a few others. Without connections it hears of no peers.

At the start, and while too few peers are connected, it dials the bootstrap addresses and the peers that were seen last.
The pool does not close these connections when they are idle. Connected peers that serve our protocols become known
peers, so that a later start needs no bootstrap address.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final

import trio
from libp2p.abc import IHost
from libp2p.network.swarm import Swarm
from libp2p.peer.id import ID

from dms_host import parse_peer_address
from dms_host.errors import DialError
from dms_host.swarm.connection_events import ConnectionEvents, watching
from dms_protocols.logs import LimitedLog
from dms_protocols.protocol_ids import PEERS_PROTOCOL, RESOURCES_PROTOCOL

from ..connections import ConnectionPool
from .dht.host_view import text_addresses
from .known_peers import KnownPeers

__all__ = ["Peering", "bootstrap_peers"]

_log = logging.getLogger(__name__)
_limited_log: Final = LimitedLog(_log)

_ENOUGH: Final = 4
_RECENT: Final = 8
_AT_ONCE: Final = 4
_MOST_BACKOFF: Final = 8
# The random part of a pause, in both directions.
_JITTER: Final = 0.25
# Failures that say nothing about the peer.
_OUR_CODES: Final = frozenset({"backing_off", "busy", "denied", "closed"})
# Seconds for which a sighting of a peer is not noted again.
_NOTED: Final = 60.0
_TAG: Final = "dms-peering"


def bootstrap_peers(addresses: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """The addresses of each peer. Raises AddressError."""
    peers: dict[str, tuple[str, ...]] = {}
    for address in map(parse_peer_address, addresses):
        peer_id = address.peer_id.to_base58()
        peers[peer_id] = (*peers.get(peer_id, ()), address.text)
    return peers


class Peering:
    """The connections that are kept although they are idle."""

    def __init__(
        self,
        host: IHost,
        connections: ConnectionPool,
        bootstrap: Mapping[str, Sequence[str]],
        known: KnownPeers,
        *,
        enough: int = _ENOUGH,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self._host = host
        self._connections = connections
        self._bootstrap = bootstrap
        self._known = known
        self._others: Callable[[], Mapping[str, Sequence[str]]] = dict
        self._enough = enough
        self._kept: set[str] = set()
        self._tried, self._changed = trio.Event(), trio.Event()
        # The error code that was logged for each unreachable bootstrap peer.
        self._missing: dict[str, str] = {}
        self._draw = draw

    def add_source(self, others: Callable[[], Mapping[str, Sequence[str]]]) -> None:
        """Add a source: `others` returns more peers to dial, such as those of the local network."""
        self._others = others

    @property
    def connected(self) -> tuple[str, ...]:
        """The connected peers."""
        return tuple(peer_id.to_base58() for peer_id in self._host.get_connected_peers())

    def partners(self) -> dict[str, Sequence[str]]:
        """Connected peers that exchange adverts, as far as they have reported it, the bootstrap peers first."""
        peerstore = self._host.get_peerstore()
        found: dict[str, Sequence[str]] = {}
        for peer_id in self._host.get_connected_peers():
            try:
                protocols = peerstore.get_protocols(peer_id)
            except Exception:
                # Each of the library's peer stores raises its own error for a missing entry.
                protocols = []
            if not protocols or PEERS_PROTOCOL in protocols:
                found[peer_id.to_base58()] = ()
        return dict(sorted(found.items(), key=lambda item: item[0] not in self._bootstrap))

    async def wait_tried(self) -> None:
        """Return when every peer was dialled once, whether it answered or not."""
        await self._tried.wait()

    async def wait_changed(self) -> None:
        """Return when a peer has connected, left, or reported its protocols. May be cancelled."""
        await self._changed.wait()

    async def keep(self, interval: float) -> None:
        """Check every `interval` seconds, and less often while no peer answers. Runs until cancelled."""
        pause = interval
        with watching(self._host, ConnectionEvents(self._came, self._wake, self._wake)), self._releasing():
            while True:
                reached = await self.gather()
                self._tried.set()
                self.note()
                lonely = not reached and not self.connected
                pause = min(2 * pause, _MOST_BACKOFF * interval) if lonely else interval
                # Peers that lost the same neighbour do not return at the same moment.
                await trio.sleep(pause * (1 - _JITTER + 2 * _JITTER * self._draw()))

    def _came(self, peer_id: ID) -> None:
        self._is_there(peer_id.to_base58())
        self._wake(peer_id)

    def _wake(self, peer_id: ID) -> None:
        self._changed.set()
        self._changed = trio.Event()

    async def gather(self) -> int:
        """Dial while fewer than enough peers are connected. Returns the number of peers reached."""
        self._let_go()
        missing = self._enough - len(self.connected)
        if missing <= 0:
            return 0
        slots, reached = trio.CapacityLimiter(_AT_ONCE), list[str]()

        async def dial(peer_id: str, addrs: Sequence[str]) -> None:
            async with slots:
                if await self._dial(peer_id, addrs):
                    reached.append(peer_id)

        async with trio.open_nursery() as nursery:
            for peer_id, addrs in self._candidates().items():
                nursery.start_soon(dial, peer_id, addrs)
        return len(reached)

    def _candidates(self) -> dict[str, Sequence[str]]:
        recent = {peer.peer_id: peer.addrs for peer in self._known.recent(_RECENT)}
        others = dict(list(self._others().items())[:_RECENT])
        here = {self._host.get_id().to_base58(), *self.connected}
        return {
            peer_id: addrs
            for peer_id, addrs in {**others, **recent, **self._bootstrap}.items()
            if peer_id not in here and addrs
        }

    async def _dial(self, peer_id: str, addrs: Sequence[str]) -> bool:
        try:
            await self._connections.connect(peer_id, addrs)
        except DialError as error:
            if error.code not in _OUR_CODES:
                self._known.unreachable(peer_id)
                self._is_missing(peer_id, error)
            return False
        self._is_there(peer_id)
        self._protect(peer_id)
        if peer_id in self._bootstrap:
            # The user named it, so it is queried like any known peer. Only identify tells what it serves.
            self._known.seen(peer_id, addrs)
        return True

    def _is_missing(self, peer_id: str, error: DialError) -> None:
        """Log an unreachable bootstrap peer once, and again if the reason changes."""
        if peer_id in self._bootstrap and self._missing.get(peer_id) != error.code:
            self._missing[peer_id] = error.code
            _limited_log.log(logging.WARNING, "a bootstrap peer is not there: %s", error)

    def _is_there(self, peer_id: str) -> None:
        if self._missing.pop(peer_id, None) is not None:
            _limited_log.log(logging.INFO, "a bootstrap peer is there again: %s", peer_id)

    # Keeping connections

    def _protect(self, peer_id: str) -> None:
        network = self._host.get_network()
        if isinstance(network, Swarm) and len(self._kept) < self._enough:
            self._kept.add(peer_id)
            network.protect(ID.from_string(peer_id), _TAG)

    def _let_go(self, everybody: bool = False) -> None:
        network = self._host.get_network()
        for peer_id in self._kept - set(() if everybody else self.connected):
            self._kept.discard(peer_id)
            if isinstance(network, Swarm):
                network.unprotect(ID.from_string(peer_id), _TAG)

    @contextmanager
    def _releasing(self) -> Iterator[None]:
        try:
            yield
        finally:
            self._let_go(everybody=True)

    # Known peers

    def note(self) -> None:
        """Note the connected peers that serve our protocols."""
        peerstore = self._host.get_peerstore()
        for peer_id in self._host.get_connected_peers():
            if not self._known.is_due(peer_id.to_base58(), _NOTED):
                continue
            try:
                serves = peerstore.supports_protocols(peer_id, [RESOURCES_PROTOCOL])
                addrs = peerstore.addrs(peer_id)
            except Exception:
                # Each of the library's peer stores raises its own error for a missing entry.
                continue
            if serves and addrs:
                self._known.seen(peer_id.to_base58(), text_addresses(peer_id, addrs))
