"""How a container ended: what its engine says, and what the kernel says of its memory.

Engines do not say reliably that a job was killed for want of memory. So the counters of its cgroups are read while it
runs, and those of a group of ours around it when it has ended.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any, Final, NamedTuple

from dms_protocols.messages.job import JobExit
from dms_resources.machine.hardware.mounts import read_mounts
from dms_resources.machine.hardware.roots import HOST, largest, parse_amount, read_text

from ..command.processes import oom_kills

__all__ = ["GROUPS_FOLDER", "MemoryEvidence", "SurroundingGroup", "container_exit", "read_evidence"]

GROUPS_FOLDER: Final = "/dms-jobs"
"""The cgroup in which the surrounding groups of jobs are."""

_KILLED: Final = 137
# Kernel and engine use a little of what the limit says.
_NEARLY_ALL: Final = 0.99


class MemoryEvidence(NamedTuple):
    """What the kernel has counted of a job: processes killed for want of memory, and the most bytes it had at once."""

    oom_kills: int = 0
    peak: int = 0

    def __or__(self, other: object) -> MemoryEvidence:
        assert isinstance(other, MemoryEvidence)
        return MemoryEvidence(max(self.oom_kills, other.oom_kills), max(self.peak, other.peak))


def read_evidence(folder: Path | None) -> MemoryEvidence:
    """What the group with this folder has counted; nothing when it is gone. Blocks."""
    if folder is None:
        return MemoryEvidence()
    peaks = (parse_amount(read_text(folder / name)) for name in ("memory.max_usage_in_bytes", "memory.peak"))
    return MemoryEvidence(oom_kills([str(folder)]), largest(peaks))


def container_exit(state: dict[str, Any], evidence: MemoryEvidence, limit: int, disk_exceeded: bool) -> JobExit:
    """How a container ended, by its state of an inspection; `limit` is the memory of its lease in bytes."""
    code = int(state.get("ExitCode") or 0)
    if disk_exceeded:
        return JobExit(kind="evicted", message="it wrote more than the disk of its lease", oom_kills=evidence.oom_kills)
    wanted_more = bool(state.get("OOMKilled")) or evidence.oom_kills > 0 or evidence.peak >= limit * _NEARLY_ALL
    if code == _KILLED and wanted_more:
        return JobExit(kind="memory", signal=9, oom_kills=max(1, evidence.oom_kills))
    # A program may exit with any code itself: whether it was we who sent a signal, the caller knows.
    return JobExit(kind="code", code=code, oom_kills=evidence.oom_kills, message=str(state.get("Error") or "")[:512])


class SurroundingGroup:
    """A cgroup around that of one container, whose counters outlive it. Every method blocks."""

    def __init__(self, name: str) -> None:
        self.path = f"{GROUPS_FOLDER}/{name}"

    def make(self) -> bool:
        """Makes the group that counts memory; whether that can be done."""
        counting = self._counting()
        if counting is None:
            return False
        with contextlib.suppress(OSError):
            os.makedirs(counting, exist_ok=True)
            return True
        return False

    def evidence(self) -> MemoryEvidence:
        """What it has counted."""
        return read_evidence(self._counting())

    def is_empty(self) -> bool:
        """Whether no process is in it, in any tree."""
        return not any(
            read_text(Path(folder) / "cgroup.procs") for top in self._folders() for folder, _, _ in os.walk(top)
        )

    def remove(self) -> None:
        """Removes it from every tree; engines leave it behind in those that they made it in."""
        for top in self._folders():
            for folder, _, _ in os.walk(top, topdown=False):
                with contextlib.suppress(OSError):
                    os.rmdir(folder)

    def _counting(self) -> Path | None:
        return next((top for top, counts in self._trees() if counts), None)

    def _folders(self) -> list[Path]:
        return [top for top, _ in self._trees()]

    def _trees(self) -> list[tuple[Path, bool]]:
        """The folder of the group in each tree, and whether that tree counts memory."""
        mounts = [mount for mount in read_mounts(HOST) if mount.kind in ("cgroup", "cgroup2") and mount.root == "/"]
        unified = not any("memory" in mount.super_options for mount in mounts if mount.kind == "cgroup")
        return [
            (
                Path(mount.point) / self.path.lstrip("/"),
                unified if mount.kind == "cgroup2" else "memory" in mount.super_options,
            )
            for mount in mounts
        ]
