"""The two clocks of the ledger, and the rule that converts between them.

Rule: within one boot of the machine a deadline follows the *steady* clock (seconds since boot, including suspend), also
across a restart of this process. Nobody can set this clock, so that a jump of the wall clock neither ends a lease early
nor keeps it for ever. Across a reboot only the wall clock is left: the remaining time of a commitment is its wall
deadline minus the current time, but never more than its whole time to live.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Protocol

__all__ = ["Clock", "SystemClock", "remaining_after_restart"]


class Clock(Protocol):
    """The source of time of the ledger."""

    @property
    def boot_id(self) -> str:
        """The id of the boot to which `steady` belongs. Readings of different boots cannot be compared."""

    def steady(self) -> float:
        """Seconds since boot. It is never set and never goes backwards."""

    def wall(self) -> float:
        """Unix time in seconds. It may jump."""


class SystemClock:
    """The machine's own clocks."""

    def __init__(self, boot_id_file: Path = Path("/proc/sys/kernel/random/boot_id")) -> None:
        try:
            self._boot_id = boot_id_file.read_text().strip()
        except OSError:
            # Not Linux: two processes cannot compare their steady clocks, so that every restart counts as a reboot.
            self._boot_id = f"process-{time.time_ns()}"

    @property
    def boot_id(self) -> str:
        """The kernel's id of this boot."""
        return self._boot_id

    def steady(self) -> float:
        """CLOCK_BOOTTIME, which continues while the machine is suspended; the monotonic clock on other systems."""
        return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()

    def wall(self) -> float:
        """Unix time in seconds."""
        return time.time()


def remaining_after_restart(clock: Clock, *, due: float, boot_id: str, deadline: float, ttl: float) -> float:
    """The seconds that a stored lease has left, by the rule of this module. Negative if it has ended meanwhile."""
    return min(ttl, due - clock.steady() if boot_id == clock.boot_id else deadline - clock.wall())
