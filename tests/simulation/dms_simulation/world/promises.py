"""What one provider has acknowledged about one lease, and which other requests may have taken effect.

It is kept separate from the ledger and by other rules, so that the two can be compared.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Final

from dms_resources.ledger.leases import Lease, LeaseState

__all__ = ["KEEP_ALIVE", "Promise", "Request"]

KEEP_ALIVE: Final = 900.0
"""Seconds for which an allocation of these providers lasts without a renewal."""


@dataclass(slots=True, eq=False)
class Request:
    """One request for a lease by its holder. `began` and `ended` are positions in the order of the provider's events.
    `ended` is None while the outcome is unknown, and remains a bound if the outcome was lost.
    """

    kind: str
    began: int
    since: float
    ttl: float = 0.0
    ended: int | None = None
    until: float = math.inf

    def over_before(self, other: Request) -> bool:
        """Whether all effects of this request came before the other one began."""
        return self.ended is not None and self.ended < other.began


@dataclass(slots=True, eq=False)
class Promise:
    """A lease that was acknowledged to its holder. `open` are its holder's requests that may have changed it since.

    `low` and `high` bound when it ends, in the event loop's time. `released` is when (in the order of the provider's
    events) its release was acknowledged.
    """

    lease: Lease
    low: float = math.inf
    high: float = math.inf
    released: int | None = None
    open: list[Request] = field(default_factory=list)

    @property
    def allocated(self) -> bool:
        """Whether it was acknowledged as an allocation."""
        return self.lease.state is LeaseState.ALLOCATED

    def asked(self, kind: str) -> bool:
        """Whether such a request may have taken effect."""
        return any(request.kind == kind for request in self.open)

    def acknowledge(self, request: Request, lease: Lease, now: float, order: int) -> None:
        """Note an answer: it overrides everything that was over before its request."""
        # A repeated allocation gets the answer of the first one, which may have been lost.
        since = min([request.since, *(one.since for one in self.open if one.kind == request.kind == "allocate")])
        others = [one for one in self.open if one is not request and not one.over_before(request)]
        if others:
            # Requests at the same time may have been decided before or after.
            request.ended, request.until = order, now
            others.append(request)
        self.open[:] = others
        if self.allocated and (request.kind != "renew" or lease.state is not LeaseState.ALLOCATED):
            # The answer to a renewal may arrive after that of the allocation that followed it.
            return
        self.lease = lease
        if lease.deadline is None:
            self.low = self.high = math.inf
        else:
            self.low, self.high = since + lease.ttl, now + lease.ttl

    def bounds(self, now: float) -> tuple[float, float]:
        """When it ends at the earliest and at the latest, with all requests that may have taken effect."""
        if self.asked("release"):
            return -math.inf, self._latest(now)
        earliest = [one.since + ttl for one in self.open for ttl in self._times_to_live(one)]
        return min([self.low, *earliest]), self._latest(now)

    def grant_grace(self, lease: Lease, ends: float) -> None:
        """Note that the provider gave an allocation another keep-alive when it restarted."""
        self.lease, self.low, self.high = lease, ends, ends

    def _latest(self, now: float) -> float:
        latest = [min(one.until, now) + ttl for one in self.open for ttl in self._times_to_live(one)]
        return max([self.high, *latest])

    def _times_to_live(self, request: Request) -> list[float]:
        """How long the lease may last after this request, if it took effect."""
        found = [request.ttl] if request.kind == "renew" and not self.allocated else []
        if request.kind == "allocate" or (request.kind == "renew" and (self.allocated or self.asked("allocate"))):
            found.append(KEEP_ALIVE)
        return found

    def rebase(
        self, lease: Lease | None, opened: tuple[float, float], wall: tuple[float, float], *, sure: bool
    ) -> None:
        """Compute again after a reboot between the two moments of `opened`, at which the wall clock showed `wall`.

        `lease` is what the file has; the remaining time follows from its deadline. If it is not `sure` that the ledger
        sees a reboot, the old bounds are possible too.
        """
        body = lease or self.lease
        if body.deadline is None:
            return
        first, last = (
            moment + min(body.ttl, max(0.0, body.deadline - shown)) for moment, shown in zip(opened, wall, strict=True)
        )
        if lease is None and self.open:
            first = -math.inf
        self.low, self.high = (first, last) if sure else (min(first, self.low), max(last, self.high))
        if lease is not None and self.open:
            # Earlier requests have left their deadline in the file, or have not taken effect.
            self.open[:] = [one for one in self.open if one.kind not in ("renew", "allocate")]
            self.lease = lease
