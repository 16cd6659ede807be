"""The progress of a search, for a user interface."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final, TypeAlias

import trio

from dms_protocols.messages.bid import Refusal

from .reports import SearchProgress

__all__ = ["OnProgress", "ProgressLog", "SearchProgress"]


# Codes come from other peers, so the number of different codes is limited.
_MOST_CODES: Final = 32

OnProgress: TypeAlias = Callable[[SearchProgress], None]
"""Is called with every change. Must not wait and must not raise."""


class ProgressLog:
    """Counts the events of one search or reservation, and reports them."""

    def __init__(self, tell: OnProgress | None = None) -> None:
        self._tell = tell
        self._started = trio.current_time()
        self._refused: Counter[str] = Counter()
        self._failed: Counter[str] = Counter()
        self._stage = "searching"
        self._source = ""
        self._asked = self._answered = self._in_flight = self._skipped = self._bids = self._attempts = 0

    def snapshot(self) -> SearchProgress:
        """The progress so far."""
        return SearchProgress(
            stage=self._stage,
            source=self._source,
            asked=self._asked,
            answered=self._answered,
            in_flight=self._in_flight,
            skipped=self._skipped,
            bids=self._bids,
            attempts=self._attempts,
            refused=dict(self._refused),
            failed=dict(self._failed),
            elapsed=trio.current_time() - self._started,
        )

    def at_stage(self, stage: str, *, attempt: bool = False) -> None:
        """Note that another stage begins."""
        self._stage = stage
        self._attempts += attempt
        self._changed()

    def at_source(self, name: str) -> None:
        """Note that the next peers come from this source."""
        self._source = name
        self._changed()

    def skipped(self) -> None:
        """Note that a peer was not queried because it is known to be full."""
        self._skipped += 1
        self._changed()

    @contextmanager
    def asking(self) -> Iterator[None]:
        """Count a peer as being queried while the block runs."""
        self._asked += 1
        self._in_flight += 1
        self._changed()
        try:
            yield
        finally:
            self._in_flight -= 1

    def answered(self, bids: int, refusals: Sequence[Refusal]) -> None:
        """Note that a peer answered with this number of bids, and with these refusals."""
        self._answered += 1
        self._bids += bids
        for refusal in refusals:
            _count(self._refused, refusal.code)
        self._changed()

    def failed(self, code: str) -> None:
        """Note that a peer did not answer, or answered with an error."""
        _count(self._failed, code)
        self._changed()

    def _changed(self) -> None:
        if self._tell is not None:
            self._tell(self.snapshot())


def _count(counts: Counter[str], code: str) -> None:
    code = code[:64]
    counts[code if code in counts or len(counts) < _MOST_CODES else "others"] += 1
