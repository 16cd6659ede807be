"""Decides which advert a full table drops: the one that is worth least.

What an advert says of itself does not count, neither its time to live nor its figures, because a stranger chooses both.
What counts is what this peer knows by itself, in this order:

1. **Trust.** Peers that answered this peer or that it traded with are dropped only for each other, while they fill no
   more than three quarters of the table. A quarter is always there for strangers.
2. **The share of a network.** Among strangers, an advert is dropped from those of the network (an address) that brought
   most of them. So a flood from one address displaces itself, under however many keys.
3. **Endurance.** Of those, one of a peer that was heard once goes before one of a peer that was heard again after
   half a minute: a crowd of new keys displaces new keys.
4. **Chance** decides between equals, so that nobody can compute whom a flood displaces.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Final

__all__ = ["AdvertRetention"]

# Seconds after which a further advert of a peer shows that it endures. Providers advertise every minute.
_ENDURES_AFTER: Final = 30.0
# The part of the table that trusted peers leave to strangers: one in this many.
_STRANGERS_PART: Final = 4


class _Chosen:
    """A set of peers from which one is drawn at random; every operation takes constant time."""

    def __init__(self) -> None:
        self._peers: list[str] = []
        self._places: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._peers)

    def __contains__(self, peer_id: str) -> bool:
        return peer_id in self._places

    def add(self, peer_id: str) -> None:
        if peer_id not in self._places:
            self._places[peer_id] = len(self._peers)
            self._peers.append(peer_id)

    def discard(self, peer_id: str) -> None:
        place = self._places.pop(peer_id, None)
        if place is None:
            return
        last = self._peers.pop()
        if last != peer_id:
            self._peers[place] = last
            self._places[last] = place

    def draw(self, rng: random.Random) -> str:
        return rng.choice(self._peers)


@dataclass(slots=True)
class _Network:
    """The strangers of one network: heard once, and heard again."""

    once: _Chosen = field(default_factory=_Chosen)
    again: _Chosen = field(default_factory=_Chosen)

    def __len__(self) -> int:
        return len(self.once) + len(self.again)

    def discard(self, peer_id: str) -> None:
        self.once.discard(peer_id)
        self.again.discard(peer_id)

    def least(self, rng: random.Random) -> str:
        return (self.once or self.again).draw(rng)


class AdvertRetention:
    """The worth of the peers of one table that keeps at most `most` of them. `rng` decides between equals."""

    def __init__(self, most: int, rng: random.Random | None = None) -> None:
        self._most = most
        self._rng = rng or random.Random()
        self._trusted = _Chosen()
        self._networks: dict[str, _Network] = {}
        # Of each stranger: its network, and when it was first heard.
        self._origins: dict[str, tuple[str, float]] = {}

    def heard(self, peer_id: str, network: str, *, trusted: bool, direct: bool, now: float) -> None:
        """Note an advert that the table keeps. It came from `network`, `direct` from its own peer; `now` in seconds."""
        before = self._origins.get(peer_id)
        if trusted:
            self.forget(peer_id)
            self._trusted.add(peer_id)
            return
        self._trusted.discard(peer_id)
        # What others brought counts for the network that was first, until the peer itself comes: nobody else can
        # make it worth less.
        origin, first = before or (network, now)
        if direct and origin != network:
            self.forget(peer_id)
            origin = network
        self._origins[peer_id] = origin, first
        in_network = self._networks.setdefault(origin, _Network())
        in_network.discard(peer_id)
        (in_network.again if now - first >= _ENDURES_AFTER else in_network.once).add(peer_id)

    def forget(self, peer_id: str) -> None:
        """Forget a peer that the table keeps no more."""
        self._trusted.discard(peer_id)
        origin = self._origins.pop(peer_id, None)
        if origin is None:
            return
        network = self._networks[origin[0]]
        network.discard(peer_id)
        if not network:
            del self._networks[origin[0]]

    def least(self) -> str:
        """Returns the peer that is worth least. Raises ValueError where there is none.

        Walks over the networks, which takes less time than to check one signature.
        """
        if self._networks and len(self._trusted) <= self._most - self._most // _STRANGERS_PART:
            return max(self._networks.values(), key=len).least(self._rng)
        if not self._trusted:
            raise ValueError("there is no advert")
        return self._trusted.draw(self._rng)
