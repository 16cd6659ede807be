"""The peers of this machine that offer its real hardware now.

Each home has a ledger of its own, so two homes on one machine would both offer all of it. A peer registers itself with
a locked file in a folder that all users share. The kernel releases the lock when the peer ends, even if it is killed.
The file contains only the id of the process. Peers in containers do not see each other.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

__all__ = ["other_peers", "register_peer", "shared_folder"]

_MOST_FILES: Final = 256
_LONGEST_NUMBER: Final = 20


def shared_folder() -> Path:
    """The folder of the registry: below `/run/lock` if all users may write there."""
    lock = Path("/run/lock")
    return (lock if os.access(lock, os.W_OK | os.X_OK) else Path(tempfile.gettempdir())) / "dms-peer"


@contextmanager
def register_peer(home: Path, folder: Path | None = None) -> Iterator[None]:
    """Register this process as the peer of `home` while the block runs.

    If the registry cannot be written, the peer runs without being registered. Blocks on disk.
    """
    path = (folder or shared_folder()) / _name_of(home)
    descriptor = _open_locked(path)
    try:
        yield
    finally:
        if descriptor is not None:
            with contextlib.suppress(OSError):
                path.unlink()
            os.close(descriptor)


def _open_locked(path: Path) -> int | None:
    try:
        with contextlib.suppress(FileExistsError):
            path.parent.mkdir()
            # As for /tmp: all users may add files, and remove their own.
            path.parent.chmod(0o1777)
        descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.truncate(descriptor, 0)
        os.write(descriptor, str(os.getpid()).encode())
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def other_peers(home: Path, folder: Path | None = None) -> tuple[str, ...]:
    """A sentence for each running peer of another home that offers this machine. Never raises. Blocks on disk."""
    folder = folder or shared_folder()
    try:
        names = sorted(os.listdir(folder))[:_MOST_FILES]
    except OSError:
        return ()
    found = (_process_of(folder / name) for name in names if name != _name_of(home))
    return tuple(
        f"another peer on this machine (process {process}) offers it too: what both offer is counted twice"
        for process in found
        if process is not None
    )


def _process_of(path: Path) -> str | None:
    """The id of the process that has this file locked; None if there is none."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        text = os.read(descriptor, _LONGEST_NUMBER).decode("ascii", "replace")
        return text if text.isdecimal() else "unknown"
    except OSError:
        return None
    finally:
        os.close(descriptor)
    return None


def _name_of(home: Path) -> str:
    return f"{os.getuid()}-{hashlib.sha256(os.path.realpath(home).encode('utf-8', 'surrogateescape')).hexdigest()[:32]}"
