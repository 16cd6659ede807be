"""The cgroups of a job that is a process: made below a folder that is ours, with the limits of the job's lease.

A machine has one tree of groups (version 2), one for each controller (version 1), or both. The job gets a group in each
tree that can end it or limit it. Where none can be made, its processes are found by descent and by a mark.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Final, NamedTuple

from dms_resources.components import Resources
from dms_resources.machine.hardware.mounts import read_mounts
from dms_resources.machine.hardware.roots import HOST, read_text

from ..process_groups import process_groups

__all__ = ["GroupParents", "JobGroups", "find_parents", "make_groups", "remove_groups"]

_FOLDER: Final = "dms-jobs"
_LIMITS: Final = ("memory", "cpu", "pids")
_PERIOD: Final = 100_000


class GroupParents(NamedTuple):
    """The folders below which the groups of jobs are made, by controller; "" is that of version 2.

    `limits` are the controllers that work in each.
    """

    folders: dict[str, Path]
    limits: dict[str, frozenset[str]]

    @property
    def missing(self) -> list[str]:
        """The controllers that limit nothing."""
        return sorted(set(_LIMITS).difference(*self.limits.values()))


class JobGroups(NamedTuple):
    """The folders of one job's groups; `name` is that of the group which counts its memory, as in `/proc/PID/cgroup`,
    "" where none does."""

    folders: tuple[str, ...]
    name: str


def find_parents(chosen: str) -> GroupParents:
    """Where groups can be made: below `chosen` if it is given, else below the peer's own groups. Blocks."""
    if chosen:
        folder = Path(chosen) / _FOLDER
        folders = {"": folder} if _make(folder) else {}
    else:
        folders = {name: folder for name, parent in _own_groups().items() if _make(folder := parent / _FOLDER)}
    limits = {name: _delegated(folder) if not name else {name} & set(_LIMITS) for name, folder in folders.items()}
    return GroupParents(folders, {name: frozenset(controllers) for name, controllers in limits.items()})


def _own_groups() -> dict[str, Path]:
    groups = process_groups("self")
    return {name: folder if name else _delegating(folder) for name, folder in groups.items()}


def _delegating(own: Path) -> Path:
    """The group below which controllers can be enabled: a group with processes in it cannot hand them on.

    systemd marks groups that it delegates. Where the peer is in a group of its own below such a one, that is taken.
    """
    for attribute in ("user.delegate", "trusted.delegate"):
        with contextlib.suppress(OSError):
            if os.getxattr(own.parent, attribute) == b"1":
                return own.parent
    return own


def _make(folder: Path) -> bool:
    try:
        folder.mkdir(exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK)


def _delegated(folder: Path) -> set[str]:
    """The controllers that groups in this folder of version 2 have, after asking for them."""
    for group in (folder.parent, folder):
        for name in _LIMITS:
            with contextlib.suppress(OSError):
                (group / "cgroup.subtree_control").write_text(f"+{name}")
    return set((read_text(folder / "cgroup.subtree_control") or "").split()) & set(_LIMITS)


def make_groups(parents: GroupParents, job: str, resources: Resources, processes: int, limit: bool) -> JobGroups:
    """Makes the groups of a job, or returns those that are there, limited as its lease says. Blocks.

    Raises OSError where a group or a limit cannot be set.
    """
    folders: list[str] = []
    for name, parent in parents.folders.items():
        # cpu and cpuacct are one tree on most machines, under two names.
        folder = os.path.realpath(parent / job)
        os.makedirs(folder, exist_ok=True)
        if folder not in folders:
            folders.append(folder)
        if limit:
            _limit(Path(folder), parents.limits[name], resources, processes)
    counted = "memory" if "memory" in parents.folders else ""
    name = _name_of(parents.folders[counted] / job, counted) if counted in parents.folders else ""
    return JobGroups(tuple(folders), name)


def _limit(folder: Path, controllers: frozenset[str], resources: Resources, processes: int) -> None:
    version_2 = (folder / "cgroup.controllers").exists()
    quota = max(1000, resources.cpu.cores.millicores * _PERIOD // 1000)
    memory = resources.ram.size
    if "memory" in controllers:
        if version_2:
            _set(folder, "memory.max", memory)
            _set_if_there(folder, "memory.swap.max", 0)
        else:
            _set(folder, "memory.limit_in_bytes", memory)
            _set_if_there(folder, "memory.memsw.limit_in_bytes", memory)
    if "cpu" in controllers:
        if version_2:
            _set(folder, "cpu.max", f"{quota} {_PERIOD}")
        else:
            _set(folder, "cpu.cfs_period_us", _PERIOD)
            _set(folder, "cpu.cfs_quota_us", quota)
    if "pids" in controllers:
        _set(folder, "pids.max", processes)


def _set(folder: Path, name: str, value: int | str) -> None:
    (folder / name).write_text(str(value))


def _set_if_there(folder: Path, name: str, value: int) -> None:
    # A kernel without accounting of swap has no such file.
    if (folder / name).exists():
        _set(folder, name, value)


def _name_of(folder: Path, controller: str) -> str:
    """The name of a group as `/proc/PID/cgroup` shows it."""
    for mount in read_mounts(HOST):
        fits = mount.kind == "cgroup" and controller in mount.super_options if controller else mount.kind == "cgroup2"
        if fits and folder.is_relative_to(mount.point):
            return "/" + f"{mount.root}/{folder.relative_to(mount.point)}".strip("/")
    return ""


def remove_groups(folders: tuple[str, ...]) -> bool:
    """Removes the groups of a job, with those that the job made in them; whether they are gone. Blocks."""
    for top in folders:
        for folder, _, _ in os.walk(top, topdown=False):
            with contextlib.suppress(OSError):
                os.rmdir(folder)
    return not any(os.path.exists(folder) for folder in folders)
