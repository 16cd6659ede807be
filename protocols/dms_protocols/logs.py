"""Log lines that a peer can cause, bounded in number."""

from __future__ import annotations

import logging
import time

__all__ = ["LimitedLog"]


class LimitedLog:
    """Passes at most `lines` lines per `period` seconds on to a logger and counts what it held back."""

    def __init__(self, logger: logging.Logger, *, lines: int = 20, period: float = 60.0) -> None:
        self._logger = logger
        self._lines = lines
        self._period = period
        self._since = -period
        self._passed = 0
        self._held_back = 0

    def error(self, message: str, *values: object, now: float | None = None) -> None:
        """Log one line at level ERROR; `now` (seconds, monotonic) is for tests."""
        moment = time.monotonic() if now is None else now
        if moment - self._since >= self._period:
            if self._held_back:
                self._logger.error("%d more lines were held back", self._held_back)
            self._since, self._passed, self._held_back = moment, 0, 0
        if self._passed >= self._lines:
            self._held_back += 1
            return
        self._passed += 1
        self._logger.error(message, *values)
