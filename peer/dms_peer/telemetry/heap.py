"""Returns the memory that many peers used to the system after they have left.

What breaks: CPython's allocator keeps an arena of 1 MiB as long as one object in it is alive. After a flood of peers
nearly every arena holds one: all memory that 350 attackers used was kept. The allocator of glibc can return every free
page, but on its own it returns only those at the end of its heap.
Measure: a long-lived program uses glibc's allocator (`use_system_allocator`) and returns free pages from time to time
(`return_free_memory`). The allocator costs a twelfth of the requests per second on streams of their own, and nothing
measurable on one stream. Large buffers are always mapped separately: by default glibc moves them into the heap after
some of them were freed.
Source: https://docs.python.org/3/c-api/memory.html#the-pymalloc-allocator, malloc_trim(3), mallopt(3).

On systems other than Linux with glibc nothing is done, and memory stays at its peak.
"""

from __future__ import annotations

import os
import sys
from typing import Final

__all__ = ["return_free_memory", "use_system_allocator"]

_ALLOCATOR: Final = "PYTHONMALLOC"
# Seconds between two walks through the heap, which take some milliseconds.
_INTERVAL: Final = 10.0
# Bytes. A buffer of this size or more is mapped separately. This is the initial value of glibc.
_LARGE: Final = 128 * 1024
_M_MMAP_THRESHOLD: Final = -3


def use_system_allocator() -> None:
    """Restart this program with glibc's allocator instead of Python's, unless it has it already.

    Call it first in a process, because all its state is lost. An allocator that the environment chooses is kept. It
    returns only if there is nothing to do.
    """
    if _has_glibc() and _ALLOCATOR not in os.environ and sys.orig_argv and sys.executable:
        os.execve(sys.executable, sys.orig_argv, os.environ | {_ALLOCATOR: "malloc"})


async def return_free_memory(interval: float = _INTERVAL) -> None:
    """Return the free pages of the heap to the system every `interval` seconds.

    Run it as one task of the process. On a system without glibc it ends at once; otherwise it runs until cancelled.
    """
    if not _has_glibc():
        return
    # Not at the top, because the restart would load it twice.
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
