"""Limits on the disk space of this process that statvfs(3) does not report: quotas of users, groups and projects, and
the quota groups of btrfs.

Sources: quotactl(2); ioctl_fsgetxattr in the kernel's fs.h; the kernel's fs/btrfs/sysfs.c.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import stat
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from .mounts import Mount
from .roots import Roots, list_names, parse_amount, read_text

__all__ = ["Quota", "read_quota", "subvolume_quota"]

_GET_QUOTA: Final = 0x800007
_USER, _GROUP, _PROJECT = 0, 1, 2
_BLOCK: Final = 1024
_HAS_BLOCK_LIMITS: Final = 1
_GET_ATTRIBUTES: Final = 0x801C581F
_LOOK_UP_INODE: Final = 0xD0009412
# The number of the first file in every btrfs subvolume.
_FIRST_FILE: Final = 256


class Quota(NamedTuple):
    """The bytes that may be used, and the owner of the quota."""

    size: int
    owner: str


class _DiskQuota(ctypes.Structure):
    """`struct dqblk`; the limits are in blocks of 1024 bytes."""

    _fields_ = [
        ("hard_limit", ctypes.c_uint64),
        ("soft_limit", ctypes.c_uint64),
        ("used", ctypes.c_uint64),
        ("inode_hard_limit", ctypes.c_uint64),
        ("inode_soft_limit", ctypes.c_uint64),
        ("inodes_used", ctypes.c_uint64),
        ("block_grace", ctypes.c_uint64),
        ("inode_grace", ctypes.c_uint64),
        ("valid", ctypes.c_uint32),
    ]


def read_quota(mount: Mount, directory: Path, roots: Roots) -> Quota | None:
    """The tightest quota on new files in `directory`, which lies on `mount`; None if there is none. Never raises."""
    found = [subvolume_quota(mount, directory, roots)] if mount.kind == "btrfs" else []
    if roots.is_host and sys.platform.startswith("linux") and mount.source.startswith("/dev/"):
        found += [
            Quota(size, owner)
            for kind, number, owner in _owners(directory)
            if (size := _ask_kernel(mount.source, kind, number)) is not None
        ]
    return min((quota for quota in found if quota is not None), default=None)


def _owners(directory: Path) -> Iterator[tuple[int, int, str]]:
    """The owners to which the kernel's quotas charge a new file in this folder."""
    yield _USER, os.getuid(), "this user"
    try:
        status = os.stat(directory)
    except OSError:
        return
    yield _GROUP, status.st_gid if status.st_mode & stat.S_ISGID else os.getegid(), "this group"
    project = _project_of(directory)
    if project:
        yield _PROJECT, project, f"project {project}"


def _project_of(directory: Path) -> int:
    answer = _ask_file(directory, _GET_ATTRIBUTES, bytes(28))
    return int(struct.unpack_from("=IIIII", answer)[3]) if answer else 0


def _ask_file(path: Path, request: int, argument: bytes) -> bytes | None:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except (OSError, ValueError):
        return None
    # The buffer must be mutable, because fcntl copies others only up to 1024 bytes.
    answer = bytearray(argument)
    try:
        fcntl.ioctl(descriptor, request, answer, True)
    except (OSError, ValueError):
        return None
    finally:
        os.close(descriptor)
    return bytes(answer)


def _ask_kernel(source: str, kind: int, number: int) -> int | None:
    found = _DiskQuota()
    command = ctypes.c_int((_GET_QUOTA << 8 | kind) & 0xFFFFFFFF)
    try:
        library = ctypes.CDLL(None, use_errno=True)
        failed = library.quotactl(command, os.fsencode(source), number, ctypes.byref(found))
    except (OSError, AttributeError, ValueError, ctypes.ArgumentError):
        return None
    if failed or not found.valid & _HAS_BLOCK_LIMITS:
        return None
    limits = [limit for limit in (found.soft_limit, found.hard_limit) if limit]
    return min(limits) * _BLOCK if limits else None


def subvolume_quota(mount: Mount, directory: Path, roots: Roots) -> Quota | None:
    """The limit of the quota group of the btrfs subvolume with `directory`; None if it has none.

    The groups above it cannot be read without privileges.
    """
    file_systems = roots.sys / "fs" / "btrfs"
    subvolume = _subvolume_of(mount, directory, roots)
    for name in list_names(file_systems):
        if Path(_real_name(mount.source, roots)).name not in list_names(file_systems / name / "devices"):
            continue
        group = file_systems / name / "qgroups" / f"0_{subvolume}"
        limits = [parse_amount(read_text(group / limit)) for limit in ("max_referenced", "max_exclusive")]
        known = [limit for limit in limits if limit]
        return Quota(min(known), "the btrfs subvolume") if known else None
    return None


def _real_name(source: str, roots: Roots) -> str:
    # A volume has a name of its own below /dev/mapper, but sysfs uses "dm-0".
    return os.path.realpath(source) if roots.is_host else source


def _subvolume_of(mount: Mount, directory: Path, roots: Roots) -> int:
    if roots.is_host:
        answer = _ask_file(directory, _LOOK_UP_INODE, struct.pack("=QQ", 0, _FIRST_FILE).ljust(4096, b"\0"))
        if answer:
            return int(struct.unpack_from("=Q", answer)[0])
    named = (option.partition("=")[2] for option in mount.super_options if option.startswith("subvolid="))
    return next((number for text in named if (number := parse_amount(text)) is not None), 5)
