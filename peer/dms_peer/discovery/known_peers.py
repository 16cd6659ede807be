"""Known peers: peers that answered before, their addresses, and what they had free at that time.

Known peers with free capacity are the cheapest source. The other known peers are the most expensive source except the
broadcast, and come last: after an hour on a network a peer has met hundreds of peers about which it knows nothing else.

The table is in memory. A task saves it at intervals and at the end, in a thread, never on the path of a request. The
table is bounded: the least recently seen peer is dropped first.
"""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Final

import trio
from msgspec.structs import replace

from dms_protocols.messages.bid import EnsembleRequest
from dms_resources.components import FreeResources
from dms_resources.estimates import abridged, would_fit
from dms_resources.tasks import open_background

from ..requesting.network import Candidate
from .peers_file import KnownPeer, PeersFile, merge_peers

__all__ = ["KnownPeers", "open_known_peers"]

_log = logging.getLogger(__name__)

_MOST_ADDRESSES: Final = 8
_LONGEST_ADDRESS: Final = 256
# Seconds for which a peer is not queried after its first failure. They double with each further one.
_FIRST_PAUSE: Final = 30.0
_LONGEST_PAUSE: Final = 6 * 3600.0


class KnownPeers:
    """The table: a CandidateSource and a PeerObserver. Times are in Unix seconds.

    `others` is the source of the known peers that this one does not name.
    """

    name = "known"

    def __init__(
        self, peers: Sequence[KnownPeer] = (), *, most: int = 4096, clock: Callable[[], float] = time.time
    ) -> None:
        self._peers = {peer.peer_id: peer for peer in sorted(peers, key=lambda peer: peer.last_seen)}
        self._most = most
        self._clock = clock
        self.others = _Others(self)
        self.changes = 0
        """The number of changes so far."""

    # Queries

    def __len__(self) -> int:
        return len(self._peers)

    def get(self, peer_id: str) -> KnownPeer | None:
        """The entry of one peer; None if it is not known."""
        return self._peers.get(peer_id)

    def answered(self, peer_id: str) -> bool:
        """Whether a peer reported its free capacity to this one, and has not been unreachable since."""
        peer = self._peers.get(peer_id)
        return peer is not None and peer.free_at is not None and not peer.failures

    def is_due(self, peer_id: str, seconds: float) -> bool:
        """Whether a peer was not seen for this time, or never."""
        peer = self._peers.get(peer_id)
        return peer is None or self._clock() - peer.last_seen >= seconds or peer.failures > 0

    def recent(self, most: int) -> tuple[KnownPeer, ...]:
        """At most this many peers, the last seen first."""
        return tuple(reversed(self._peers.values()))[:most]

    # PeerObserver

    def seen(self, peer_id: str, addrs: Sequence[str], free: FreeResources | None = None) -> None:
        now = self._clock()
        before = self._peers.pop(peer_id, None) or KnownPeer(peer_id=peer_id, addrs=(), last_seen=now)
        newest_first = dict.fromkeys(addr for addr in (*addrs, *before.addrs) if len(addr) <= _LONGEST_ADDRESS)
        after = replace(before, addrs=tuple(newest_first)[:_MOST_ADDRESSES], last_seen=now, failures=0)
        if free is not None:
            after = replace(after, free=abridged(free), free_at=now)
        # Moved to the end, because the table is in the order of the last sign of life.
        self._peers[peer_id] = after
        if len(self._peers) > self._most:
            del self._peers[next(iter(self._peers))]
        self.changes += 1

    def unreachable(self, peer_id: str) -> None:
        if (before := self._peers.get(peer_id)) is not None:
            self._peers[peer_id] = replace(before, failures=before.failures + 1, last_failure=self._clock())
            self.changes += 1

    # CandidateSource

    def candidates(self, request: EnsembleRequest) -> AbstractAsyncContextManager[AsyncIterator[Candidate]]:
        """Yield the peers that last reported free capacity, the freshest figure first."""
        return self._named(self._able, request)

    def other_candidates(self, request: EnsembleRequest) -> AbstractAsyncContextManager[AsyncIterator[Candidate]]:
        """The other peers: first those that never reported what is free, then those that were full, the oldest figure
        first.
        """
        return self._named(self._unlikely, request)

    @asynccontextmanager
    async def _named(
        self, ranked: Callable[[EnsembleRequest], list[KnownPeer]], request: EnsembleRequest
    ) -> AsyncIterator[AsyncIterator[Candidate]]:
        async with aclosing(self._candidates(ranked, request)) as found:
            yield found

    async def _candidates(
        self, ranked: Callable[[EnsembleRequest], list[KnownPeer]], request: EnsembleRequest
    ) -> AsyncGenerator[Candidate, None]:
        await trio.lowlevel.checkpoint()
        for peer in ranked(request):
            yield Candidate(peer.peer_id, peer.addrs, self.name, peer.free, peer.free_at)

    def _able(self, request: EnsembleRequest) -> list[KnownPeer]:
        able = [peer for peer in self._approachable(request) if _had_capacity(peer, request)]
        return sorted(able, key=lambda peer: -(peer.free_at or 0))

    def _unlikely(self, request: EnsembleRequest) -> list[KnownPeer]:
        others = [peer for peer in self._approachable(request) if not _had_capacity(peer, request)]
        # The older a figure is, the more likely it has changed.
        return sorted(others, key=lambda peer: 0.0 if peer.free is None else peer.free_at or 0.0)

    def _approachable(self, request: EnsembleRequest) -> Iterator[KnownPeer]:
        now, excluded = self._clock(), frozenset(request.peer_exclusion)
        for peer in reversed(self._peers.values()):
            if peer.peer_id not in excluded and now >= peer.last_failure + _pause(peer.failures):
                yield peer

    # Saving

    def table(self) -> dict[str, KnownPeer]:
        """A copy of the table, for saving."""
        return dict(self._peers)

    def absorb(self, peers: dict[str, KnownPeer]) -> None:
        """Merge what other programs of this home learned."""
        self._peers = merge_peers(self._peers.values(), peers.values(), most=self._most, now=self._clock())


class _Others:
    """A CandidateSource of the known peers that are not likely to have free capacity."""

    def __init__(self, peers: KnownPeers) -> None:
        self.name = peers.name
        self._peers = peers

    def candidates(self, request: EnsembleRequest) -> AbstractAsyncContextManager[AsyncIterator[Candidate]]:
        return self._peers.other_candidates(request)


def _had_capacity(peer: KnownPeer, request: EnsembleRequest) -> bool:
    return peer.free is not None and any(would_fit(peer.free, node.resources) for node in request.request)


def _pause(failures: int) -> float:
    return min(_FIRST_PAUSE * 2 ** min(failures - 1, 32), _LONGEST_PAUSE) if failures else 0.0


@asynccontextmanager
async def open_known_peers(
    path: Path | None, *, most: int = 4096, save_interval: float = 60.0, clock: Callable[[], float] = time.time
) -> AsyncIterator[KnownPeers]:
    """The known peers of the file at `path` (None: no file), while the block runs. They are saved at its end.

    Changes are written at most every `save_interval` seconds, and at the end. If the file cannot be read or written,
    the error is logged, and nothing else happens. Closing waits for the disk.
    """
    if path is None:
        yield KnownPeers(most=most, clock=clock)
        return
    file = PeersFile(path, most)
    peers = KnownPeers(tuple((await _load(file, path)).values()), most=most, clock=clock)
    saved = _Saved(peers, file, path)
    try:
        async with open_background(partial(saved.keep, save_interval)):
            yield peers
    finally:
        with trio.CancelScope(shield=True):
            await saved.save()


async def _load(file: PeersFile, path: Path) -> dict[str, KnownPeer]:
    try:
        return await trio.to_thread.run_sync(file.load)
    except OSError as error:
        _log.warning("the known peers in %s cannot be read: %s", path, error.strerror)
        return {}


class _Saved:
    """The saved part of the table."""

    def __init__(self, peers: KnownPeers, file: PeersFile, path: Path) -> None:
        self._peers = peers
        self._file = file
        self._path = path
        self._changes = 0

    async def keep(self, interval: float) -> None:
        while True:
            await trio.sleep(interval)
            await self.save()

    async def save(self) -> None:
        changes = self._peers.changes
        if changes == self._changes:
            return
        try:
            merged = await trio.to_thread.run_sync(self._file.save, self._peers.table())
        except OSError as error:
            _log.warning("the known peers cannot be written to %s: %s", self._path, error.strerror)
            return
        self._changes = changes
        self._peers.absorb(merged)
