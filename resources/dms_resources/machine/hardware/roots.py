"""The folders from which a machine is read, and how one file of it is read.

The roots are arguments of every reader, so that a recorded machine is a folder. A file that cannot be read is None. The
caller decides whether this means that something is missing or that reading failed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

__all__ = [
    "HOST",
    "Reading",
    "Roots",
    "bounded",
    "can_open",
    "largest",
    "link_name",
    "list_names",
    "parse_amount",
    "parse_cpu_list",
    "parse_hex",
    "read_text",
]

# /proc/stat and /proc/cpuinfo of the largest machines are smaller.
_LARGEST_FILE = 4 * 2**20
_MOST_CPUS = 65536
_LARGEST_AMOUNT = 2**63 - 1
_NUMBER = re.compile(r"[0-9]{1,20}")
_HEX = re.compile(r"(?:0[xX])?[0-9a-fA-F]{1,16}")

Value = TypeVar("Value")


@dataclass(frozen=True)
class Roots:
    """The folders that stand for `/proc`, `/sys` and `/dev`. `dev` is None if device nodes were not recorded."""

    proc: Path = Path("/proc")
    sys: Path = Path("/sys")
    dev: Path | None = None

    @property
    def is_host(self) -> bool:
        """Whether this is the running machine, so that system calls may be used as well."""
        return self == HOST

    def locate(self, path: str) -> Path | None:
        """The file that stands for an absolute `path` of the machine; None if it is not within the roots."""
        for name, root in (("/sys", self.sys), ("/proc", self.proc)):
            if path == name or path.startswith(name + "/"):
                return root / path[len(name) + 1 :]
        return Path(path) if self.is_host else None


HOST = Roots(dev=Path("/dev"))


class Reading(NamedTuple, Generic[Value]):
    """A part of the machine, with sentences on its limits and on what could not be read."""

    value: Value
    limits: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()


def read_text(path: Path | None) -> str | None:
    """The text of a small file without the surrounding spaces; None if it is missing or cannot be read."""
    if path is None:
        return None
    try:
        with open(path, "rb", opener=_open_without_waiting) as file:
            return file.read(_LARGEST_FILE).decode("utf-8", "replace").strip(" \t\r\n\0")
    except (OSError, ValueError):
        return None


def _open_without_waiting(path: str, flags: int) -> int:
    # Without it, open() would wait for a writer if a pipe is in the place of the file.
    return os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY)


def can_open(path: Path) -> bool:
    """Whether this process may open a device node for reading and writing.

    Permissions are not enough, because a container's device group may refuse what they allow. Therefore the node is
    opened.
    """
    try:
        os.close(os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC))
    except (OSError, ValueError):
        return False
    return True


def link_name(path: Path) -> str:
    """The last part of the target of a link, such as the name of a device's driver; "" if it is no link."""
    try:
        return os.path.basename(os.readlink(path))
    except (OSError, ValueError):
        return ""


def list_names(path: Path | None) -> list[str]:
    """The names in a folder, in natural order (`cpu2` before `cpu10`); none if it cannot be read."""
    if path is None:
        return []
    try:
        return sorted(os.listdir(path), key=_as_people_count)
    except (OSError, ValueError):
        return []


def _as_people_count(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if _NUMBER.fullmatch(part) else (-1, part) for part in re.split(r"([0-9]{1,20})", name)]


def parse_amount(text: str | None) -> int | None:
    """A number that is not negative and fits an amount; None for other text."""
    if text is None or not _NUMBER.fullmatch(text.strip()):
        return None
    return bounded(int(text))


def bounded(amount: int) -> int:
    """The amount, or the largest possible one: a broken file may have a number of more than 64 bits."""
    return min(amount, _LARGEST_AMOUNT)


def parse_hex(text: str | None) -> int | None:
    """A hexadecimal number such as "0x10de"; None for other text."""
    return int(text, 16) if text is not None and _HEX.fullmatch(text) else None


def parse_cpu_list(text: str | None) -> frozenset[int] | None:
    """The CPUs of a kernel list such as "0-3,8"; None for other text or an empty list."""
    cpus: set[int] = set()
    for part in (text or "").split(","):
        first, dash, last = part.strip().partition("-")
        ends = [parse_amount(first), parse_amount(last if dash else first)]
        if ends[0] is None or ends[1] is None or not ends[0] <= ends[1] < _MOST_CPUS:
            return None
        cpus.update(range(ends[0], ends[1] + 1))
    return frozenset(cpus)


def largest(values: Iterable[int | None]) -> int:
    """The largest of the known values; 0 if none is known."""
    return max((value for value in values if value is not None), default=0)
