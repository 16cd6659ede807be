"""Reads the files that the peer keeps in its home, and trusts nothing that it finds there.

A file is accepted only if it is a regular file, not reached by a link, of a bounded size, and owned by the user of the
process or of the directory. Opening one never waits, so that a FIFO in place of a file cannot block the start.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from pathlib import Path

__all__ = ["read_state", "set_aside"]


def read_state(path: Path, most: int) -> bytes:
    """The content of a file of at most `most` bytes. Blocks on disk.

    Raises FileNotFoundError, and OSError for a file that is not accepted; its `strerror` says why.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "it is not a regular file")
        # Root may read the home of a user.
        if status.st_uid not in (os.geteuid(), path.parent.stat().st_uid):
            raise OSError(errno.EPERM, f"it belongs to user {status.st_uid}")
        # Not before it is known to be a file: of a directory the descriptor would stay open.
        with open(descriptor, "rb", closefd=False) as file:
            content = file.read(most + 1)
    finally:
        os.close(descriptor)
    if len(content) > most:
        raise OSError(errno.EFBIG, f"it is larger than {most} bytes")
    return content


def set_aside(path: Path, reason: object) -> None:
    """Rename a damaged file, and log its name, the reason and its new name. Blocks on disk. Raises nothing."""
    # Every command loads this module, and few have anything to log.
    import logging

    log = logging.getLogger(__name__)
    aside = path.with_name(f"{path.name}.damaged-{time.time_ns()}")
    text = " ".join(str(getattr(reason, "strerror", None) or reason).split())[:200]
    try:
        path.rename(aside)
    except OSError as error:
        log.warning("ignored the damaged file %s (%s); it cannot be renamed: %s", path, text, error.strerror)
    else:
        log.warning("put the damaged file %s aside as %s: %s", path, aside.name, text)
