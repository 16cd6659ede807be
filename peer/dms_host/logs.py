"""Logs that peers cannot flood. The library's own reports are reduced to one line each.

What breaks: py-libp2p reports ordinary disconnects and failed negotiations as errors of several lines, some with a
traceback. `SwarmConn` calls `logging.debug()`, which installs a handler on stderr. A peer could fill a disk by
connecting and leaving.
Measure: `route_library_logs` adds one handler to the logger `libp2p`. It passes the first line of each report, rate
limited, to `dms_peer.libp2p` at INFO or below. LIBP2P_DEBUG, the library's own switch, turns it off. When file
descriptors run out, trio reports it ten times a second with a traceback; one line a minute remains.
Upstream: no upstream report found (November 2026).
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable

__all__ = ["RateLimiter", "log_limited", "route_library_logs"]

LIBRARY = "libp2p"
ACCEPTING = "trio.serve_listeners"
MAX_LINE = 200
# Lines at once, and per second after that.
BURST = 20
PER_SECOND = 1.0


class RateLimiter:
    """A token bucket. It counts refusals, so that the next line in a log can say how many lines were left out."""

    __slots__ = ("_burst", "_clock", "_per_second", "_tokens", "_updated", "swallowed")

    def __init__(
        self, burst: float = BURST, per_second: float = PER_SECOND, clock: Callable[[], float] | None = None
    ) -> None:
        self._burst = float(burst)
        self._per_second = per_second
        self._clock = clock or time.monotonic
        self._tokens = float(burst)
        self._updated = self._clock()
        self.swallowed = 0

    def admit(self, cost: float = 1.0) -> bool:
        """Take `cost` tokens if there are that many. Returns whether there were."""
        self._refill()
        if self._tokens < cost:
            self.swallowed += 1
            return False
        self._tokens -= cost
        return True

    def delay(self, cost: float = 1.0) -> float:
        """Take `cost` tokens in any case. Returns the seconds until they would have been available."""
        self._refill()
        self._tokens -= cost
        return max(0.0, -self._tokens / self._per_second)

    def _refill(self) -> None:
        now = self._clock()
        self._tokens = min(self._burst, self._tokens + (now - self._updated) * self._per_second)
        self._updated = now

    @property
    def rested(self) -> bool:
        """Whether the bucket is full again."""
        return self._tokens + (self._clock() - self._updated) * self._per_second >= self._burst


def log_limited(logger: logging.Logger, limiter: RateLimiter, level: int, message: str, *args: object) -> None:
    """Log one line unless the limiter is exhausted. The next line that passes says how many were left out."""
    if not logger.isEnabledFor(level) or not limiter.admit():
        return
    if limiter.swallowed:
        logger.log(level, "%d similar lines left out", limiter.swallowed)
        limiter.swallowed = 0
    logger.log(level, message, *args)


class _FirstLines(logging.Handler):
    """Passes the first line of each record to our own logger, never above INFO and never with a traceback."""

    def __init__(self, target: logging.Logger) -> None:
        super().__init__()
        self._target = target
        self._limiter = RateLimiter()

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage().partition("\n")[0][:MAX_LINE]
        # The library reports as errors what a public peer sees every minute.
        level = min(record.levelno, logging.INFO)
        log_limited(self._target, self._limiter, level, "%s: %s", record.name, text)


class _OncePerMinute(logging.Filter):
    """Passes one line a minute, without a traceback, of what trio reports ten times a second while `accept` fails."""

    def __init__(self) -> None:
        super().__init__()
        self._limiter = RateLimiter(1, 1 / 60)

    def filter(self, record: logging.LogRecord) -> bool:
        if not self._limiter.admit():
            return False
        reason = record.args[0] if isinstance(record.args, tuple) and record.args else "an error"
        record.msg = "no connection can be accepted (%s): new ones wait; close programs or raise the limit (ulimit -n)"
        record.args, record.exc_info, record.exc_text = (reason,), None, None
        return True


def route_library_logs(level: int = logging.WARNING) -> None:
    """Send what libp2p logs at `level` and above to the logger `dms_peer.libp2p`, and limit what trio logs.

    May be called again.
    """
    accepting = logging.getLogger(ACCEPTING)
    if not any(isinstance(one, _OncePerMinute) for one in accepting.filters):
        accepting.addFilter(_OncePerMinute())
    root = logging.getLogger()
    if not root.handlers:
        # Without a handler, logging.debug() and similar functions, which the library calls, would install one that
        # prints to stderr.
        root.addHandler(logging.NullHandler())
    library = logging.getLogger(LIBRARY)
    if os.environ.get("LIBP2P_DEBUG") or any(isinstance(handler, _FirstLines) for handler in library.handlers):
        return
    library.addHandler(_FirstLines(logging.getLogger("dms_peer.libp2p")))
    library.setLevel(level)
    library.propagate = False
