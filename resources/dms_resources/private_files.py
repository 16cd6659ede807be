"""Files that only the user of the peer may read, written whole or not at all.

Rules:
1. The new contents are written to a draft beside the file, synced, and moved into place. A crash leaves the old file.
2. The file has mode 0600, for any umask and any mode of the old file.
3. No link is followed: a link in the place of the file is replaced, and no other user can put one in the place of the
   draft.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

__all__ = ["write_private"]


def write_private(path: Path, data: bytes, *, replace: bool = True) -> None:
    """Write `data` to a file at `path`. Blocks on the disk, and returns when the data is on it.

    Raises OSError, or FileExistsError if there is a file and `replace` is false; then nothing has changed. Two
    processes that write the same file need a lock between them.
    """
    if not path.name:
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    draft = path.with_name(f".{path.name}.draft")
    # A writer that was killed may have left it.
    draft.unlink(missing_ok=True)
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            # The umask may have removed bits that the owner needs.
            os.fchmod(descriptor, 0o600)
            file.write(data)
            file.flush()
            os.fsync(descriptor)
        if replace:
            os.replace(draft, path)
        else:
            # A link fails if the name is taken; a rename would replace the file.
            os.link(draft, path)
    finally:
        draft.unlink(missing_ok=True)
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    # Without this sync the name may be lost in a power cut.
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
