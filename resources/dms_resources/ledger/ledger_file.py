"""The ledger's file: created whole, identified before it is changed, locked against a second process.

`ledger.db` is the database, and `ledger.db-wal` the log of its last changes. `ledger.db.lock` contains the id of the
process that has it open. `ledger.db.version-N` is the copy that was made before version N was upgraded. The database
itself is locked too, because it may also be reached under another name or mount point, with another lock file beside
it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
from contextlib import closing
from pathlib import Path
from urllib.parse import quote

from ..errors import LedgerDamagedError, LedgerInUseError, LedgerVersionError, StorageError
from .schema import APPLICATION_ID, Schema

__all__ = [
    "LedgerLock",
    "connect_ledger",
    "damaged_error",
    "empty_log",
    "lock_ledger",
    "make_ledger",
    "primary_code",
    "storage_error",
]


class LedgerLock:
    """The locks of one process on a ledger until it closes it: on the lock file, and on the database."""

    def __init__(self, path: Path, open_background: int) -> None:
        self._path = path
        self._beside = open_background
        self._itself: int | None = None

    def claim_file(self) -> None:
        """Lock the database itself, which exists by now. Raises `LedgerInUseError` or `StorageError`."""
        try:
            # Closed after the connection: when a process closes a file, it loses the locks that SQLite has on it.
            descriptor = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            sentence = f"the ledger {self._path} cannot be opened: {error.strerror}"
            raise StorageError(sentence, hint=_DISK_HINT) from error
        _lock(descriptor, self._path, "by another name or in another place")
        self._itself = descriptor

    def check_place(self) -> None:
        """Raise `StorageError` if the file at the path is no longer the one that was locked."""
        if self._itself is None:
            return
        try:
            there, claimed = os.stat(self._path), os.fstat(self._itself)
        except OSError as error:
            raise StorageError(f"the ledger {self._path} is gone: {error.strerror}", hint=_PLACE_HINT) from error
        if not os.path.samestat(there, claimed):
            raise StorageError(f"another file is in the place of the ledger {self._path}", hint=_PLACE_HINT)

    def close(self) -> None:
        """Release the locks. The connection has been closed before."""
        if self._itself is not None:
            os.close(self._itself)
        os.close(self._beside)


def lock_ledger(path: Path) -> LedgerLock:
    """Lock the ledger for this process until the lock is closed. Its file need not exist yet.

    Raises `LedgerInUseError`, or `StorageError` if the folder cannot be written.
    """
    lock_path = _beside(path, ".lock")
    try:
        _make_folder(path.parent)
        descriptor = os.open(lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StorageError(f"cannot open {lock_path}: {error.strerror}", hint="choose a writable --home") from error
    owner = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip()
    _lock(descriptor, path, f"by process {owner}" if owner else "")
    # The process id in the lock file is only for people, so a full disk is ignored.
    with contextlib.suppress(OSError):
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, str(os.getpid()).encode(), 0)
    return LedgerLock(path, descriptor)


def _lock(descriptor: int, path: Path, owner: str) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        if not isinstance(error, BlockingIOError):
            raise StorageError(f"cannot lock {path}: {error.strerror}", hint="choose a local disk") from error
        raise LedgerInUseError(
            f"the ledger {path} is in use {owner}".rstrip(), hint="stop that process or choose another --home"
        ) from None


def _make_folder(folder: Path) -> None:
    missing = [one for one in (folder, *folder.parents) if not one.exists()]
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    # If a power cut removed the folder, the ledger in it would be lost.
    for one in missing:
        with contextlib.suppress(PermissionError):
            _sync(one.parent)


def make_ledger(path: Path, schema: Schema) -> None:
    """Create an empty ledger if there is none. The caller holds the lock. Raises `LedgerDamagedError` or
    `StorageError`.
    """
    try:
        if not path.exists():
            _make(path, schema)
    except sqlite3.Error as error:
        raise storage_error(path, error) from error
    except OSError as error:
        raise StorageError(f"the ledger {path} cannot be made: {error.strerror}", hint=_DISK_HINT) from error


def connect_ledger(path: Path, schema: Schema) -> sqlite3.Connection:
    """Open the ledger for writing, and upgrade an older one.

    A file that is damaged, newer or no ledger is not changed. A missing file is not created, because the ledger was
    lost. The caller holds the lock. Raises `LedgerDamagedError`, `LedgerVersionError` or `StorageError`.
    """
    try:
        version = _recognise(path, schema)
        db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=5.0)
        try:
            _set_up(db, path)
            if version < schema.version:
                _upgrade(db, path, schema, version)
        except BaseException:
            db.close()
            raise
    except sqlite3.Error as error:
        raise storage_error(path, error) from error
    except UnicodeError as error:
        # SQLite's message on a damaged file may quote its bytes.
        raise damaged_error(path, "it has text that is none") from error
    except OSError as error:
        raise StorageError(f"the ledger {path} cannot be opened: {error.strerror}", hint=_DISK_HINT) from error
    return db


def _make(path: Path, schema: Schema) -> None:
    # It is created under another name and moved into place whole, because an empty file with the ledger's name counts
    # as damaged.
    for left in ("-wal", "-journal"):
        log = _beside(path, left)
        if log.exists() and log.stat().st_size:
            raise damaged_error(path, f"it is missing, but its log {log.name} is there")
        log.unlink(missing_ok=True)
    new = _beside(path, ".new")
    for name in (new, _beside(new, "-wal"), _beside(new, "-shm"), _beside(new, "-journal")):
        name.unlink(missing_ok=True)
    os.close(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    with closing(sqlite3.connect(new, isolation_level=None)) as db:
        _set_up(db, new)
        schema.create(db)
        # A close that fails to empty the log reports nothing.
        empty_log(db, new)
    _put_in_place(new, path)


def _recognise(path: Path, schema: Schema) -> int:
    size = path.stat().st_size
    if size < _HEADER_BYTES:
        raise damaged_error(path, f"the file has {size} bytes" if size else "the file is empty")
    # Read-only: not even the journal mode may change before the file is known to be an undamaged ledger.
    with closing(sqlite3.connect(f"file:{quote(os.fspath(path))}?mode=ro", uri=True)) as db:
        (application,) = db.execute("PRAGMA application_id").fetchone()
        version = int(db.execute("PRAGMA user_version").fetchone()[0])
        if application != APPLICATION_ID or not 1 <= version <= schema.version:
            raise LedgerVersionError(
                f"{path} is not a ledger that this version can read (it says {application:#x} version {version})",
                hint="use the newer dms-peer that wrote it, or another --home",
            )
        (verdict,) = db.execute("PRAGMA quick_check(1)").fetchone()
        if verdict != "ok":
            raise damaged_error(path, verdict)
    return version


def _set_up(db: sqlite3.Connection, path: Path) -> None:
    (mode,) = db.execute("PRAGMA journal_mode = WAL").fetchone()
    if mode != "wal":
        raise StorageError(f"the disk of {path} has no shared memory for a write-ahead log", hint="choose a local disk")
    db.execute("PRAGMA synchronous = FULL")
    # While another program reads for a long time, the log cannot be reset and grows. Its space is freed afterwards.
    db.execute(f"PRAGMA journal_size_limit = {_LOG_BYTES}")
    empty_log(db, path)


def empty_log(db: sqlite3.Connection, path: Path) -> None:
    """Write the log to the database, synced, and start a new log.

    This is called before further changes follow a log that was read back: after a failed fsync its end may be in the
    page cache and not on the disk. Raises `sqlite3.Error`, or `StorageError` while another program reads the file.
    """
    busy, _, _ = db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    if busy:
        raise StorageError(f"another program reads {path} at this moment", hint="close it and try again")


def _upgrade(db: sqlite3.Connection, path: Path, schema: Schema, version: int) -> None:
    copy, new = _beside(path, f".version-{version}"), _beside(path, ".new")
    new.unlink(missing_ok=True)
    os.close(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    with closing(sqlite3.connect(new, isolation_level=None)) as target:
        db.backup(target)
        # The copy is complete without a log beside it.
        target.execute("PRAGMA journal_mode = DELETE")
    _put_in_place(new, copy)
    schema.upgrade(db, version)


def _put_in_place(new: Path, path: Path) -> None:
    _sync(new)
    os.replace(new, path)
    _sync(path.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


# The header of an SQLite database.
_HEADER_BYTES = 100
_LOG_BYTES = 64 * 1024 * 1024
_PLACE_HINT = "stop the peer, put the ledger back and start it again: what it acknowledged is in the file that went"
_DISK_HINT = "free space or repair the disk; nothing was lost, and promises go on when it works again"
_DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def primary_code(error: sqlite3.Error) -> int | None:
    """SQLite's code without its details. None for the module's own errors, such as text that is not UTF-8."""
    code = getattr(error, "sqlite_errorcode", None)
    return None if code is None else code & 0xFF


def storage_error(path: Path, error: sqlite3.Error) -> StorageError:
    """SQLite's error as an error of this package."""
    if primary_code(error) in _DAMAGED:
        return damaged_error(path, str(error))
    name = getattr(error, "sqlite_errorname", "")
    return StorageError(
        f"the ledger {path} cannot be written or read: {error}" + (f" ({name})" if name else ""), hint=_DISK_HINT
    )


def damaged_error(path: Path, what: str) -> LedgerDamagedError:
    """The error of a damaged ledger, with a hint for the owner."""
    return LedgerDamagedError(
        f"the ledger {path} is damaged: {what}",
        hint=f"it was left as it is: restore {path.name} from a copy, or move it away, together with"
        f" {path.name}-wal, to begin with an empty ledger",
    )
