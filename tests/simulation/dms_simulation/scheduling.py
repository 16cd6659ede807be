"""Runs that are exactly the same for the same seed, in virtual time."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import trio
import trio.testing
from trio._core import _run as scheduler

__all__ = ["EPOCH", "VirtualClock", "WorkTimer", "run_seeded"]

_T = TypeVar("_T")

EPOCH = 1_800_000_000.0
"""The Unix time at which virtual time begins."""

_WORK = (0.0, 0.0, 0.0001, 0.001, 0.02)


class VirtualClock:
    """Steady and wall time of a machine in virtual time; the ledger's clock. `skew` (seconds) sets the wall clock
    ahead.
    """

    boot_id = "virtual"

    def __init__(self, skew: float = 0.0) -> None:
        self.skew = skew

    def steady(self) -> float:
        """Seconds since the run began."""
        return trio.current_time()

    def wall(self) -> float:
        """Unix time in seconds."""
        return EPOCH + self.skew + trio.current_time()


class WorkTimer:
    """The processor time in a world in which no work takes any time; for `SharesInUse`.

    `rng` decides how long a measured piece of work took: mostly nothing, sometimes as long as some turns of a peer.
    """

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._worked = 0.0

    def __call__(self) -> float:
        """Seconds of work so far."""
        self._worked += self._rng.choice(_WORK)
        return self._worked


def run_seeded(main: Callable[..., Awaitable[_T]], *args: Any, seed: int) -> _T:
    """Run an async function in virtual time. The seed decides the order of tasks that are ready at the same time."""
    # Trio's own switch for repeatable tests (pytest-trio sets it for hypothesis).
    before = scheduler._ALLOW_DETERMINISTIC_SCHEDULING, scheduler._r.getstate()
    scheduler._ALLOW_DETERMINISTIC_SCHEDULING = True
    scheduler._r.seed(seed)
    try:
        return trio.run(main, *args, clock=trio.testing.MockClock(autojump_threshold=0))
    finally:
        scheduler._ALLOW_DETERMINISTIC_SCHEDULING = before[0]
        scheduler._r.setstate(before[1])
