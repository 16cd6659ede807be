"""The CPU: how much of it this process may use, and its properties.

This process may use the minimum of the online CPUs, the CPUs that every enclosing cpuset and the affinity allow, and
the quota of every enclosing cgroup.
"""

from __future__ import annotations

import contextlib
import os
import platform
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import psutil

from ...components import CPU
from ...units import Cores
from ..architectures import architecture_name
from .cgroups import Cgroup, describe_group
from .mounts import Mount, read_mounts
from .processors import describe_processor, lowest_clock
from .roots import Reading, Roots, bounded, list_names, parse_amount, parse_cpu_list, read_text

__all__ = ["CPUFiles", "allowed_cpus", "are_renumbered", "parse_affinity", "parse_cpu", "read_cpu", "read_cpu_files"]

_RENUMBERED = ("/proc/cpuinfo", "/proc/stat", "/sys/devices/system/cpu", "/sys/devices/system/cpu/online")
_ALLOWED = re.compile(r"^Cpus_allowed_list:\s*(\S+)\s*$", re.MULTILINE)


class PolicyFiles(NamedTuple):
    """The texts of one clock domain: its CPUs, and its highest and its guaranteed clock in kilohertz.

    `permitted` is the highest clock that the machine's administrator permits.
    """

    cpus: str | None = None
    highest: str | None = None
    guaranteed: str | None = None
    permitted: str | None = None

    def cpu_numbers(self) -> frozenset[int] | None:
        """The CPUs of the domain; None if they are not known."""
        return parse_cpu_list((self.cpus or "").replace(" ", ","))

    def highest_clock(self, *, turbo: bool) -> str | None:
        """The clock that the domain can reach now; without turbo no more than the guaranteed one."""
        known = [self.highest, self.permitted, None if turbo else self.guaranteed]
        return min(filter(parse_amount, known), key=lambda text: parse_amount(text) or 0, default=None)


class CPUFiles(NamedTuple):
    """The texts that describe the CPU; None for a file that is missing.

    `siblings` are the hardware threads of each CPU's core, `caches` the levels and sizes of the first CPU's caches, and
    `renumbered` the result of `are_renumbered`. `counted` is the operating system's own count of CPUs, used if no file
    has it.
    """

    cpuinfo: str = ""
    architecture: str | None = None
    present: str | None = None
    online: str | None = None
    status: str = ""
    siblings: tuple[str, ...] = ()
    clocks: tuple[PolicyFiles, ...] = ()
    caches: tuple[tuple[str | None, str | None], ...] = ()
    renumbered: bool = False
    turbo: bool = True
    counted: int | None = None
    counted_physical: int | None = None


def read_cpu(roots: Roots, cgroups: tuple[Cgroup, ...]) -> Reading[CPU]:
    """Read the CPU of a machine. Never raises."""
    return parse_cpu(read_cpu_files(roots), cgroups)


def read_cpu_files(roots: Roots) -> CPUFiles:
    """Collect the texts that describe the CPU."""
    system = roots.sys / "devices" / "system" / "cpu"
    policies = [system / "cpufreq" / name for name in list_names(system / "cpufreq") if name.startswith("policy")]
    cpus = [system / name for name in list_names(system) if re.fullmatch(r"cpu[0-9]+", name)]
    caches = system / "cpu0" / "cache"
    return CPUFiles(
        cpuinfo=read_text(roots.proc / "cpuinfo") or "",
        architecture=read_text(roots.proc / "sys" / "kernel" / "arch")
        or (platform.machine() if roots.is_host else None),
        present=read_text(system / "present"),
        online=read_text(system / "online"),
        status=read_text(roots.proc / "self" / "status") or "",
        siblings=tuple(text for cpu in cpus if (text := _read_siblings(cpu)) is not None),
        clocks=tuple(
            PolicyFiles(
                read_text(policy / "related_cpus") or read_text(policy / "affected_cpus"),
                read_text(policy / "cpuinfo_max_freq"),
                read_text(policy / "base_frequency"),
                read_text(policy / "scaling_max_freq"),
            )
            for policy in policies
        ),
        caches=tuple(
            (read_text(caches / name / "level"), read_text(caches / name / "size")) for name in list_names(caches)
        ),
        renumbered=are_renumbered(read_mounts(roots)),
        turbo=read_text(system / "intel_pstate" / "no_turbo") != "1" and read_text(system / "cpufreq" / "boost") != "0",
        counted=os.cpu_count() if roots.is_host else None,
        counted_physical=_count_physical() if roots.is_host else None,
    )


def _count_physical() -> int | None:
    # psutil reads /proc/cpuinfo, which a service may not see (systemd's ProcSubset=pid).
    with contextlib.suppress(OSError, psutil.Error, ValueError):
        return psutil.cpu_count(logical=False)
    return None


def _read_siblings(cpu: Path) -> str | None:
    # Linux 5.3 renamed the file.
    return read_text(cpu / "topology" / "core_cpus_list") or read_text(cpu / "topology" / "thread_siblings_list")


def parse_cpu(files: CPUFiles, cgroups: tuple[Cgroup, ...]) -> Reading[CPU]:
    """Make the CPU from the texts. What no file has keeps its default."""
    processors = _parse_cpuinfo(files.cpuinfo)
    present, online = _count_cpus(files, processors)
    cores, limits = _usable_cores(files, present, online, cgroups)
    processor = describe_processor(processors, files.architecture)
    allowed, _ = allowed_cpus(online, parse_affinity(files.status), cgroups, files.renumbered)
    domains = _usable_domains(files, allowed)
    base_clock = _common_clock(domain.guaranteed for domain in domains) or processor.base_clock_speed
    max_clock = _common_clock(domain.highest_clock(turbo=files.turbo) for domain in domains) or processor.clock_speed
    if domains and (others := allowed - _covered(files, allowed)):
        # Of these only the present clock is known, if anything.
        max_clock = min(max_clock, lowest_clock(processors, others))
    cpu = CPU(
        cores=cores,
        clock_speed=max(max_clock, base_clock),
        base_clock_speed=base_clock,
        architecture=architecture_name(processor.architecture),
        vendor=processor.vendor,
        model=processor.model,
        threads=len(present),
        cache_size=_last_level_cache(files.caches),
        physical_cores=_count_cores(files, processors),
    )
    if cores.millicores and not files.online and not files.cpuinfo:
        return Reading(cpu, limits, ("no file has the CPUs: their number is the operating system's own count",))
    return Reading(cpu, limits, () if present else ("the number of CPUs cannot be read: none is offered",))


def _usable_domains(files: CPUFiles, allowed: frozenset[int]) -> tuple[PolicyFiles, ...]:
    """The clock domains with at least one usable CPU; all of them if that is not known."""
    cpus = [domain.cpu_numbers() for domain in files.clocks]
    if files.renumbered or None in cpus:
        return files.clocks
    return tuple(domain for domain, own in zip(files.clocks, cpus, strict=True) if own and own & allowed)


def _covered(files: CPUFiles, allowed: frozenset[int]) -> frozenset[int]:
    """The CPUs whose highest clock is known; all that are allowed if the domains do not name theirs."""
    cpus = [domain.cpu_numbers() for domain in files.clocks if parse_amount(domain.highest)]
    if files.renumbered or None in cpus:
        return allowed
    return frozenset().union(*(own for own in cpus if own is not None))


def _common_clock(kilohertz: Iterable[str | None]) -> int:
    """The clock in hertz that every CPU reaches: with performance and efficiency cores, that of the slower ones."""
    known = [clock for text in kilohertz if (clock := parse_amount(text))]
    return bounded(min(known, default=0) * 1000)


def _parse_cpuinfo(text: str) -> tuple[Mapping[str, str], ...]:
    """The blocks of `/proc/cpuinfo` as maps. If a key occurs twice in a block, the first value is kept."""
    blocks: list[dict[str, str]] = []
    for block in re.split(r"\n\s*\n", text):
        fields: dict[str, str] = {}
        for line in block.splitlines():
            key, colon, value = line.partition(":")
            if colon:
                fields.setdefault(key.strip(), value.strip())
        if fields:
            blocks.append(fields)
    return tuple(blocks)


def _count_cpus(files: CPUFiles, processors: tuple[Mapping[str, str], ...]) -> tuple[frozenset[int], frozenset[int]]:
    """The CPUs that are present, and those of them that are online."""
    listed = frozenset(n for block in processors if (n := parse_amount(block.get("processor"))) is not None)
    online = parse_cpu_list(files.online) or listed or frozenset(range(files.counted or 0))
    return (parse_cpu_list(files.present) or online) | online, online


def parse_affinity(status: str) -> frozenset[int] | None:
    """The CPUs on which a process may run, from its `/proc/PID/status`; None if it does not say."""
    found = _ALLOWED.search(status)
    return parse_cpu_list(found[1]) if found else None


def are_renumbered(mounts: tuple[Mount, ...]) -> bool:
    """Whether lxcfs renumbers a container's CPUs, while affinity and cpusets keep the host's numbers."""
    return any(mount.kind == "fuse.lxcfs" and mount.point in _RENUMBERED for mount in mounts)


def allowed_cpus(
    online: frozenset[int], affinity: frozenset[int] | None, cgroups: tuple[Cgroup, ...], renumbered: bool = False
) -> tuple[frozenset[int], str]:
    """The online CPUs that affinity and cpusets allow, and the name of the limit that decides ("" for none).

    If the CPUs are `renumbered`, only the number of allowed CPUs is right, not which they are.
    """
    allowed, reason = online, ""
    limits = [(group.cpus, f"cpuset of {describe_group(group.name)}") for group in cgroups]
    for cpus, name in [*limits, (affinity, "CPU affinity of this process")]:
        if cpus is None:
            continue
        known = frozenset[int]() if renumbered else allowed & cpus
        left = known or frozenset(sorted(allowed)[: len(cpus)])
        if left != allowed:
            allowed, reason = left, name
    return allowed, reason


def _usable_cores(
    files: CPUFiles, present: frozenset[int], online: frozenset[int], cgroups: tuple[Cgroup, ...]
) -> tuple[Cores, tuple[str, ...]]:
    limits = []
    if len(online) < len(present):
        limits.append(f"{len(online)} of {len(present)} cores: {len(present) - len(online)} are not online")
    allowed, reason = allowed_cpus(online, parse_affinity(files.status), cgroups, files.renumbered)
    if reason:
        limits.append(f"{len(allowed)} of {len(present)} cores: {reason}")
    quotas = [(group.cpu_quota, group.name) for group in cgroups if group.cpu_quota is not None]
    quota, name = min(quotas, default=(None, ""))
    cores = Cores(len(allowed) * 1000)
    if quota is not None and quota < cores.millicores:
        cores = Cores(quota)
        limits.append(f"{cores} of {len(present)} cores: cgroup quota of {describe_group(name)}")
    return cores, tuple(limits)


def _count_cores(files: CPUFiles, processors: tuple[Mapping[str, str], ...]) -> int:
    """The physical cores: distinct sets of sibling threads, otherwise distinct core numbers; 0 if neither is known."""
    cores = {cpus for text in files.siblings if (cpus := parse_cpu_list(text)) is not None}
    numbers = {(block.get("physical id"), block["core id"]) for block in processors if "core id" in block}
    return len(cores) or len(numbers) or files.counted_physical or 0


def _last_level_cache(caches: tuple[tuple[str | None, str | None], ...]) -> int:
    known = [(parse_amount(level) or 0, _parse_cache_size(size)) for level, size in caches]
    return max(known, default=(0, 0))[1]


def _parse_cache_size(text: str | None) -> int:
    found = re.fullmatch(r"([0-9]{1,12})([KMG]?)", text or "")
    return bounded(int(found[1]) * {"": 1, "K": 2**10, "M": 2**20, "G": 2**30}[found[2]]) if found else 0
