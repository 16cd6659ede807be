"""Main memory: the minimum of what the machine has and of every limit on it. Swap is never counted.

The limits are huge pages, broken pages, memory of GPUs that the kernel counts as main memory, the NUMA nodes that this
process may use, every enclosing cgroup, strict overcommit, and the resource limits of this process.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from ...components import RAM
from ...units import format_size
from .cgroups import Cgroup, describe_group
from .mounts import is_lxcfs, read_mounts
from .process_limits import read_process_limits
from .roots import Reading, Roots, bounded, list_names, parse_amount, parse_cpu_list, read_text

__all__ = [
    "RAMFiles",
    "free_on_node",
    "parse_meminfo",
    "parse_ram",
    "read_ram",
    "read_ram_files",
    "restricted_nodes",
    "unrestricted_ram",
]

_LINE = re.compile(r"([A-Za-z_0-9()]+):\s+([0-9]{1,17})(?: (kB))?\s*")
_NODE_TOTAL = re.compile(r"^Node [0-9]+ MemTotal:\s+([0-9]{1,17}) kB", re.MULTILINE)
_NODE_LINE = re.compile(
    r"^Node [0-9]+ (MemFree|Active\(file\)|Inactive\(file\)|SReclaimable):\s+([0-9]{1,17}) kB", re.MULTILINE
)
_GPU_NODE = re.compile(r"^Node:\s*([0-9]{1,5})\s*$", re.MULTILINE)
_ALLOWED_NODES = re.compile(r"^Mems_allowed_list:\s*(\S+)\s*$", re.MULTILINE)
_POOL = re.compile(r"hugepages-([0-9]{1,12})kB")
_MEMORY_TYPE = re.compile(r"(?:LP)?DDR[2-9]X?")


class RAMFiles(NamedTuple):
    """The texts that describe main memory.

    `counted` is the operating system's own total, used if no file has it. `nodes` are the `meminfo` of each NUMA node,
    `gpu_nodes` the status files of GPUs whose memory is such a node, `limits` the resource limits of this process,
    `huge_pages` the names of the pools of huge pages with their numbers of pages. If `of_container` is true, lxcfs
    shows the container's total, with the host's numbers beside it.
    """

    meminfo: str = ""
    module_type: str | None = None
    counted: int | None = None
    overcommit: str | None = None
    huge_pages: tuple[tuple[str, str | None], ...] = ()
    nodes: Mapping[int, str] = {}
    gpu_nodes: tuple[str, ...] = ()
    status: str = ""
    limits: Mapping[str, int] = {}
    of_container: bool = False


def read_ram(roots: Roots, cgroups: tuple[Cgroup, ...]) -> Reading[RAM]:
    """Read the main memory of a machine. Never raises."""
    return parse_ram(read_ram_files(roots), cgroups)


def unrestricted_ram(roots: Roots) -> int:
    """The bytes of main memory that all processes of the machine together may have; 0 if unknown."""
    files = read_ram_files(roots)
    meminfo = parse_meminfo(files.meminfo)
    size, _ = _without_reserved(files, meminfo, meminfo.get("MemTotal") or files.counted or 0)
    return min([size, *(limit for limit, _ in _overcommit_bound(files, meminfo))])


def read_ram_files(roots: Roots) -> RAMFiles:
    """Collect the texts that describe main memory."""
    meminfo = read_text(roots.proc / "meminfo") or ""
    system = roots.sys / "devices" / "system"
    controllers = system / "edac" / "mc"
    modules = [
        controllers / controller / module / "dimm_mem_type"
        for controller in list_names(controllers)
        for module in list_names(controllers / controller)
        if module.startswith(("dimm", "rank"))
    ]
    gpus = roots.proc / "driver" / "nvidia" / "gpus"
    pools = roots.sys / "kernel" / "mm" / "hugepages"
    return RAMFiles(
        meminfo=meminfo,
        module_type=next(filter(None, map(read_text, modules)), None),
        counted=_count_bytes() if roots.is_host and not meminfo else None,
        overcommit=read_text(roots.proc / "sys" / "vm" / "overcommit_memory"),
        huge_pages=tuple((name, read_text(pools / name / "nr_hugepages")) for name in list_names(pools)),
        nodes=dict(_read_nodes(roots)),
        gpu_nodes=tuple(filter(None, (read_text(gpus / name / "numa_status") for name in list_names(gpus)))),
        status=read_text(roots.proc / "self" / "status") or "",
        limits=read_process_limits(roots),
        of_container=is_lxcfs(read_mounts(roots), "/proc/meminfo"),
    )


def _read_nodes(roots: Roots) -> Iterator[tuple[int, str]]:
    folder = roots.sys / "devices" / "system" / "node"
    for name in list_names(folder):
        if re.fullmatch(r"node[0-9]{1,5}", name):
            yield int(name[4:]), read_text(folder / name / "meminfo") or ""


def _count_bytes() -> int | None:
    # This system call needs no /proc, which a service may not see (systemd's ProcSubset=pid).
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return None


def parse_meminfo(text: str) -> dict[str, int]:
    """The numbers of `/proc/meminfo`, sizes in bytes. Invalid lines are left out."""
    found = [match for line in text.splitlines() if (match := _LINE.fullmatch(line)) is not None]
    # Of a line that occurs twice the first one counts.
    return {match[1]: bounded(int(match[2]) * (1024 if match[3] else 1)) for match in reversed(found)}


def parse_ram(files: RAMFiles, cgroups: tuple[Cgroup, ...]) -> Reading[RAM]:
    """Make the main memory from the texts, within every limit."""
    meminfo = parse_meminfo(files.meminfo)
    total = meminfo.get("MemTotal") or files.counted
    if not total:
        return Reading(RAM(size=0), problems=("the size of main memory cannot be read: none is offered",))
    problems = () if meminfo.get("MemTotal") else ("/proc/meminfo cannot be read: huge pages and free RAM are unknown",)
    size, limits = _without_reserved(files, meminfo, total)
    bound, reason = min(_bounds(files, meminfo, cgroups), key=lambda limit: limit[0], default=(size, ""))
    if bound < size:
        size = bound
        limits.append(f"{format_size(size)} of {format_size(total)} RAM: {reason}")
    kind = _MEMORY_TYPE.search(files.module_type or "")
    return Reading(RAM(size=size, type=kind[0] if kind else ""), tuple(limits), problems)


def _without_reserved(files: RAMFiles, meminfo: Mapping[str, int], total: int) -> tuple[int, list[str]]:
    """The remaining bytes of `total`, and sentences on memory that jobs cannot use."""
    if files.of_container:
        # The total is the container's. The host's huge pages and nodes are not part of it.
        return total, []
    huge = meminfo.get("Hugetlb") or meminfo.get("HugePages_Total", 0) * meminfo.get("Hugepagesize", 0)
    # Kernels before 4.16 count the default size only in /proc/meminfo.
    huge = max(huge, sum(_pool_size(name, count) for name, count in files.huge_pages))
    size, limits = total, list[str]()
    for amount, reason in (
        (huge, "are set aside as huge pages"),
        (sum(_node_size(files, node) or 0 for node in _gpu_nodes(files)), "are the memory of GPUs"),
        (meminfo.get("HardwareCorrupted", 0), "are broken"),
    ):
        taken = min(size, amount)
        size -= taken
        if taken:
            limits.append(f"{format_size(size)} of {format_size(total)} RAM: {format_size(taken)} {reason}")
    return size, limits


def _pool_size(name: str, count: str | None) -> int:
    found = _POOL.fullmatch(name)
    return bounded(int(found[1]) * 1024 * (parse_amount(count) or 0)) if found else 0


def _gpu_nodes(files: RAMFiles) -> frozenset[int]:
    return frozenset(int(match[1]) for text in files.gpu_nodes for match in _GPU_NODE.finditer(text))


def _node_size(files: RAMFiles, node: int) -> int | None:
    found = _NODE_TOTAL.search(files.nodes.get(node, ""))
    return bounded(int(found[1]) * 1024) if found else None


def _bounds(files: RAMFiles, meminfo: Mapping[str, int], cgroups: tuple[Cgroup, ...]) -> Iterator[tuple[int, str]]:
    """Every limit on the memory of this process and its jobs, in bytes, with its name."""
    for group in cgroups:
        if group.memory is not None:
            yield group.memory, f"cgroup limit ({group.memory_limit}) of {describe_group(group.name)}"
    yield from _node_bounds(files, cgroups)
    yield from _overcommit_bound(files, meminfo)
    for name, short in (("Max address space", "RLIMIT_AS"), ("Max data size", "RLIMIT_DATA")):
        if name in files.limits:
            yield files.limits[name], f"limit of this process ({short})"


def _overcommit_bound(files: RAMFiles, meminfo: Mapping[str, int]) -> Iterator[tuple[int, str]]:
    if files.overcommit == "2" and "CommitLimit" in meminfo:
        # Strict accounting refuses memory beyond this, even if memory is free. It counts swap as well.
        yield max(0, meminfo["CommitLimit"] - meminfo.get("SwapTotal", 0)), "CommitLimit (vm.overcommit_memory is 2)"


def restricted_nodes(files: RAMFiles, cgroups: tuple[Cgroup, ...]) -> frozenset[int] | None:
    """Return the NUMA nodes from which this process may have memory; None if these are all, or are not known."""
    main = frozenset(files.nodes.keys() - _gpu_nodes(files))
    allowed = main
    for nodes, _ in _allowed_nodes(files, cgroups):
        allowed = allowed if nodes is None else allowed & nodes
    return None if files.of_container or allowed == main else allowed


def free_on_node(meminfo: str) -> int | None:
    """Return the bytes of a NUMA node that are free or can be freed, by its `meminfo`; None if it does not show it."""
    found = {match[1]: int(match[2]) * 1024 for match in _NODE_LINE.finditer(meminfo)}
    return bounded(sum(found.values())) if "MemFree" in found else None


def _allowed_nodes(files: RAMFiles, cgroups: tuple[Cgroup, ...]) -> list[tuple[frozenset[int] | None, str]]:
    """The nodes that each cpuset, and the memory policy, allow; None where it does not tell."""
    found = _ALLOWED_NODES.search(files.status)
    allowed = [(group.nodes, f"cpuset of {describe_group(group.name)}") for group in cgroups]
    return [*allowed, (parse_cpu_list(found[1]) if found else None, "memory policy of this process")]


def _node_bounds(files: RAMFiles, cgroups: tuple[Cgroup, ...]) -> Iterator[tuple[int, str]]:
    sizes = {node: _node_size(files, node) for node in files.nodes.keys() - _gpu_nodes(files)}
    known = {node: size for node, size in sizes.items() if size is not None}
    for nodes, name in _allowed_nodes(files, cgroups):
        # The nodes are a limit only if the size of every node is known.
        if nodes is not None and known and len(known) == len(sizes) and not nodes >= known.keys():
            shown = nodes & known.keys()
            yield sum(known[node] for node in shown), f"{name}: {len(shown)} of {len(known)} NUMA nodes"
