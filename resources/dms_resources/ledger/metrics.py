"""Counters of a ledger's own work: how much changed, and how long the disk took."""

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
    """Counters since the ledger was opened.

    `changes` counts by action or, for an end, by its reason, as in the history (commit, allocate, released, expired,
    ...). `writes` counts durable writes by bucket of WRITE_BUCKETS; the last one counts all that took longer.
    `write_seconds` is the sum of their durations.
    """

    def __init__(self) -> None:
        self.changes: Counter[str] = Counter()
        self.writes = [0] * (len(WRITE_BUCKETS) + 1)
        self.write_seconds = 0.0
        self.failed_writes = 0

    def written(self, changes: Iterable[Change], seconds: float) -> None:
        """Count changes that became durable together, after `seconds`."""
        for change in changes:
            for entry in change.entries:
                # An end is counted by its reason, which says more than the fact that something ended. A lease whose job
                # still runs has two entries, for the end for its holder and for its end: its reason counts once.
                counted = entry.action if entry.action == "ending" else entry.reason or entry.action
                self.changes[counted] += 1
        self.writes[bisect_left(WRITE_BUCKETS, seconds)] += 1
        self.write_seconds += seconds
