"""Main memory: the least of the machine's and of every enclosing cgroup's limit. Swap is never counted."""

from __future__ import annotations

import re
from typing import NamedTuple

import psutil

from ...components import RAM
from ...units import format_size
from .cgroups import Cgroup, describe_group
from .roots import Reading, Roots, bounded, list_names, read_text

__all__ = ["RAMFiles", "parse_meminfo", "parse_ram", "read_ram", "read_ram_files"]

_LINE = re.compile(r"([A-Za-z_0-9()]+):\s+([0-9]{1,17})(?: (kB))?\s*")
_MEMORY_TYPE = re.compile(r"(?:LP)?DDR[2-9]X?")


class RAMFiles(NamedTuple):
    """The texts that describe main memory; `counted` is the operating system's own total, where no file tells."""

    meminfo: str = ""
    module_type: str | None = None
    counted: int | None = None


def read_ram(roots: Roots, cgroups: tuple[Cgroup, ...]) -> Reading[RAM]:
    """Reads the main memory of a machine; never raises."""
    return parse_ram(read_ram_files(roots), cgroups)


def read_ram_files(roots: Roots) -> RAMFiles:
    """Collects the texts that describe main memory."""
    meminfo = read_text(roots.proc / "meminfo") or ""
    controllers = roots.sys / "devices" / "system" / "edac" / "mc"
    modules = [
        controllers / controller / module / "dimm_mem_type"
        for controller in list_names(controllers)
        for module in list_names(controllers / controller)
        if module.startswith(("dimm", "rank"))
    ]
    counted = psutil.virtual_memory().total if roots.is_host and not meminfo else None
    return RAMFiles(meminfo, next(filter(None, map(read_text, modules)), None), counted)


def parse_meminfo(text: str) -> dict[str, int]:
    """The numbers of `/proc/meminfo`, sizes in bytes; lines that make no sense are left out."""
    found = [match for line in text.splitlines() if (match := _LINE.fullmatch(line)) is not None]
    return {match[1]: bounded(int(match[2]) * (1024 if match[3] else 1)) for match in found}


def parse_ram(files: RAMFiles, cgroups: tuple[Cgroup, ...]) -> Reading[RAM]:
    """Makes the main memory of what was read: without huge pages, and no more than any cgroup allows."""
    meminfo = parse_meminfo(files.meminfo)
    total = meminfo.get("MemTotal") or files.counted
    if not total:
        return Reading(RAM(size=0), problems=("the size of main memory cannot be read: none is offered",))
    limits = []
    # Huge pages are set aside: a job that does not ask for them cannot have them.
    huge = min(total, meminfo.get("Hugetlb") or meminfo.get("HugePages_Total", 0) * meminfo.get("Hugepagesize", 0))
    size = total - huge
    if huge:
        limits.append(
            f"{format_size(size)} of {format_size(total)} RAM: {format_size(huge)} are set aside as huge pages"
        )
    group = min((g for g in cgroups if g.memory is not None), key=lambda g: g.memory or 0, default=None)
    if group is not None and group.memory is not None and group.memory < size:
        size = group.memory
        name = f"cgroup limit ({group.memory_limit}) of {describe_group(group.name)}"
        limits.append(f"{format_size(size)} of {format_size(total)} RAM: {name}")
    kind = _MEMORY_TYPE.search(files.module_type or "")
    return Reading(RAM(size=size, type=kind[0] if kind else ""), tuple(limits))
