"""Tells a difference between the clocks of two machines from what it causes: deadlines and bids that seem over.

An error whose cause may be a clock has the time of the side that answers. The other side compares it with its own.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Final

__all__ = ["clock_difference", "depends_on_clocks"]

# Seconds: what a slow answer may take is no difference.
_NOTICED: Final = 10.0
_CODES: Final = frozenset(
    {"bid_expired", "token_expired", "advert_expired", "advert_ahead", "broadcast_expired", "expired"}
)
_PATHS: Final = frozenset({"ensemble.deadline"})


def depends_on_clocks(code: str, path: str = "") -> bool:
    """Whether an error with this code, or about this field, may come from clocks that differ."""
    return code in _CODES or path in _PATHS


def clock_difference(theirs: object, clock: Callable[[], float] = time.time) -> str:
    """A phrase that says by how much this machine's clock differs from the time (Unix seconds) that the other side
    sent; empty if it sent none, or if the clocks agree within what an answer takes.
    """
    if isinstance(theirs, bool) or not isinstance(theirs, int | float) or not math.isfinite(theirs):
        return ""
    ahead = clock() - theirs
    if abs(ahead) < _NOTICED:
        return ""
    side = "ahead of" if ahead > 0 else "behind"
    return f"the clock of this machine is {abs(ahead):.0f} s {side} the peer's: set the clock of one of them"
