"""Files with a secret, which only the user of the peer may read.

Rules:
1. A file is written whole or not at all, with mode 0600, and an existing one is never overwritten.
2. A file that other users can read or that another user owns is refused, not repaired: the secret may be known.
"""

from __future__ import annotations

import os
import secrets
import stat
from pathlib import Path

from ..errors import IdentityError

__all__ = ["create_key_file", "damaged_key", "read_key_file"]

# Bytes. No key file is longer.
MAX_FILE_SIZE = 4096
OTHERS = stat.S_IRWXG | stat.S_IRWXO


def read_key_file(path: Path, missing_hint: str) -> bytes:
    """The contents of `path`. Raises IdentityError (missing, unreadable, exposed, foreign, damaged). Blocks on disk."""
    try:
        status, raw = _read(path)
    except FileNotFoundError as error:
        raise IdentityError(
            f"there is no key file {path}", code="key_missing", path=str(path), hint=missing_hint
        ) from error
    except OSError as error:
        raise IdentityError(
            f"cannot read the key file {path}: {error.strerror}",
            code="key_unreadable",
            path=str(path),
            hint="run the peer as the user who owns its home directory",
        ) from error
    _check_owner(path, status)
    return raw


def _read(path: Path) -> tuple[os.stat_result, bytes]:
    # Without O_NONBLOCK a FIFO in place of the file would block the peer at start.
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        status = os.fstat(descriptor)
        return status, os.read(descriptor, MAX_FILE_SIZE) if stat.S_ISREG(status.st_mode) else b""
    finally:
        os.close(descriptor)


def _check_owner(path: Path, status: os.stat_result) -> None:
    # This is the status of the open file, because the file at the path could be replaced in between.
    if not stat.S_ISREG(status.st_mode):
        raise damaged_key(path, "it is not a regular file")
    if status.st_uid != os.geteuid():
        raise IdentityError(
            f"the key file {path} belongs to user {status.st_uid}, not to {os.geteuid()} who runs this peer",
            code="key_foreign",
            path=str(path),
            hint=f"run the peer as its owner, or: chown {os.geteuid()} {path}",
        )
    if status.st_mode & OTHERS:
        raise IdentityError(
            f"other users can access the key file {path} (mode {stat.S_IMODE(status.st_mode):04o})",
            code="key_exposed",
            path=str(path),
            hint=f"chmod 600 {path}; if somebody may have read it, delete it and make a new one",
        )


def damaged_key(path: Path, why: str) -> IdentityError:
    """The error for a file without a usable key."""
    return IdentityError(
        f"the key file {path} is damaged: {why}",
        code="key_damaged",
        path=str(path),
        hint="restore it from a backup, or delete it and make a new one",
    )


def create_key_file(path: Path, content: bytes) -> None:
    """Create a file at `path`. Raises FileExistsError if it exists, and OSError. Blocks on disk."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            # The umask may have removed bits that the owner needs.
            os.fchmod(descriptor, 0o600)
            file.write(content)
            file.flush()
            os.fsync(descriptor)
        # A link fails if the name is taken, but a rename would replace the file: an existing key must never be
        # replaced.
        os.link(draft, path)
    finally:
        os.unlink(draft)
    _sync_directory(path.parent)


def _sync_directory(directory: Path) -> None:
    # Otherwise a power cut could lose the file's name, and with it an identity that other peers know.
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
