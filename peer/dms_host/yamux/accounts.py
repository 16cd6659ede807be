"""Limits the cost of frames without content, for all connections of one address together.

What breaks: 24 connections that send empty frames, 1 MB/s in total, are 80,000 frames a second. Each frame is valid and
none ever ends a connection, but handling them leaves an honest peer one answer in 16 s.
Measure: every frame without content is charged: first to an allowance of its connection, which data restores, then to
the account of its address, which all connections from there share. A connection that cannot pay is dropped, so that
opening another one gains an attacker a few dozen frames; new connections from such an address are accepted slowly for a
minute. Frames with content are paced: above a rate, the connections of an address are read more slowly.
Upstream: no upstream report found (November 2026).
"""

from __future__ import annotations

from typing import Final

import trio

from ..bounded import BoundedDict
from ..limits import HostLimits
from ..logs import RateLimiter

__all__ = ["Accounts", "AddressAccount", "ConnectionAccount"]

# Frames without content that one connection may send before its address is charged.
OWN_ALLOWANCE: Final = 64
# Bytes of data that restore one such frame. The shortest request is longer. A shorter frame is charged.
BYTES_PER_FRAME: Final = 8
# Frames with less data than this are paced.
SMALL_FRAME: Final = 64
# The cost of a new stream, in small frames: it needs a task and a negotiation.
STREAM_PACE: Final = 20
# The charge for a new stream, in frames. Its negotiation and first request restore that.
STREAM_COST: Final = 4
# Seconds for which an address is watched after one of its connections was dropped.
PROBATION: Final = 60.0
# New connections from such an address: at once, and per second.
PROBATION_BURST: Final = 4
PROBATION_RATE: Final = 2.0
# The number of addresses that are remembered. The one that has been silent for longest is forgotten first.
MAX_ADDRESSES: Final = 1024


class AddressAccount:
    """The state that all connections of one address share."""

    __slots__ = ("_probation", "_probation_ends", "frames", "pace")

    def __init__(self, limits: HostLimits) -> None:
        # The clock that trio's waiting uses.
        now = trio.current_time
        self.frames = RateLimiter(limits.max_empty_frames, limits.empty_frames_per_second, now)
        self.pace = RateLimiter(limits.small_frames_burst, limits.small_frames_per_second, now)
        self._probation: RateLimiter | None = None
        self._probation_ends = 0.0

    def condemn(self) -> bool:
        """Accept new connections slowly from now on. Returns whether this is new, and so worth a line in the log."""
        now = trio.current_time()
        news, self._probation_ends = now >= self._probation_ends, now + PROBATION
        if news:
            self._probation = RateLimiter(PROBATION_BURST, PROBATION_RATE, trio.current_time)
        return news

    def admits_connection(self) -> bool:
        """Whether a new connection from this address is accepted now."""
        if self._probation is None or trio.current_time() >= self._probation_ends:
            return True
        return self._probation.admit()


class ConnectionAccount:
    """What one connection may send without content."""

    __slots__ = ("_left", "address")

    def __init__(self, address: AddressAccount) -> None:
        self.address = address
        self._left = OWN_ALLOWANCE

    def charge(self, frames: int = 1) -> bool:
        """Charge frames without content. Returns whether they could be paid."""
        if self._left >= frames:
            self._left -= frames
            return True
        return self.address.frames.admit(frames)

    def earn(self, size: int) -> None:
        """Credit `size` bytes of data for an open stream."""
        self._left = min(OWN_ALLOWANCE, self._left + size // BYTES_PER_FRAME)


class Accounts:
    """The accounts of one host, by the group that counts as one machine (see `address_group`)."""

    def __init__(self, limits: HostLimits) -> None:
        self._limits = limits
        self._by_address: BoundedDict[str, AddressAccount] = BoundedDict(MAX_ADDRESSES)

    def of(self, group: str) -> AddressAccount:
        """The account of an address; a new one if it has none."""
        account = self._by_address.get(group)
        if account is None:
            account = self._by_address[group] = AddressAccount(self._limits)
        else:
            self._by_address.move_to_end(group)
        return account
