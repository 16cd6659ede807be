"""The cgroups of a process, and what the kernel enforces in them: read, never believed from an engine."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final, NamedTuple

from dms_protocols.messages.job import JobConsumption
from dms_resources.machine.hardware.cgroups import parse_cpu_quota, parse_memberships
from dms_resources.machine.hardware.load import cgroup_usage
from dms_resources.machine.hardware.mounts import read_mounts
from dms_resources.machine.hardware.roots import HOST, parse_amount, read_text

__all__ = ["KernelLimits", "consumption", "counted_group", "kernel_limits", "process_groups", "start_of_process"]

_TREES: Final = frozenset({"freezer", "memory", "cpu", "cpuacct", "pids"})


class KernelLimits(NamedTuple):
    """What a process and its children may have: bytes of memory, of memory with swap, millicores, processes.

    None where nothing limits them.
    """

    memory: int | None
    memory_and_swap: int | None
    millicores: int | None
    processes: int | None


def process_groups(process: int | str) -> dict[str, Path]:
    """The folders of a process's groups by controller, "" for version 2; empty when it is gone. Blocks."""
    mounts = read_mounts(HOST)
    found: dict[str, Path] = {}
    for membership in parse_memberships(read_text(HOST.proc / str(process) / "cgroup") or ""):
        for name in membership.controllers & _TREES or ({""} if not membership.controllers else ()):
            for mount in mounts:
                fits = mount.kind == "cgroup" and name in mount.super_options if name else mount.kind == "cgroup2"
                root = mount.root.rstrip("/")
                if fits and not mount.read_only and (membership.path + "/").startswith(root + "/"):
                    found[name] = Path(mount.point) / membership.path[len(root) :].strip("/")
    return found


def kernel_limits(process: int) -> KernelLimits:
    """The limits of a process's own groups, not of those around them. Blocks."""
    groups = process_groups(process)
    unified = groups.get("")
    memory, cpu, pids = (groups.get(name, unified) for name in ("memory", "cpu", "pids"))
    return KernelLimits(
        memory=_first(memory, "memory.max", "memory.limit_in_bytes"),
        memory_and_swap=_memory_and_swap(memory),
        millicores=_millicores(cpu),
        processes=_first(pids, "pids.max"),
    )


def _first(folder: Path | None, *names: str) -> int | None:
    amounts = (parse_amount(read_text(folder / name)) for name in names) if folder is not None else iter(())
    return next((amount for amount in amounts if amount is not None and amount < 2**62), None)


def _memory_and_swap(folder: Path | None) -> int | None:
    if folder is None:
        return None
    if (folder / "memory.memsw.limit_in_bytes").exists():
        return _first(folder, "memory.memsw.limit_in_bytes")
    memory = _first(folder, "memory.max", "memory.limit_in_bytes")
    if (folder / "memory.swap.max").exists():
        swap = _first(folder, "memory.swap.max")
        return None if memory is None or swap is None else memory + swap
    # A kernel that does not account for swap has neither file; without a swap device there is nothing to use either.
    swaps = (read_text(HOST.proc / "swaps") or "").splitlines()
    return memory if len(swaps) < 2 else None


def _millicores(folder: Path | None) -> int | None:
    if folder is None:
        return None
    text = read_text(folder / "cpu.max")
    if text is None:
        text = f"{read_text(folder / 'cpu.cfs_quota_us')} {read_text(folder / 'cpu.cfs_period_us')}"
    return parse_cpu_quota(text)


def counted_group(process: int) -> str | None:
    """The name of the group that counts a process's memory, as in `/proc/PID/cgroup`. Blocks."""
    memberships = parse_memberships(read_text(HOST.proc / str(process) / "cgroup") or "")
    ranked = sorted(memberships, key=lambda one: ("memory" not in one.controllers, bool(one.controllers)))
    return ranked[0].path if ranked else None


def consumption(folders: tuple[str, ...], name: str) -> JobConsumption | None:
    """What groups have used, by their counters; None where none of them counts. Blocks."""
    times = [_cpu_seconds(Path(folder)) for folder in folders]
    used = cgroup_usage(name, HOST) if name else None
    cpu = max((time for time in times if time is not None), default=None)
    if used is None or used.ram is None or cpu is None:
        return None
    return JobConsumption(cpu_seconds=cpu, memory=used.ram)


def _cpu_seconds(folder: Path) -> float | None:
    if (text := read_text(folder / "cpuacct.usage")) and text.isdecimal():
        return int(text) / 10**9
    for line in (read_text(folder / "cpu.stat") or "").splitlines():
        name, _, value = line.partition(" ")
        if name == "usage_usec" and value.isdecimal():
            return int(value) / 10**6
    return None


def start_of_process(process: int) -> float | None:
    """When a process started, in seconds after boot; None when it is gone or a zombie. Blocks."""
    fields = (read_text(HOST.proc / str(process) / "stat") or "").rpartition(")")[2].split()
    if len(fields) < 20 or fields[0] in "ZX":
        return None
    return int(fields[19]) / os.sysconf("SC_CLK_TCK")
