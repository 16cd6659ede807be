"""Which processes and cgroups belong to the jobs of leases, and the measurement of their use."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import TYPE_CHECKING

import psutil

from ..machine.hardware.cgroups import own_group
from .audit import runs, started_after_boot
from .jobs import MOST_PROCESSES
from .leases import Lease
from .ledger import Ledger

if TYPE_CHECKING:
    from ..machine.usage import UsageMonitor

__all__ = ["JobUsageFollower", "start_times"]


class JobUsageFollower:
    """Measures the use of each job whose processes have a cgroup of their own, while the job is there."""

    def __init__(self, ledger: Ledger, usage_monitor: UsageMonitor | None) -> None:
        self._ledger = ledger
        self._usage_monitor = usage_monitor

    async def follow(self, leases: Iterable[Lease]) -> None:
        """Measure the use of the jobs of these leases from now on."""
        leases = tuple(leases)
        groups: dict[str, str | None] = {lease.lease_id: lease.cgroup for lease in leases if lease.cgroup}
        known = {lease.lease_id: lease.processes[0] for lease in leases if lease.processes and not lease.cgroup}
        if self._usage_monitor is None or not (known or groups):
            return
        await self._ledger.work(lambda: groups.update((key, _group_of(process)) for key, process in known.items()))
        for lease_id, group in groups.items():
            # It may have been released while its group was looked up.
            if group is not None and lease_id in self._ledger.book.leases:
                self._usage_monitor.follow(lease_id, group)

    def unfollow(self, lease_id: str) -> None:
        """Measure the use of this lease no more, unless its job still runs."""
        record = self._ledger.book.leases.get(lease_id)
        if self._usage_monitor is not None and not (record and record.lease.runs_job):
            self._usage_monitor.unfollow(lease_id)


def start_times(processes: Iterable[int]) -> tuple[tuple[int, float], ...]:
    """The processes, each with its start in seconds after boot, 0 if that is unknown. Blocks for microseconds each.

    Not more than one above `MOST_PROCESSES` are read, which is too many for a lease.
    """
    return tuple(_started(islice(processes, MOST_PROCESSES + 1)))


def _group_of(process: tuple[int, float]) -> str | None:
    # After a reboot another process may have the number.
    return own_group(process[0]) if runs(process) else None


def _started(processes: Iterable[int]) -> Iterable[tuple[int, float]]:
    # The start time distinguishes a process from a later one with the same number.
    for process in processes:
        try:
            yield process, started_after_boot(process)
        except (psutil.Error, ValueError, OverflowError):
            yield process, 0.0
