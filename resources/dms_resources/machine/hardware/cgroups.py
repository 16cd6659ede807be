"""The limits of the cgroups around this process, from the innermost up to the visible root.

Version 2 has one tree, version 1 one for each controller, and a machine may have both. The limit of each enclosing
group applies, so all of them are read. Source: the kernel's admin-guide, cgroup-v1 and cgroup-v2.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from .mounts import Mount, read_mounts
from .roots import HOST, Reading, Roots, parse_amount, parse_cpu_list, read_text

__all__ = [
    "Cgroup",
    "Membership",
    "describe_group",
    "group_directories",
    "own_group",
    "parse_cpu_quota",
    "parse_memberships",
    "read_cgroups",
]

_CONTROLLERS = frozenset({"cpu", "cpuacct", "cpuset", "memory", "pids"})
_HIERARCHICAL_LIMIT = re.compile(r"^hierarchical_memory_limit (\d+)$", re.MULTILINE | re.ASCII)
# The limits in force: what is set, reduced by every enclosing group.
_CPUS = ("cpuset.cpus.effective", "cpuset.effective_cpus", "cpuset.cpus")
_NODES = ("cpuset.mems.effective", "cpuset.effective_mems", "cpuset.mems")
# Version 1 writes "no limit" as the largest page-aligned number.
_UNLIMITED = 2**62


class Membership(NamedTuple):
    """One line of `/proc/self/cgroup`: the controllers of a tree (none: version 2) and the group's path in it."""

    controllers: frozenset[str]
    path: str


class Cgroup(NamedTuple):
    """One group and its own limits: CPU in millicores, allowed CPUs, memory in bytes; None if it sets none.

    `nodes` are the NUMA nodes from which it may use memory. `processes` is how many processes and threads it may have.
    """

    name: str
    directory: Path
    cpu_quota: int | None = None
    cpus: frozenset[int] | None = None
    memory: int | None = None
    memory_limit: str = ""
    nodes: frozenset[int] | None = None
    processes: int | None = None


def describe_group(name: str) -> str:
    """The name of a group in a sentence. The limits of the visible root group are called the container's."""
    return name if name.strip("/.") else "the container"


def parse_memberships(text: str) -> tuple[Membership, ...]:
    """Read `/proc/self/cgroup`. Invalid lines are left out."""
    lines = [line.split(":", 2) for line in text.splitlines()]
    return tuple(
        Membership(frozenset(fields[1].split(",")) - {""}, fields[2])
        for fields in lines
        if len(fields) == 3 and fields[2].startswith("/")
    )


def read_cgroups(roots: Roots) -> Reading[tuple[Cgroup, ...]]:
    """Every group that encloses this process, innermost first, tree after tree."""
    mounts = read_mounts(roots)
    groups: list[Cgroup] = []
    problems: list[str] = []
    for membership in parse_memberships(read_text(roots.proc / "self" / "cgroup") or ""):
        if membership.controllers and not membership.controllers & _CONTROLLERS:
            continue
        if ".." in membership.path.split("/"):
            problems.append(f"cgroup {membership.path} lies outside what this process can see: its limits are unknown")
        groups += [_read_group(name, directory) for name, directory in _walk_up(membership, mounts, roots)]
    return Reading(tuple(groups), problems=tuple(problems))


def own_group(process: int, roots: Roots = HOST) -> str | None:
    """The cgroup of a process, as `/proc/PID/cgroup` names it. None if the process has ended or shares ours. Never
    raises.
    """
    found, ours = (_first_group(roots.proc / name / "cgroup") for name in (str(process), "self"))
    return None if found == ours else found


def _first_group(path: Path) -> str | None:
    # Version 2 has one line. Of version 1, the tree that counts the memory is used.
    memberships = parse_memberships(read_text(path) or "")
    ranked = sorted(memberships, key=lambda one: (bool(one.controllers), "memory" not in one.controllers))
    counted = [one for one in ranked if "memory" in one.controllers] or ranked
    return counted[0].path if counted else None


def group_directories(name: str, roots: Roots) -> tuple[Path, ...]:
    """The folders of one group, named as in `/proc/PID/cgroup`, in every tree that counts CPU time or memory."""
    mounts = read_mounts(roots)
    trees = (frozenset[str](), frozenset({"cpuacct"}), frozenset({"memory"}))
    walks = [next(_walk_up(Membership(tree, name), mounts, roots), None) for tree in trees]
    return tuple(folder for found, folder in filter(None, walks) if found == name)


def _walk_up(membership: Membership, mounts: tuple[Mount, ...], roots: Roots) -> Iterator[tuple[str, Path]]:
    """The name and the folder of each group from `membership` up to the root of its mount."""
    root, point = _mount_of(membership, mounts)
    top = roots.locate(point)
    if top is None:
        return
    # Without a cgroup namespace a container sees its own group mounted, but with the host's name.
    seen = membership.path == root or membership.path.startswith(root.rstrip("/") + "/")
    parts = [part for part in membership.path[len(root) :].split("/") if part] if seen else []
    if ".." in parts:
        parts = []
    for depth in range(len(parts), -1, -1):
        yield "/" + "/".join([*root.strip("/").split("/"), *parts[:depth]]).strip("/"), top.joinpath(*parts[:depth])


def _mount_of(membership: Membership, mounts: tuple[Mount, ...]) -> tuple[str, str]:
    """The root and the mount point of a membership's tree."""
    if membership.controllers:
        fitting = [m for m in mounts if m.kind == "cgroup" and membership.controllers <= m.super_options]
        usual = "/sys/fs/cgroup/" + ",".join(sorted(membership.controllers))
    else:
        fitting = [m for m in mounts if m.kind == "cgroup2"]
        usual = "/sys/fs/cgroup"
    # The same tree may be mounted more than once. The mount that shows this process's group is preferred.
    fitting.sort(key=lambda mount: not (membership.path + "/").startswith(mount.root.rstrip("/") + "/"))
    return (fitting[0].root, fitting[0].point) if fitting else ("/", usual)


def _read_group(name: str, directory: Path) -> Cgroup:
    memory, memory_limit = _read_memory_limit(directory)
    return Cgroup(
        name=name,
        directory=directory,
        cpu_quota=_read_cpu_quota(directory),
        cpus=_read_list(directory, _CPUS),
        memory=memory,
        memory_limit=memory_limit,
        nodes=_read_list(directory, _NODES),
        processes=parse_amount(read_text(directory / "pids.max")),
    )


def _read_cpu_quota(directory: Path) -> int | None:
    version_2 = read_text(directory / "cpu.max")
    if version_2 is not None:
        return parse_cpu_quota(version_2)
    quota = read_text(directory / "cpu.cfs_quota_us")
    period = read_text(directory / "cpu.cfs_period_us")
    return parse_cpu_quota(f"{quota} {period}")


def parse_cpu_quota(text: str) -> int | None:
    """Millicores from "QUOTA PERIOD" in microseconds; None for "max 100000", for -1 and for invalid text."""
    quota, period = [parse_amount(field) for field in (*text.split()[:2], "", "")][:2]
    if quota is None or period is None or quota == 0 or period == 0:
        return None
    return max(1, quota * 1000 // period)


def _read_list(directory: Path, names: tuple[str, ...]) -> frozenset[int] | None:
    found = (parse_cpu_list(read_text(directory / name)) for name in names)
    return next((numbers for numbers in found if numbers is not None), None)


def _read_memory_limit(directory: Path) -> tuple[int | None, str]:
    """The lowest of a group's memory limits, and its name."""
    limits = {name: parse_amount(read_text(directory / name)) for name in _MEMORY_LIMITS}
    # Version 1 also reports the limits of groups that a container does not see.
    enclosing = _HIERARCHICAL_LIMIT.search(read_text(directory / "memory.stat") or "")
    limits["hierarchical_memory_limit"] = parse_amount(enclosing[1]) if enclosing else None
    known = [(size, name) for name, size in limits.items() if size is not None and size < _UNLIMITED]
    return min(known, key=lambda limit: limit[0], default=(None, ""))


_MEMORY_LIMITS = ("memory.max", "memory.high", "memory.limit_in_bytes")
