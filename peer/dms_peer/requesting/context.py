"""The context that all searches and reservations of one requester share."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import trio

from .limits import RequesterLimits
from .network import Broadcast, CandidateSource
from .peers import PeerCalls
from .recording import LeaseRecorder

__all__ = ["RequesterContext"]


@dataclass(frozen=True, slots=True)
class RequesterContext:
    """The calls of peers, the sources of candidates, the limits, the clock (Unix seconds) and the random numbers."""

    calls: PeerCalls
    sources: Sequence[CandidateSource]
    broadcast: Broadcast | None
    limits: RequesterLimits
    clock: Callable[[], float]
    rng: random.Random
    skip_self: bool = True
    recorder: LeaseRecorder | None = None

    @property
    def skipped(self) -> frozenset[str]:
        """The peers that are never queried: the requester itself, unless it may be its own provider."""
        return frozenset({self.calls.requester}) if self.skip_self else frozenset()

    def nonce(self) -> int:
        """A number that no other request has."""
        return self.rng.getrandbits(62)

    def moment(self, unix: float) -> float:
        """The event loop's time at a Unix time."""
        return trio.current_time() + unix - self.clock()
