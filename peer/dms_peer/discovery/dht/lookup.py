"""One walk through the DHT towards a key: it queries the closest peers for closer ones, until none knows any.

The library's own walk dials any number of peers, drops the addresses in answers to GET_PROVIDERS, and returns all its
results at the end. A requester wants the first provider as soon as it is found, and then no more. The walk ends when
the WIDTH closest peers that answer have all been queried. A peer that is slow or gone does not delay it: after a second
another one is queried at the same time.

Source: https://github.com/libp2p/specs/blob/master/kad-dht/README.md ("Peer routing", "Content provider discovery").
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Final

import trio
from libp2p.kad_dht.pb.kademlia_pb2 import Message
from libp2p.peer.id import ID
from multiaddr import Multiaddr  # type: ignore[import-untyped]  # it has no types

__all__ = ["WIDTH", "AskPeer", "Walk", "closest_to", "peers_in"]

WIDTH: Final = 8
"""The number of closest peers that keep a record and are queried for it. At any time a third of them may be gone."""

_AT_ONCE: Final = 3
_MOST_AT_ONCE: Final = 8
_MOST_ASKED: Final = 64
_MOST_KNOWN: Final = 256
_MOST_NAMED: Final = 20
_MOST_ADDRESSES: Final = 8
# Seconds. A peer that has not answered after the second of these times no longer counts as one of the pending queries.
_WALK_DEADLINE: Final = 20.0
_LATE: Final = 1.0


AskPeer = Callable[[ID], Awaitable[Message | None]]
"""Queries one peer for what the walk wants to know; None if it does not answer."""


def _distance(peer_id: ID, key: bytes) -> int:
    """The distance of a peer from a key, in the metric of Kademlia over SHA-256."""
    here, there = hashlib.sha256(peer_id.to_bytes()).digest(), hashlib.sha256(key).digest()
    return int.from_bytes(here) ^ int.from_bytes(there)


def closest_to(key: bytes, peers: Iterable[ID]) -> list[ID]:
    """The WIDTH peers that are closest to the key, the closest first."""
    return sorted(peers, key=lambda peer_id: _distance(peer_id, key))[:WIDTH]


def peers_in(named: Sequence[Message.Peer], most: int) -> Iterator[tuple[ID, list[Multiaddr]]]:
    """The readable peers that a message names, with their addresses."""
    for peer in named[:most]:
        addrs = [address for address in map(_decoded, peer.addrs[:_MOST_ADDRESSES]) if address is not None]
        # A multihash of SHA-256 or of a short key.
        if 34 <= len(peer.id) <= 64:
            yield ID(peer.id), addrs


# All answers name the same few peers.
@lru_cache(maxsize=4096)
def _decoded(raw: bytes) -> Multiaddr | None:
    try:
        address = Multiaddr(raw)
        # It is decoded only now, and each of its codecs raises an error of its own.
        str(address)
    except Exception:
        return None
    return address


class Walk:
    """The state of one walk. `learn` is called with each peer that an answer names, and its addresses."""

    def __init__(
        self,
        key: bytes,
        own_id: ID,
        start: Sequence[ID],
        ask: AskPeer,
        learn: Callable[[ID, list[Multiaddr]], None],
        *,
        width: int = WIDTH,
    ) -> None:
        self._key = key
        self._own_id = own_id
        self._ask = ask
        self._learn = learn
        self._width = width
        self._candidates = {peer_id: _distance(peer_id, key) for peer_id in start if peer_id != own_id}
        self._asked: set[ID] = set()
        self._answered: set[ID] = set()
        # The peers that are being queried, or whose answer is still being handled, and when each is late.
        self._late_at: dict[ID, float] = {}
        self._progress = trio.Event()

    @property
    def closest(self) -> list[ID]:
        """The closest peers that answered, the closest first."""
        return closest_to(self._key, self._answered)

    @property
    def living(self) -> frozenset[ID]:
        """All peers that answered or were named, without those that did not answer."""
        return frozenset(self._answered | self._candidates.keys())

    async def run(self, found: Callable[[Message], Awaitable[None]]) -> None:
        """Walk until no closer peer is known, for a bounded time. Waits while `found` handles an answer."""
        with trio.move_on_after(_WALK_DEADLINE):
            async with trio.open_nursery() as nursery:
                for _ in range(_MOST_AT_ONCE):
                    nursery.start_soon(self._work, found)

    async def _work(self, found: Callable[[Message], Awaitable[None]]) -> None:
        while True:
            on_time = [late_at for late_at in self._late_at.values() if late_at > trio.current_time()]
            peer_id = self._next() if len(on_time) < _AT_ONCE else None
            if peer_id is not None:
                await self._visit(peer_id, found)
            elif self._late_at:
                # A peer that is being queried may know closer ones.
                with trio.CancelScope(deadline=min(on_time, default=math.inf)):
                    await self._progress.wait()
            else:
                return

    async def _visit(self, peer_id: ID, found: Callable[[Message], Awaitable[None]]) -> None:
        self._asked.add(peer_id)
        self._late_at[peer_id] = trio.current_time() + _LATE
        try:
            message = await self._ask(peer_id)
            # A caller that waits for the answers is not late.
            self._late_at[peer_id] = math.inf
            if message is None:
                self._candidates.pop(peer_id, None)
            else:
                self._answered.add(peer_id)
                self._take(message)
                self._tell()
                await found(message)
        finally:
            del self._late_at[peer_id]
            self._tell()

    def _tell(self) -> None:
        self._progress.set()
        self._progress = trio.Event()

    def _take(self, message: Message) -> None:
        for peer_id, addrs in peers_in(message.closerPeers, _MOST_NAMED):
            if peer_id == self._own_id or peer_id in self._asked:
                continue
            self._learn(peer_id, addrs)
            self._candidates[peer_id] = _distance(peer_id, self._key)
        for peer_id in sorted(self._candidates, key=self._candidates.__getitem__)[_MOST_KNOWN:]:
            del self._candidates[peer_id]

    def _next(self) -> ID | None:
        if len(self._asked) >= _MOST_ASKED:
            return None
        closest = sorted(self._candidates, key=self._candidates.__getitem__)[: self._width]
        return next((peer_id for peer_id in closest if peer_id not in self._asked), None)
