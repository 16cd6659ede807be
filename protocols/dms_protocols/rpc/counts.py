"""Counters of a peer's own work: plain numbers in memory, which the metrics show.

Counting costs one addition for each request. All keys come from this side's own code (names of operations, codes of
errors), so that no peer can make a table grow.
"""

from __future__ import annotations

from collections import Counter

__all__ = ["OK", "UNREADABLE", "ServiceCounts"]

OK = "ok"
"""The outcome of a request that succeeded. Every other outcome is the code of an error."""

UNREADABLE = "unreadable"
"""The name of the operation if a frame names no known operation."""


class ServiceCounts:
    """Counters since the peer started.

    `requests` are counted by operation and outcome, `bids` when they are signed, and `refusals` of nodes by their code.
    """

    def __init__(self) -> None:
        self.requests: Counter[tuple[str, str]] = Counter()
        self.bids = 0
        self.refusals: Counter[str] = Counter()
        self.streams = 0

    def failures(self) -> dict[str, int]:
        """The number of requests that were answered with an error, by its code."""
        failures: Counter[str] = Counter()
        for (_, outcome), count in self.requests.items():
            if outcome != OK:
                failures[outcome] += count
        return dict(failures)
