"""A rate with a burst."""

from __future__ import annotations

__all__ = ["TokenBucket"]


class TokenBucket:
    """Tokens that are added at `rate` per second, up to `burst`. The bucket is full at first.

    It reads no clock: the caller passes the time (`now`, in seconds, monotonic).
    """

    __slots__ = ("_at", "_burst", "_level", "_rate")

    def __init__(self, rate: float, burst: float, now: float) -> None:
        self._rate = rate
        self._burst = burst
        self._level = burst
        self._at = now

    def take(self, now: float, count: int = 1) -> bool:
        """Take `count` tokens, or none if there are fewer. Returns whether they were taken."""
        self._fill(now)
        if self._level < count:
            return False
        self._level -= count
        return True

    def wait(self, now: float) -> float:
        """The seconds until one token is available."""
        self._fill(now)
        return max(0.0, 1 - self._level) / self._rate

    def give_back(self, count: int) -> None:
        """Put back tokens that were not needed."""
        self._level = min(self._burst, self._level + count)

    def full_at(self) -> float:
        """The time at which the bucket will be full again if no token is taken."""
        return self._at + (self._burst - self._level) / self._rate

    def _fill(self, now: float) -> None:
        if now > self._at:
            self._level = min(self._burst, self._level + (now - self._at) * self._rate)
            self._at = now
