"""Tells the owner's commands that a peer is starting: it holds a lock on a file of the home until its socket answers.

A start takes seconds, or half a minute where a GPU driver hangs. A command that opened the ledger meanwhile would be
told that it is in use, and would ask the same driver. The kernel drops the lock with the process, so that a start that
was killed leaves nothing behind. Needs no trio, so that a command that only asks begins at once.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

__all__ = ["is_starting", "starting"]

# A command looks at the lock by taking it for an instant; more of them in a row than this have other trouble.
_TRIES: Final = 50
_PAUSE: Final = 0.002


@contextmanager
def starting(path: Path) -> Iterator[None]:
    """Marks a start at `path` while the block runs.

    A file that cannot be made or locked is no reason not to start: commands then wait for the ledger instead.
    """
    descriptor = None
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        _lock(descriptor)
    try:
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _lock(descriptor: int) -> None:
    for _ in range(_TRIES):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(_PAUSE)
        else:
            return


def is_starting(path: Path) -> bool:
    """Whether a process holds the mark at `path`. Neither waits nor makes the file."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        # Shared, so that many commands that look do not take each other for a peer.
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return False
