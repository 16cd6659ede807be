"""The disk quota of the user that runs this process. Source: quotactl(2)."""

from __future__ import annotations

import ctypes
import os
import sys

__all__ = ["user_quota"]

_GET_QUOTA = 0x800007
_USER = 0
_BLOCK = 1024
_HAS_BLOCK_LIMITS = 1


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


def user_quota(source: str) -> int | None:
    """Bytes that this user may have on the file system of the device `source`; None where nothing limits it."""
    if not sys.platform.startswith("linux") or not source.startswith("/dev/"):
        return None
    found = _DiskQuota()
    command = ctypes.c_int(_GET_QUOTA << 8 | _USER)
    try:
        library = ctypes.CDLL(None, use_errno=True)
        failed = library.quotactl(command, os.fsencode(source), os.getuid(), ctypes.byref(found))
    except (OSError, AttributeError, ValueError):
        return None
    if failed or not found.valid & _HAS_BLOCK_LIMITS:
        return None
    limits = [limit for limit in (found.soft_limit, found.hard_limit) if limit]
    return min(limits) * _BLOCK if limits else None
