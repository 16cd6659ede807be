"""Memory that many peers took goes back to the system when they have left.

What breaks: CPython's own allocator keeps an arena of 1 MiB as long as a single object in it lives. After a flood of
peers there is one in nearly each: of the memory that 350 attackers took, all of it stayed. The allocator of glibc can
return every free page, but does so by itself at the end of its heap only.
Measure: a long-lived program uses glibc's allocator (`use_system_allocator`), which costs it a twelfth of its questions
on streams of their own and nothing that can be seen of those on one stream, and has free pages returned from time to
time (`return_free_memory`). Large buffers are kept out of the heap for good: left alone, glibc moves them into it once
it has seen some of them freed.
Source: https://docs.python.org/3/c-api/memory.html#the-pymalloc-allocator, malloc_trim(3), mallopt(3).

On other systems than Linux with glibc nothing is done, and memory stays what it was at the worst moment.
"""

from __future__ import annotations

import os
import sys
from typing import Final

__all__ = ["return_free_memory", "use_system_allocator"]

_ALLOCATOR: Final = "PYTHONMALLOC"
# Seconds between two walks through the heap, which take some milliseconds.
_INTERVAL: Final = 10.0
# Bytes from which on a buffer is mapped by itself: glibc's own first choice.
_LARGE: Final = 128 * 1024
_M_MMAP_THRESHOLD: Final = -3


def use_system_allocator() -> None:
    """Replaces this program by itself with glibc's allocator in place of Python's, where it is not so already.

    For the beginning of a process: whatever it did is lost. The environment may choose another allocator. Returns where
    there is nothing to do, else never.
    """
    if _has_glibc() and _ALLOCATOR not in os.environ and sys.orig_argv and sys.executable:
        os.execve(sys.executable, sys.orig_argv, os.environ | {_ALLOCATOR: "malloc"})


async def return_free_memory(interval: float = _INTERVAL) -> None:
    """Returns the free pages of the heap to the system every `interval` seconds.

    A task of its own, once in a process. Ends where the system has no way to do it, else runs until it is cancelled.
    """
    if not _has_glibc():
        return
    # Not above: whoever begins anew would load them twice.
    import ctypes

    import trio

    glibc = ctypes.CDLL(None)
    glibc.malloc_trim.argtypes = (ctypes.c_size_t,)
    glibc.mallopt(_M_MMAP_THRESHOLD, _LARGE)
    while True:
        await trio.sleep(interval)
        glibc.malloc_trim(0)


def _has_glibc() -> bool:
    if sys.platform != "linux":
        return False
    try:
        return bool(os.confstr("CS_GNU_LIBC_VERSION"))
    except (OSError, ValueError):
        return False
