"""Tells the owner's commands that a peer is starting: the peer holds a lock on a file of the home until its socket
answers.

A start takes seconds, or half a minute if a GPU driver hangs. Meanwhile a command that opened the ledger would fail
because it is in use, and would query the same driver. The kernel releases the lock with the process, so that a killed
start leaves nothing behind. This module does not need trio, so that a command that only queries starts at once.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from pathlib import Path
from types import TracebackType
from typing import Final, Self

__all__ = ["StartMark", "is_starting"]

# A command checks the lock by taking it for an instant. More failures in a row than this have another cause.
_TRIES: Final = 50
_PAUSE: Final = 0.002


class StartMark:
    """The mark of one start at `path`. Leaving its context removes the mark, if it was not removed before."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor: int | None = None

    def __enter__(self) -> Self:
        self.set()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()

    def set(self) -> None:
        """Set the mark, if it is not set already. Blocks for at most 0.1 s.

        If the file cannot be created or locked, the peer still starts, and commands wait for the ledger instead.
        """
        if self._descriptor is not None:
            return
        with contextlib.suppress(OSError):
            self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            _lock(self._descriptor)

    def remove(self) -> None:
        """Remove the mark, if it is set."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def _lock(descriptor: int) -> None:
    for _ in range(_TRIES):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(_PAUSE)
        else:
            return


def is_starting(path: Path) -> bool:
    """Whether a process holds the mark at `path`. It neither waits nor creates the file."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        # Shared, so that commands that check at the same time do not see each other as a peer.
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return False
