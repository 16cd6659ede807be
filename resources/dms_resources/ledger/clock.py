"""The two clocks of the ledger, and the rule that turns one into the other.

Rule: within one boot of the machine a deadline follows the *steady* clock (seconds since boot, suspend included), which
nobody can set, so a wall clock that jumps neither releases early nor holds for ever, also across a restart of this
process. Across a reboot only the wall clock is left: what remains of a commitment is its wall deadline less the time
now, but never more than its whole time to live.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Protocol

__all__ = ["Clock", "SystemClock", "remaining_after_restart"]


class Clock(Protocol):
    """Where the ledger takes its time from."""

    @property
    def boot_id(self) -> str:
        """Names the boot in which `steady` counts; readings of different boots cannot be compared."""

    def steady(self) -> float:
        """Seconds since boot; never set, never backwards."""

    def wall(self) -> float:
        """Unix time in seconds; may jump."""


class SystemClock:
    """The machine's own clocks."""

    def __init__(self, boot_id_file: Path = Path("/proc/sys/kernel/random/boot_id")) -> None:
        try:
            self._boot_id = boot_id_file.read_text().strip()
        except OSError:
            # Not Linux: no two processes can compare their steady clocks, so every restart counts as a reboot.
            self._boot_id = f"process-{time.time_ns()}"

    @property
    def boot_id(self) -> str:
        """The kernel's id of this boot."""
        return self._boot_id

    def steady(self) -> float:
        """CLOCK_BOOTTIME, which goes on while the machine is suspended; the monotonic clock elsewhere."""
        return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()

    def wall(self) -> float:
        """Unix time in seconds."""
        return time.time()


def remaining_after_restart(clock: Clock, *, due: float, boot_id: str, deadline: float, ttl: float) -> float:
    """How many seconds a stored lease has left, by the rule of this module; less than 0 where it ended meanwhile."""
    return min(ttl, due - clock.steady() if boot_id == clock.boot_id else deadline - clock.wall())
