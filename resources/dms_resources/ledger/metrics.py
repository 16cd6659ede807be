"""What a ledger measures of its own work: how much changed, and how long the disk took."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from .book import Change

__all__ = ["WRITE_BUCKETS", "LedgerMetrics"]

WRITE_BUCKETS: Final = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0)
"""Upper bounds (seconds) of the buckets in which durable writes are counted."""


class LedgerMetrics:
    """Counts since the ledger was opened.

    `changes` by the action or, for an end, the reason that the history has (commit, allocate, released, expired, ...).
    `writes` counts durable writes by bucket of WRITE_BUCKETS, the last one for all that took longer; `write_seconds` is
    their sum.
    """

    def __init__(self) -> None:
        self.changes: Counter[str] = Counter()
        self.writes = [0] * (len(WRITE_BUCKETS) + 1)
        self.write_seconds = 0.0
        self.failed_writes = 0

    def written(self, changes: Iterable[Change], seconds: float) -> None:
        """These changes became durable together, after so many seconds."""
        for change in changes:
            for entry in change.entries:
                # An end is counted by its reason: what expired is of more interest than that something ended.
                self.changes[entry.reason or entry.action] += 1
        self.writes[bisect_left(WRITE_BUCKETS, seconds)] += 1
        self.write_seconds += seconds
