"""Finds and kills the processes of a job, and reads what their cgroups counted. Standard library only."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from typing import Final

__all__ = ["JOB_MARK", "boot_id", "kill_job", "oom_kills", "start_ticks"]

JOB_MARK: Final = "DMS_JOB"
"""The environment variable that marks what a job started, with the job's name."""


def start_ticks(pid: int) -> int | None:
    """The start of a process in clock ticks after boot; None when it is gone. A zombie counts as gone."""
    fields = _stat(pid)
    return int(fields[19]) if fields and fields[0] != "Z" else None


def _stat(pid: int) -> list[str]:
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            return file.read().rpartition(")")[2].split()
    except OSError:
        return []


def boot_id() -> str:
    """What identifies this run of the machine: after a reboot all process ids mean others."""
    with open("/proc/sys/kernel/random/boot_id") as file:
        return file.read().strip()


def kill_job(groups: list[str], name: str, supervisor: int | None) -> bool:
    """Kills all processes of a job once; whether there were none. Call it until it returns true.

    Those are the members of its cgroups, the descendants of its supervisor and all that have its mark. A job that may
    change its user or group escapes two of these ways, and a cgroup never.
    """
    empty = True
    for group in groups:
        empty &= not _kill_group(group)
    # A program may have moved what it started to other groups, as `systemd-run --scope` does.
    found = set(_marked(f"{JOB_MARK}={name}".encode()))
    if supervisor is not None:
        found |= set(_descendants(supervisor))
    found.discard(os.getpid())
    for pid in found:
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)
    return empty and not found


def _kill_group(group: str) -> bool:
    """Kills the members of a group and of the groups in it; whether there were any."""
    found = False
    for folder, _, files in os.walk(group):
        members = _members(folder)
        if not members:
            continue
        found = True
        with contextlib.suppress(OSError):
            if "cgroup.kill" in files:
                _write(f"{folder}/cgroup.kill", "1")
                continue
            # Frozen processes cannot fork faster than they are killed.
            if "freezer.state" in files:
                _write(f"{folder}/freezer.state", "FROZEN")
            for pid in _members(folder):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        if "freezer.state" in files:
            with contextlib.suppress(OSError):
                _write(f"{folder}/freezer.state", "THAWED")
    return found


def _members(folder: str) -> list[int]:
    try:
        with open(f"{folder}/cgroup.procs") as file:
            # A process of another pid namespace is shown as 0, which would be our own group.
            return [int(line) for line in file if int(line) > 0]
    except OSError:
        return []


def _write(path: str, text: str) -> None:
    with open(path, "w") as file:
        file.write(text)


def _descendants(ancestor: int) -> Iterator[int]:
    children: dict[int, list[int]] = {}
    for pid in _processes():
        fields = _stat(pid)
        if fields and fields[0] != "Z":
            children.setdefault(int(fields[1]), []).append(pid)
    waiting = [ancestor]
    while waiting:
        below = children.pop(waiting.pop(), [])
        yield from below
        waiting += below


def _marked(mark: bytes) -> Iterator[int]:
    for pid in _processes():
        with contextlib.suppress(OSError), open(f"/proc/{pid}/environ", "rb") as file:
            if mark in file.read().split(b"\0"):
                yield pid


def _processes() -> Iterator[int]:
    return (int(name) for name in os.listdir("/proc") if name.isdecimal())


def oom_kills(groups: list[str]) -> int:
    """How many processes of these groups the kernel has killed for want of memory."""
    found = 0
    for group in groups:
        for name in ("memory.events", "memory.oom_control"):
            with contextlib.suppress(OSError, ValueError), open(f"{group}/{name}") as file:
                counts = dict(line.split() for line in file)
                found = max(found, int(counts.get("oom_kill", 0)))
    return found
