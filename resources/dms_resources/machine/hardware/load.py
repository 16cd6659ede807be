"""The current load of the machine: CPU time, memory and disk in use, within what this process may use."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from .cgroups import Cgroup, group_directories, read_cgroups
from .cpu import allowed_cpus, are_renumbered, parse_affinity
from .disk import existing_directory, read_space
from .mounts import is_lxcfs, read_mounts
from .ram import free_on_node, parse_meminfo, read_ram_files, restricted_nodes
from .roots import Roots, parse_amount, read_text

__all__ = [
    "CPUTimes",
    "CgroupUsage",
    "Domain",
    "cgroup_usage",
    "cores_in_use",
    "free_disk",
    "free_ram",
    "parse_stat",
    "quota_left",
    "read_domain",
    "read_times",
]

_STAT_LINE = re.compile(r"^cpu([0-9]{1,5}) ([0-9 ]+)$", re.MULTILINE)


_ARC = {name: re.compile(rf"^{name} +[0-9]+ +([0-9]{{1,18}})$", re.MULTILINE) for name in ("size", "c_min")}


class CgroupUsage(NamedTuple):
    """What a group has used: CPU time in microseconds since it was created, and the bytes of RAM that it holds now.

    None if the group does not report it.
    """

    cpu_time: int | None = None
    ram: int | None = None


class Domain(NamedTuple):
    """The limits of this process: the CPUs on which it may run, and the groups that set a quota or a memory limit.

    `folders` are the folders of each group, by its name.
    """

    cpus: frozenset[int]
    groups: tuple[Cgroup, ...]
    folders: Mapping[str, tuple[Path, ...]]
    nodes: frozenset[int] | None = None


class CPUTimes(NamedTuple):
    """Counters at one instant: total and busy ticks of the allowed CPUs, microseconds of each group."""

    total: int = 0
    busy: int = 0
    groups: Mapping[str, int] = {}
    taken_at: float = 0.0


def cgroup_usage(name: str, roots: Roots) -> CgroupUsage:
    """What the group of this name (as in `/proc/PID/cgroup`) has used. Never raises."""
    return _read_usage(group_directories(name, roots))


def _read_usage(folders: tuple[Path, ...]) -> CgroupUsage:
    cpu_time = next((time for folder in folders if (time := _read_cpu_time(folder)) is not None), None)
    ram = next((size for folder in folders if (size := _read_ram(folder)) is not None), None)
    return CgroupUsage(cpu_time, ram)


def _read_cpu_time(folder: Path) -> int | None:
    nanoseconds = parse_amount(read_text(folder / "cpuacct.usage"))
    if nanoseconds is not None:
        return nanoseconds // 1000
    return _field(read_text(folder / "cpu.stat"), "usage_usec")


def _read_ram(folder: Path) -> int | None:
    """The bytes that the kernel cannot reclaim: page cache and reclaimable slabs do not count."""
    used = parse_amount(read_text(folder / "memory.current") or read_text(folder / "memory.usage_in_bytes"))
    if used is None:
        return None
    statistics = read_text(folder / "memory.stat")
    # Version 1 counts the groups below under separate names.
    total = "" if _field(statistics, "total_inactive_file") is None else "total_"
    caches = (f"{total}inactive_file", f"{total}active_file", "slab_reclaimable")
    return max(0, used - sum(_field(statistics, name) or 0 for name in caches))


def _field(text: str | None, name: str) -> int | None:
    found = re.search(rf"^{name} ([0-9]{{1,20}})$", text or "", re.MULTILINE)
    return parse_amount(found[1]) if found else None


def read_domain(roots: Roots) -> Domain:
    """Read the limits of this process, once for many readings of the load."""
    enclosing = read_cgroups(roots).value
    status = read_text(roots.proc / "self" / "status") or ""
    online = frozenset(parse_stat(read_text(roots.proc / "stat") or ""))
    cpus, _ = allowed_cpus(online, parse_affinity(status), enclosing, are_renumbered(read_mounts(roots)))
    groups = tuple(group for group in enclosing if group.cpu_quota is not None or group.memory is not None)
    folders = {group.name: group_directories(group.name, roots) for group in groups}
    return Domain(cpus, groups, folders, restricted_nodes(read_ram_files(roots), enclosing))


def read_times(roots: Roots, domain: Domain, now: float) -> CPUTimes:
    """Read the counters of CPU time. `now` is in seconds of a clock that never jumps."""
    times = [time for cpu, time in parse_stat(read_text(roots.proc / "stat") or "").items() if cpu in domain.cpus]
    groups = {
        group.name: cpu_time
        for group in domain.groups
        if group.cpu_quota is not None and (cpu_time := _read_usage(domain.folders[group.name]).cpu_time) is not None
    }
    return CPUTimes(sum(total for total, _ in times), sum(busy for _, busy in times), groups, now)


def parse_stat(text: str) -> dict[int, tuple[int, int]]:
    """Total and busy ticks of each CPU in `/proc/stat`. A guest's time is part of its host's."""
    found: dict[int, tuple[int, int]] = {}
    for line in _STAT_LINE.finditer(text):
        ticks = [parse_amount(field) or 0 for field in line[2].split()][:8]
        if len(ticks) >= 4:
            found[int(line[1])] = (sum(ticks), sum(ticks) - sum(ticks[3:5]))
    return found


def cores_in_use(before: CPUTimes, after: CPUTimes, cpus: int) -> int:
    """The millicores that were busy between two readings, of `cpus` allowed CPUs; 0 if no time has passed."""
    total = after.total - before.total
    busy = min(max(0, after.busy - before.busy), max(0, total))
    return busy * cpus * 1000 // total if total > 0 else 0


def quota_left(before: CPUTimes, after: CPUTimes, domain: Domain) -> int | None:
    """The millicores that the tightest quota left over between two readings; None if there is no quota."""
    seconds = after.taken_at - before.taken_at
    left = [
        max(0, group.cpu_quota - round(max(0, after.groups[group.name] - before.groups[group.name]) / seconds / 1000))
        for group in domain.groups
        if group.cpu_quota is not None and group.name in before.groups and group.name in after.groups and seconds > 0
    ]
    return min(left, default=None)


def free_ram(roots: Roots, domain: Domain) -> int | None:
    """The free bytes of RAM, on the machine and in every group; None if nothing reports it."""
    meminfo = parse_meminfo(read_text(roots.proc / "meminfo") or "")
    # Kernels before 3.14 have no estimate of their own.
    rough = sum(meminfo.get(name, 0) for name in ("MemFree", "Buffers", "Cached"))
    known = meminfo.keys() & {"MemAvailable", "MemFree"}
    left = [meminfo.get("MemAvailable", rough) + _free_in_arc(roots)] if known else []
    if domain.nodes is not None and (on_nodes := _free_on_nodes(roots, domain.nodes)) is not None:
        left.append(on_nodes + _free_in_arc(roots))
    if "CommitLimit" in meminfo and read_text(roots.proc / "sys" / "vm" / "overcommit_memory") == "2":
        left.append(max(0, meminfo["CommitLimit"] - meminfo.get("Committed_AS", 0)))
    for group in domain.groups:
        used = _read_usage(domain.folders[group.name]).ram if group.memory is not None else None
        if group.memory is not None and used is not None:
            left.append(max(0, group.memory - used))
    return min(left, default=None)


def _free_on_nodes(roots: Roots, nodes: frozenset[int]) -> int | None:
    """The bytes that are free or can be freed on these NUMA nodes; None if one of them does not show it."""
    folder = roots.sys / "devices" / "system" / "node"
    sizes = [free_on_node(read_text(folder / f"node{node}" / "meminfo") or "") for node in nodes]
    known = [size for size in sizes if size is not None]
    return sum(known) if len(known) == len(sizes) else None


def _free_in_arc(roots: Roots) -> int:
    """The bytes of ZFS's cache that it frees when programs need memory. The kernel counts them as used."""
    text = read_text(roots.proc / "spl" / "kstat" / "zfs" / "arcstats")
    if text is None or is_lxcfs(read_mounts(roots), "/proc/meminfo"):
        # The cache belongs to the host and is not part of the container's memory.
        return 0
    size, least = (_ARC[name].search(text) for name in ("size", "c_min"))
    return max(0, int(size[1]) - int(least[1])) if size and least else 0


def free_disk(work_dir: Path) -> int | None:
    """The bytes free for this user on the file system of `work_dir`; None if the query fails."""
    try:
        return read_space(existing_directory(work_dir)).free
    except OSError:
        return None
