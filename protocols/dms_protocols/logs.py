"""Limits the number of log lines that a peer can cause."""

from __future__ import annotations

import logging
import time

from .token_bucket import TokenBucket

__all__ = ["LimitedLog"]


class LimitedLog:
    """Passes at most `lines` lines at once, and on average `lines` per `period` seconds. It counts the other lines.

    Before the next line that passes, it logs how many lines were dropped.
    """

    def __init__(self, logger: logging.Logger, *, lines: int = 20, period: float = 60.0) -> None:
        self._logger = logger
        self._lines = TokenBucket(lines / period, lines, 0.0)
        self._held_back = 0

    def error(self, message: str, *values: object, now: float | None = None) -> None:
        """Log one line at level ERROR. `now` (seconds, monotonic) is for tests."""
        self.log(logging.ERROR, message, *values, now=now)

    def log(self, level: int, message: str, *values: object, now: float | None = None) -> None:
        """Log one line at `level`. `now` (seconds, monotonic) is for tests."""
        if not self._logger.isEnabledFor(level):
            return
        if not self._lines.take(time.monotonic() if now is None else now):
            self._held_back += 1
            return
        if self._held_back:
            self._logger.log(level, "%d more lines were held back", self._held_back)
            self._held_back = 0
        self._logger.log(level, message, *values)
