"""The ledger on disk: SQLite, write-ahead log, synchronous=FULL; one process, one writer.

What `write` returned from survives kill -9 and power loss. What it raised from either happened or did not, never half;
`reopen` and `load` tell which.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from importlib import resources
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import msgspec
from msgspec import Struct

from .book import Change, HistoryEntry, Offer, Record
from .errors import LedgerDamagedError, LedgerInUseError, LedgerVersionError, StorageError
from .leases import EndedLease, Lease
from .units import decode_value, encode_value

__all__ = ["Contents", "SQLiteStorage", "StoredLease"]

_APPLICATION_ID: Final = 0x444D5352  # "DMSR"
_VERSION: Final = 1

_encoder = msgspec.json.Encoder(enc_hook=encode_value)
_lease_decoder = msgspec.json.Decoder(Lease, dec_hook=decode_value)
_ended_decoder = msgspec.json.Decoder(EndedLease)
_offer_decoder = msgspec.json.Decoder(Offer, dec_hook=decode_value)


class StoredLease(Struct, frozen=True):
    """A lease as it was stored: `due` counts on the steady clock of the boot `boot_id`."""

    lease: Lease
    due: float | None
    boot_id: str


class Contents(Struct, frozen=True, kw_only=True):
    """Everything that the ledger needs to go on."""

    offer: Offer
    fence: int
    leases: list[StoredLease]
    ended: list[EndedLease]


class SQLiteStorage:
    """One open ledger file. Everything here blocks: the event loop calls it in a worker thread, one call at a time."""

    def __init__(self, path: Path, *, boot_id: str) -> None:
        """Opens the ledger, or makes it.

        Raises `LedgerInUseError`, `LedgerDamagedError`, `LedgerVersionError` or `StorageError`.
        """
        self.path = path
        self._boot_id = boot_id
        self._lock = _lock(path)
        try:
            self._db = self._connect()
        except BaseException:
            os.close(self._lock)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file and lets another process have it."""
        # A disk that fails now has lost nothing: all that was acknowledged is in the file already.
        with contextlib.suppress(sqlite3.Error):
            self._db.close()
        os.close(self._lock)

    def load(self) -> Contents:
        """Reads all. Raises `StorageError`, or `LedgerDamagedError` on a row that cannot be read."""
        try:
            offer, fence = self._db.execute("SELECT offer, fence FROM ledger").fetchone()
            return Contents(
                offer=_offer_decoder.decode(offer),
                fence=fence,
                leases=[
                    StoredLease(_lease_decoder.decode(body), due, boot_id)
                    for body, due, boot_id in self._db.execute("SELECT body, due, boot_id FROM leases")
                ],
                ended=[
                    _ended_decoder.decode(body) for (body,) in self._db.execute("SELECT body FROM ended ORDER BY ended")
                ],
            )
        except sqlite3.Error as error:
            raise _storage_error(self.path, error) from error
        except (msgspec.MsgspecError, TypeError) as error:
            raise _damaged(self.path, f"a row cannot be read: {error}") from error

    def write(self, changes: Sequence[Change]) -> None:
        """Writes changes in their order as one transaction, and returns when the disk has them.

        Raises `StorageError`; then nothing of them is promised to anybody.
        """
        try:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                self._write_all(changes)
                self._db.execute("COMMIT")
            except BaseException:
                # Some errors have rolled back already; a second rollback would hide the first error.
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise
        except sqlite3.Error as error:
            raise _storage_error(self.path, error) from error

    def reopen(self) -> Contents:
        """Opens the file anew after an error, to learn what is in it. Raises `StorageError` while the disk refuses."""
        with contextlib.suppress(sqlite3.Error):
            self._db.close()
        self._db = self._connect()
        return self.load()

    def history(self, *, limit: int, before: int | None = None) -> list[tuple[int, HistoryEntry]]:
        """The newest entries first, with their numbers; at most `limit`, all older than number `before`."""
        try:
            rows = self._db.execute(
                "SELECT number, at, actor, action, lease_id, reason, detail FROM history"
                " WHERE number < ? ORDER BY number DESC LIMIT ?",
                (2**62 if before is None else before, limit),
            ).fetchall()
        except sqlite3.Error as error:
            raise _storage_error(self.path, error) from error
        return [
            (
                number,
                HistoryEntry(at=at, actor=actor, action=action, lease_id=lease_id, reason=reason, detail=detail),
            )
            for number, at, actor, action, lease_id, reason, detail in rows
        ]

    def prune(self, *, history_before: float, ended_before: float) -> None:
        """Forgets history and ended leases older than these Unix times. Raises `StorageError`."""
        try:
            self._db.execute("DELETE FROM history WHERE at < ?", (history_before,))
            self._db.execute("DELETE FROM ended WHERE ended < ?", (ended_before,))
        except sqlite3.Error as error:
            raise _storage_error(self.path, error) from error

    def _write_all(self, changes: Sequence[Change]) -> None:
        last: dict[str, Record | None] = {}
        for change in changes:
            for before, after in change.leases:
                record = after or before
                if record is not None:
                    last[record.lease.lease_id] = after
        run = self._db.executemany
        run("DELETE FROM leases WHERE lease_id = ?", [(key,) for key, record in last.items() if record is None])
        run(
            "INSERT OR REPLACE INTO leases VALUES (?, ?, ?, ?)",
            [(key, _text(record.lease), record.due, self._boot_id) for key, record in last.items() if record],
        )
        run("INSERT OR REPLACE INTO ended VALUES (?, ?, ?)", _ended_rows(changes))
        run(
            "INSERT INTO history (at, actor, action, lease_id, reason, detail) VALUES (?, ?, ?, ?, ?, ?)",
            _history_rows(changes),
        )
        offers = [change.offer[1] for change in changes if change.offer]
        if offers:
            self._db.execute("UPDATE ledger SET offer = ?", (_text(offers[-1]),))
        fence = max((change.fence for change in changes), default=0)
        if fence:
            self._db.execute("UPDATE ledger SET fence = max(fence, ?)", (fence,))

    def _connect(self) -> sqlite3.Connection:
        try:
            db = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False, timeout=5.0)
        except sqlite3.Error as error:
            raise _storage_error(self.path, error) from error
        try:
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = FULL")
            self._prepare(db)
        except sqlite3.Error as error:
            db.close()
            raise _storage_error(self.path, error) from error
        except BaseException:
            db.close()
            raise
        os.chmod(self.path, 0o600)
        return db

    def _prepare(self, db: sqlite3.Connection) -> None:
        (application,) = db.execute("PRAGMA application_id").fetchone()
        (version,) = db.execute("PRAGMA user_version").fetchone()
        if not version and not db.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]:
            _create(db)
            return
        if application != _APPLICATION_ID or version > _VERSION:
            raise LedgerVersionError(
                f"{self.path} is not a ledger of this version (it says {application:#x} version {version})",
                hint="use the newer dms-peer that wrote it, or another --home",
            )
        (verdict,) = db.execute("PRAGMA quick_check(1)").fetchone()
        if verdict != "ok":
            raise _damaged(self.path, verdict)


def _create(db: sqlite3.Connection) -> None:
    schema = resources.files(__package__).joinpath("schema.sql").read_text()
    db.executescript(
        f"BEGIN; {schema} PRAGMA application_id = {_APPLICATION_ID}; PRAGMA user_version = {_VERSION}; COMMIT;"
    )


def _lock(path: Path) -> int:
    lock_path = path.with_name(path.name + ".lock")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StorageError(f"cannot open {lock_path}: {error.strerror}", hint="choose a writable --home") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        owner = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip()
        os.close(descriptor)
        raise LedgerInUseError(
            f"the ledger {path} is in use" + (f" by process {owner}" if owner else ""),
            hint="stop that process or choose another --home",
        ) from None
    # The number is only for people, so a disk that is full now is no reason to fail.
    with contextlib.suppress(OSError):
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, str(os.getpid()).encode(), 0)
    return descriptor


def _ended_rows(changes: Iterable[Change]) -> list[tuple[str, str, float]]:
    return [(end.lease_id, _text(end), end.ended) for change in changes for end in change.ended]


def _history_rows(changes: Iterable[Change]) -> Iterator[tuple[float, str, str, str, str, str]]:
    for change in changes:
        for entry in change.entries:
            yield (entry.at, entry.actor, entry.action, entry.lease_id, entry.reason, entry.detail)


def _text(value: object) -> str:
    return _encoder.encode(value).decode()


def _storage_error(path: Path, error: sqlite3.Error) -> StorageError:
    if isinstance(error, sqlite3.DatabaseError) and ("malformed" in str(error) or "not a database" in str(error)):
        return _damaged(path, str(error))
    return StorageError(
        f"the ledger {path} cannot be written or read: {error}",
        hint="free space or repair the disk; nothing was lost, and promises go on when it works again",
    )


def _damaged(path: Path, what: str) -> LedgerDamagedError:
    return LedgerDamagedError(
        f"the ledger {path} is damaged: {what}",
        hint=f"it was left as it is: restore {path.name} from a copy, or move it away to begin with an empty ledger",
    )
