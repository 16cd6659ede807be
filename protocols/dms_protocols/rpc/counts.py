"""Counts of a peer's own work: plain numbers in memory, which the metrics show.

A count costs one addition for each request. All keys come from this side's own code (names of operations, codes of
errors), so that no peer can make a table grow.
"""

from __future__ import annotations

from collections import Counter

__all__ = ["OK", "UNREADABLE", "ServiceCounts"]

OK = "ok"
"""The outcome of a request that was answered as asked; every other outcome is the code of an error."""

UNREADABLE = "unreadable"
"""Stands for the operation where a frame names no known one."""


class ServiceCounts:
    """Counts since the peer started.

    `requests` by operation and outcome, `bids` that were signed, and `refusals` of nodes by their code.
    """

    def __init__(self) -> None:
        self.requests: Counter[tuple[str, str]] = Counter()
        self.bids = 0
        self.refusals: Counter[str] = Counter()
        self.streams = 0

    def failures(self) -> dict[str, int]:
        """How many requests were answered with an error, by its code."""
        failures: Counter[str] = Counter()
        for (_, outcome), count in self.requests.items():
            if outcome != OK:
                failures[outcome] += count
        return dict(failures)
