"""The ledger on disk: SQLite, write-ahead log, synchronous=FULL; one process, one writer.

What `write` returned from survives kill -9 and power loss. What it raised from either happened or did not, never half;
`reopen` tells which.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec
from msgspec import Struct

from .book import MOST_ENDED, Change, Offer, Record
from .errors import StorageError
from .leases import EndedLease, Lease
from .ledger_file import connect_ledger, damaged_error, empty_log, lock_ledger, primary_code, storage_error
from .records import HistoryEntry
from .schema import Schema, ledger_schema
from .units import decode_value, encode_value

__all__ = ["Contents", "SQLiteStorage", "StoredLease"]

_encoder = msgspec.json.Encoder(enc_hook=encode_value)
_lease_decoder = msgspec.json.Decoder(Lease, dec_hook=decode_value)
_ended_decoder = msgspec.json.Decoder(EndedLease)
_offer_decoder = msgspec.json.Decoder(Offer, dec_hook=decode_value)

_SET_HEAD = "UPDATE ledger SET offer = ?, fence = ?, checksum = ?"

# Old rows are forgotten in steps, so that no change waits long for the disk meanwhile.
_PRUNE_STEP = 5_000


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

    def __init__(self, path: Path, *, boot_id: str, schema: Schema | None = None) -> None:
        """Opens the ledger, or makes it.

        Raises `LedgerInUseError`, `LedgerDamagedError`, `LedgerVersionError` or `StorageError`.
        """
        self.path = path
        self._boot_id = boot_id
        self._schema = schema or ledger_schema()
        self._lock: int | None = lock_ledger(path)
        try:
            self._db = connect_ledger(path, self._schema)
            try:
                # The row of the table `ledger`; it is written as a whole, because its checksum covers all of it.
                self._head = self._read_head()
            except BaseException:
                self._db.close()
                raise
        except BaseException:
            self._unlock()
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
        self._unlock()

    def load(self) -> Contents:
        """Reads all. Raises `StorageError`, or `LedgerDamagedError` on a row that cannot be read."""
        try:
            self._head = self._read_head()
            offer, fence = self._head
            return Contents(
                offer=_offer_decoder.decode(offer),
                fence=fence,
                leases=[
                    StoredLease(_lease_decoder.decode(body), due, boot_id)
                    for _, body, due, boot_id in self._rows("SELECT lease_id, body, due, boot_id, checksum FROM leases")
                ],
                ended=[
                    _ended_decoder.decode(body)
                    for _, body, _ in self._rows(
                        "SELECT * FROM (SELECT lease_id, body, ended, checksum FROM ended ORDER BY ended DESC"
                        f" LIMIT {MOST_ENDED}) ORDER BY ended"
                    )
                ],
            )
        except sqlite3.Error as error:
            raise storage_error(self.path, error) from error
        except (msgspec.MsgspecError, TypeError, UnicodeError) as error:
            raise damaged_error(self.path, f"a row cannot be read: {error}") from error

    def write(self, changes: Sequence[Change]) -> None:
        """Writes changes in their order as one transaction, and returns when the disk has them.

        Raises `StorageError`; then nothing of them is promised to anybody.
        """
        try:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                head = self._write_all(changes)
                self._db.execute("COMMIT")
            except BaseException:
                # Some errors have rolled back already; a second rollback would hide the first error.
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise
        except sqlite3.Error as error:
            raise storage_error(self.path, error) from error
        self._head = head

    def reopen(self) -> Contents:
        """Opens the file anew after an error, to learn what is in it. Raises `StorageError` while the disk refuses."""
        if self._lock is None:
            raise StorageError(f"the ledger {self.path} is closed")
        try:
            empty_log(self._db, self.path)
        except sqlite3.Error as error:
            # On a full disk the connection is still good for reading.
            if primary_code(error) == sqlite3.SQLITE_FULL:
                raise storage_error(self.path, error) from error
        with contextlib.suppress(sqlite3.Error):
            self._db.close()
        self._db = connect_ledger(self.path, self._schema)
        contents = self.load()
        self._probe()
        return contents

    def _probe(self) -> None:
        # A disk that can be read again may still take nothing.
        try:
            self._db.execute(_SET_HEAD, _with_checksum(*self._head))
        except sqlite3.Error as error:
            raise storage_error(self.path, error) from error

    def history(self, *, limit: int, before: int | None = None) -> list[tuple[int, HistoryEntry]]:
        """The newest entries first, with their numbers; at most `limit`, all older than number `before`."""
        try:
            rows = self._db.execute(
                "SELECT number, at, actor, action, lease_id, reason, detail FROM history"
                " WHERE number < ? ORDER BY number DESC LIMIT ?",
                (2**62 if before is None else before, limit),
            ).fetchall()
        except sqlite3.Error as error:
            raise storage_error(self.path, error) from error
        return [
            (
                number,
                HistoryEntry(at=at, actor=actor, action=action, lease_id=lease_id, reason=reason, detail=detail),
            )
            for number, at, actor, action, lease_id, reason, detail in rows
        ]

    def prune(self, *, history_before: float, ended_before: float) -> bool:
        """Forgets some history and ended leases older than these Unix times; says whether there may be more.

        Raises `StorageError`.
        """
        try:
            gone = (
                self._db.execute(
                    "DELETE FROM history WHERE number IN (SELECT number FROM history WHERE at < ? LIMIT ?)",
                    (history_before, _PRUNE_STEP),
                ).rowcount,
                self._db.execute(
                    "DELETE FROM ended WHERE lease_id IN (SELECT lease_id FROM ended WHERE ended < ? LIMIT ?)",
                    (ended_before, _PRUNE_STEP),
                ).rowcount,
            )
        except sqlite3.Error as error:
            raise storage_error(self.path, error) from error
        return max(gone) >= _PRUNE_STEP

    def _write_all(self, changes: Sequence[Change]) -> tuple[str, int]:
        last: dict[str, Record | None] = {}
        for change in changes:
            for before, after in change.leases:
                record = after or before
                if record is not None:
                    last[record.lease.lease_id] = after
        run = self._db.executemany
        run("DELETE FROM leases WHERE lease_id = ?", [(key,) for key, record in last.items() if record is None])
        run(
            "INSERT OR REPLACE INTO leases VALUES (?, ?, ?, ?, ?)",
            [
                _with_checksum(key, _text(record.lease), _real(record.due), self._boot_id)
                for key, record in last.items()
                if record
            ],
        )
        run("INSERT OR REPLACE INTO ended VALUES (?, ?, ?, ?)", _ended_rows(changes))
        run(
            "INSERT INTO history (at, actor, action, lease_id, reason, detail) VALUES (?, ?, ?, ?, ?, ?)",
            _history_rows(changes),
        )
        return self._write_head(changes)

    def _write_head(self, changes: Sequence[Change]) -> tuple[str, int]:
        offers = [change.offer[1] for change in changes if change.offer]
        offer, fence = self._head
        head = (_text(offers[-1]) if offers else offer, max([fence, *(change.fence for change in changes)]))
        if head != self._head:
            self._db.execute(_SET_HEAD, _with_checksum(*head))
        return head

    def _read_head(self) -> tuple[str, int]:
        try:
            for offer, fence in self._rows("SELECT offer, fence, checksum FROM ledger"):
                return offer, fence
        except sqlite3.Error as error:
            raise storage_error(self.path, error) from error
        raise damaged_error(self.path, "the row that says what is offered is gone")

    def _rows(self, query: str) -> Iterator[tuple[Any, ...]]:
        for row in self._db.execute(query):
            values = row[:-1]
            if _with_checksum(*values) != row:
                raise damaged_error(self.path, f"a row is not as it was written: {str(values)[:200]}")
            yield values

    def _unlock(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def _with_checksum(*values: str | float | None) -> tuple[str | float | None, ...]:
    return (*values, zlib.crc32(repr(values).encode()))


def _ended_rows(changes: Iterable[Change]) -> list[tuple[str | float | None, ...]]:
    return [_with_checksum(end.lease_id, _text(end), _real(end.ended)) for change in changes for end in change.ended]


def _history_rows(changes: Iterable[Change]) -> Iterator[tuple[float, str, str, str, str, str]]:
    for change in changes:
        for entry in change.entries:
            yield (entry.at, entry.actor, entry.action, entry.lease_id, entry.reason, entry.detail)


def _real(seconds: float | None) -> float | None:
    # SQLite gives a float back for every number in a REAL column, and the checksum is over what comes back.
    return None if seconds is None else float(seconds)


def _text(value: object) -> str:
    return _encoder.encode(value).decode()
