"""The resource limits of this process, and of every job that it starts. Source: getrlimit(2)."""

from __future__ import annotations

import re
from typing import Final

from .cgroups import Cgroup, describe_group
from .roots import Roots, parse_amount, read_text

__all__ = ["FEW_FILES", "FEW_PROCESSES", "parse_process_limits", "process_sentences", "read_process_limits"]

_LINE: Final = re.compile(r"^(Max [a-z -]+?) {2,}(\S+) ", re.MULTILINE)
# A lower limit of processes gets a sentence. Most service managers set a limit of several thousand.
FEW_PROCESSES: Final = 1024
# The kernel's own default.
FEW_FILES: Final = 1024


def read_process_limits(roots: Roots) -> dict[str, int]:
    """The soft limits that are set, by their names in `/proc/self/limits`, such as "Max address space" in bytes."""
    return parse_process_limits(read_text(roots.proc / "self" / "limits") or "")


def parse_process_limits(text: str) -> dict[str, int]:
    """The soft limits in a `/proc/PID/limits`. "unlimited" and invalid lines are left out."""
    found = ((match[1], parse_amount(match[2])) for match in _LINE.finditer(text))
    return {name: amount for name, amount in found if amount is not None}


def process_sentences(cgroups: tuple[Cgroup, ...], limits: dict[str, int]) -> tuple[str, ...]:
    """Sentences on limits that reduce no offered amount but may stop a job: of processes, files and CPU time."""
    bounds = [(group.processes, f"cgroup limit (pids.max) of {describe_group(group.name)}") for group in cgroups]
    bounds.append((limits.get("Max processes"), "limit of this user (RLIMIT_NPROC)"))
    known = [(count, name) for count, name in bounds if count is not None and count < FEW_PROCESSES]
    found = [f"at most {count} processes and threads: {name}" for count, name in sorted(known)[:1]]
    if "Max file size" in limits:
        found.append(f"no file larger than {limits['Max file size']} B: limit of this process (RLIMIT_FSIZE)")
    if limits.get("Max open files", FEW_FILES) < FEW_FILES:
        found.append(f"at most {limits['Max open files']} open files: limit of this process (RLIMIT_NOFILE)")
    if "Max cpu time" in limits:
        found.append(f"at most {limits['Max cpu time']} s of CPU time: limit of this process (RLIMIT_CPU)")
    return tuple(found)
