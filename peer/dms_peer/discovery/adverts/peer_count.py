"""Estimates the number of peers from the adverts that are heard.

The `k` smallest hashes of all heard peer ids tell how many there are: the closer together they are, the more peers
(Bar-Yossef et al., "Counting distinct elements in a data stream", 2002). The count is exact below `k` and within a few
percent above, in a few kilobytes for a network of any size. The hash has a secret key, so that no stranger can choose
ids that count for more. A silent peer no longer counts after two periods.
"""

from __future__ import annotations

import hashlib
import heapq
import secrets
from collections.abc import Callable
from typing import Final

__all__ = ["PeerCount"]

_SPACE: Final = 2**64


class _Smallest:
    """The `k` smallest of the added numbers, which are below _SPACE."""

    def __init__(self, k: int) -> None:
        self._k = k
        self._kept: set[int] = set()
        self._largest_first: list[int] = []

    def add(self, number: int) -> None:
        if number in self._kept or (len(self._kept) == self._k and number > -self._largest_first[0]):
            return
        self._kept.add(number)
        heapq.heappush(self._largest_first, -number)
        if len(self._kept) > self._k:
            self._kept.discard(-heapq.heappop(self._largest_first))

    def estimate(self) -> float:
        if len(self._kept) < self._k:
            return len(self._kept)
        return (self._k - 1) * _SPACE / (1 - self._largest_first[0])


class PeerCount:
    """Counts peers. `clock` returns seconds; after `period` seconds of silence a peer counts as gone."""

    def __init__(self, *, clock: Callable[[], float], period: float = 1800.0, k: int = 256) -> None:
        self._clock = clock
        self._k = k
        self._secret = secrets.token_bytes(16)
        self._now, self._before = _Smallest(k), _Smallest(k)
        self._turned = clock()
        self.period = period
        """Seconds. It may be changed at any time, for example when adverts become rarer."""

    def heard(self, peer_id: str) -> None:
        """Note an advert of this peer."""
        self._turn()
        digest = hashlib.blake2b(peer_id.encode(), digest_size=8, key=self._secret).digest()
        self._now.add(int.from_bytes(digest, "big"))

    def estimate(self) -> float:
        """The estimated number of other peers."""
        self._turn()
        return max(self._now.estimate(), self._before.estimate())

    def _turn(self) -> None:
        now = self._clock()
        periods = (now - self._turned) // self.period
        if periods >= 1:
            self._before = self._now if periods < 2 else _Smallest(self._k)
            self._now, self._turned = _Smallest(self._k), now
