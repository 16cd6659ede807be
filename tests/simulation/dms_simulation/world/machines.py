"""The machine of a simulated provider: clocks that are set, boots, and a disk that is slow, fails and tears writes."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import trio

from dms_resources.errors import StorageError

from ..scheduling import EPOCH

__all__ = ["MOST_SKEW", "BootClock", "Disk", "MachineTime"]

MOST_SKEW = 1200.0
"""The most seconds by which a wall clock is wrong: two jumps together stay below the hour for which ended leases are
known.
"""


@dataclass
class MachineTime:
    """The wall clock of one machine, `skew` seconds ahead of the true time. It may jump."""

    skew: float = 0.0

    def wall(self) -> float:
        """Unix time in seconds, by this machine's clock."""
        return EPOCH + self.skew + trio.current_time()


class BootClock:
    """The ledger's clock within one boot: the steady clock counts from the boot, whatever the wall clock does."""

    def __init__(self, time: MachineTime, boot_id: str) -> None:
        self.boot_id = boot_id
        self.wall = time.wall
        self._booted = trio.current_time() - 1.0
        self._ticks = 0.0

    def steady(self) -> float:
        """Seconds since the boot. A little time passes with every reading, as in real programs."""
        self._ticks += 1e-10
        return trio.current_time() - self._booted + self._ticks

    def moment(self, steady: float) -> float:
        """The event loop's time at a reading of this clock."""
        return self._booted + steady


class Disk:
    """The ledger's worker in virtual time. Each call takes time before and after it is done.

    `failing` makes calls raise StorageError, some of them after they were done nevertheless. Once `dead`, nothing
    reaches the file any more and nothing is reported. `tear` is called in the middle of the next write that makes the
    log longer, with the log's length at that time.
    """

    def __init__(self, path: Path, rng: random.Random, latency: float) -> None:
        self.path = path
        self.failing = False
        self.dead = False
        self.tear: Callable[[int], None] | None = None
        self._rng = rng
        self._latency = latency

    async def work(self, call: Callable[[], None]) -> None:
        """Run a blocking call of the disk. Raises what it raises, or StorageError."""
        await self._take_time()
        self._refuse(0.7)
        before = self._log_bytes()
        call()
        after = self._log_bytes()
        if self.tear is not None and 0 < before < after:
            tear, self.tear = self.tear, None
            tear(self._rng.randint(before, after))
        self._refuse(1.0)
        await self._take_time()
        self._refuse(1.0)

    def copy(self, folder: Path, log_bytes: int | None = None) -> Path:
        """What a killed process leaves, in another folder; of the log only this many bytes."""
        folder.mkdir(parents=True)
        target = folder / self.path.name
        for suffix in ("", "-wal", ".new"):
            source = self.path.with_name(self.path.name + suffix)
            if source.exists():
                shutil.copyfile(source, target.with_name(target.name + suffix))
        if log_bytes is not None:
            os.truncate(target.with_name(target.name + "-wal"), log_bytes)
        return target

    async def _take_time(self) -> None:
        if self._latency:
            await trio.sleep(self._rng.random() * self._latency)
        else:
            await trio.lowlevel.checkpoint()

    def _refuse(self, chance: float) -> None:
        if self.dead or (self.failing and self._rng.random() < chance):
            raise StorageError("the simulated disk fails")

    def _log_bytes(self) -> int:
        try:
            return self.path.with_name(self.path.name + "-wal").stat().st_size
        except FileNotFoundError:
            return 0
