"""The mount table, as `/proc/self/mountinfo` has it. Source: proc_pid_mountinfo(5)."""

from __future__ import annotations

import re
from typing import NamedTuple

from .roots import Roots, read_text

__all__ = ["Mount", "find_mount", "is_lxcfs", "parse_mounts", "read_mounts"]

_OCTAL = re.compile(r"\\([0-7]{3})")


class Mount(NamedTuple):
    """One mount: `device` is "major:minor", `root` the part of the file system that is visible at `point`."""

    device: str
    root: str
    point: str
    options: frozenset[str]
    kind: str
    source: str
    super_options: frozenset[str]

    @property
    def read_only(self) -> bool:
        """Whether the mount or its file system is read-only."""
        return "ro" in self.options or "ro" in self.super_options


def read_mounts(roots: Roots) -> tuple[Mount, ...]:
    """This process's mounts; none if the table cannot be read."""
    return parse_mounts(read_text(roots.proc / "self" / "mountinfo") or "")


def parse_mounts(text: str) -> tuple[Mount, ...]:
    """Read a mount table. Invalid lines are left out."""
    return tuple(mount for line in text.splitlines() if (mount := _parse_line(line)) is not None)


def _parse_line(line: str) -> Mount | None:
    # The number of optional fields varies; they end with a dash.
    left, dash, right = line.partition(" - ")
    before, after = left.split(" "), right.split(" ")
    if not dash or len(before) < 6 or len(after) < 3:
        return None
    return Mount(
        device=before[2],
        root=_unescape(before[3]),
        point=_unescape(before[4]),
        options=frozenset(before[5].split(",")),
        kind=after[0],
        source=_unescape(after[1]),
        super_options=frozenset(after[2].split(",")),
    )


def _unescape(text: str) -> str:
    return _OCTAL.sub(lambda found: chr(int(found[1], 8)), text)


def find_mount(mounts: tuple[Mount, ...], path: str) -> Mount | None:
    """The mount of an absolute, resolved path: the deepest one, and of several at the same point the last."""
    found: Mount | None = None
    for mount in mounts:
        inside = mount.point == "/" or path == mount.point or path.startswith(mount.point + "/")
        if inside and (found is None or len(mount.point) >= len(found.point)):
            found = mount
    return found


def is_lxcfs(mounts: tuple[Mount, ...], path: str) -> bool:
    """Whether lxcfs shows a container's own numbers in this file of `/proc` or `/sys`."""
    found = find_mount(mounts, path)
    return found is not None and found.kind == "fuse.lxcfs"
