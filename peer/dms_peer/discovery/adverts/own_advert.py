"""This peer's own advert: the newest, signed."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Final

from msgspec.structs import replace

from dms_protocols.adverts.adverts import seal_advert
from dms_protocols.bidding.service import BidTerms, CurrentTerms
from dms_protocols.bidding.signing import Signer
from dms_protocols.errors import AdvertError
from dms_protocols.messages.adverts import MAX_ADDRS, CapacityAdvert
from dms_protocols.rpc.access import CurrentRules
from dms_resources.components import FreeResources
from dms_resources.estimates import abridged

__all__ = ["OwnAdvert"]

_MOST_EXECUTORS: Final = 64


class OwnAdvert:
    """Makes one advert after the other. `addrs` returns the current addresses; `clock` returns the Unix time in
    seconds.

    Sequence numbers are the time in milliseconds, so that they increase after a restart. If the clock was set back,
    other peers accept no new advert until the old one has expired.
    """

    def __init__(
        self,
        signer: Signer,
        addrs: Callable[[], Sequence[str]],
        terms: BidTerms | CurrentTerms | None = None,
        *,
        clock: Callable[[], float] = time.time,
        access: CurrentRules | None = None,
    ) -> None:
        self._access = access or CurrentRules()
        self._signer = signer
        self._addrs = addrs
        self._current = terms if isinstance(terms, CurrentTerms) else CurrentTerms(terms)
        self._clock = clock
        self._sequence = 0
        self._raw: bytes | None = None
        self._ends = 0.0

    @property
    def peer_id(self) -> str:
        """The peer that the advert describes."""
        return self._signer.peer_id

    @property
    def sequence(self) -> int:
        """The sequence number of the newest advert; 0 before the first."""
        return self._sequence

    @property
    def raw(self) -> bytes | None:
        """The newest signed advert. None before the first, when it has expired, and while it may not be published."""
        return self._raw if self.is_public and self._clock() <= self._ends else None

    @property
    def is_public(self) -> bool:
        """Whether anyone may know what is free, because an advert passes through other peers."""
        return self._access.rules.is_public("free")

    def renew(self, free: FreeResources, ttl: float) -> bytes:
        """Make an advert of what is free now, for `ttl` seconds."""
        now = self._clock()
        self._sequence = max(self._sequence + 1, int(now * 1000))
        # A peer that may not request bids must not learn the terms.
        terms = self._current.terms if self._access.rules.is_public("bid_request") else BidTerms()
        advert = CapacityAdvert(
            peer_id=self.peer_id,
            addrs=tuple(self._addrs())[:MAX_ADDRS],
            sequence=self._sequence,
            issued_at=now,
            ttl=ttl,
            free=abridged(free),
            location=terms.location,
            executors=tuple(sorted(terms.executors))[:_MOST_EXECUTORS],
        )
        self._raw, self._ends = self._sealed(advert), advert.expires_at
        return self._raw

    def _sealed(self, advert: CapacityAdvert) -> bytes:
        while True:
            try:
                return seal_advert(advert, self._signer)
            except AdvertError:
                if not advert.free.gpus:
                    raise
                # There are too many devices: keep the largest, which requesters look for.
                gpus = sorted(advert.free.gpus, key=lambda gpu: gpu.vram)[len(advert.free.gpus) // 4 + 1 :]
                advert = replace(advert, free=replace(advert.free, gpus=tuple(gpus)))
