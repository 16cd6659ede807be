"""The ledger on disk: SQLite, write-ahead log, synchronous=FULL; one process, one writer.

When `write` returns, the changes survive kill -9 and power loss. When `write` raises, the changes took place as a whole
or not at all; `reopen` finds out which.
"""

from __future__ import annotations

import contextlib
import math
import os
import sqlite3
import zlib
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice, takewhile
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec
from msgspec import Struct

from ..errors import StorageError
from ..units import decode_value, encode_value
from .book import MOST_ENDED, Change, OfferState, Record
from .events import HistoryPage
from .history import HistoryEntry
from .leases import EndedLease, Lease
from .ledger_file import (
    LedgerLock,
    connect_ledger,
    damaged_error,
    empty_log,
    lock_ledger,
    make_ledger,
    primary_code,
    storage_error,
)
from .schema import Schema, ledger_schema

__all__ = ["MOST_HISTORY", "Contents", "SQLiteStorage", "StoredLease"]

MOST_HISTORY = 1_000_000
"""The largest number of entries in the history. Without a limit, peers that commit and release could fill the owner's
disk.
"""

_encoder = msgspec.json.Encoder(enc_hook=encode_value)
_lease_decoder = msgspec.json.Decoder(Lease, dec_hook=decode_value)
_ended_decoder = msgspec.json.Decoder(EndedLease)
_offer_decoder = msgspec.json.Decoder(OfferState, dec_hook=decode_value)

_SET_HEAD = "UPDATE ledger SET offer = ?, fence = ?, checksum = ?"

# Old rows are deleted in steps, so that no change waits long for the disk meanwhile.
_PRUNE_STEP = 5_000


class StoredLease(Struct, frozen=True):
    """A lease as it was stored. `due` is on the steady clock of the boot `boot_id`."""

    lease: Lease
    due: float | None
    boot_id: str


class Contents(Struct, frozen=True, kw_only=True):
    """The whole state of a ledger, as read from its file. `last_entry` is the number of the last history entry."""

    offer: OfferState
    fence: int
    last_entry: int = 0
    leases: list[StoredLease]
    ended: list[EndedLease]


class SQLiteStorage:
    """One open ledger file. All methods block: the event loop calls them in a worker thread, one call at a time."""

    def __init__(self, path: Path, *, boot_id: str, schema: Schema | None = None) -> None:
        """Open the ledger, or create it.

        Raises `LedgerInUseError`, `LedgerDamagedError`, `LedgerVersionError` or `StorageError`.
        """
        # A ledger has one lock, whichever links lead to it.
        self.path = path = Path(os.path.realpath(path))
        self._boot_id = boot_id
        self._schema = schema or ledger_schema()
        # The ended leases in the file, the first that ended first. The number of each keeps their order.
        self._ended: OrderedDict[str, float] | None = None
        self._lock: LedgerLock | None = lock_ledger(path)
        try:
            make_ledger(path, self._schema)
            self._lock.claim_file()
            self._db = connect_ledger(path, self._schema)
            try:
                # The row of the table `ledger`. It is written as a whole, because its checksum covers all of it.
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
        """Close the file and release its locks."""
        # An error now loses nothing: everything that was acknowledged is in the file already.
        with contextlib.suppress(sqlite3.Error):
            self._db.close()
        self._unlock()

    def load(self) -> Contents:
        """Read everything. Raises `StorageError`, or `LedgerDamagedError` if a row cannot be read."""
        with self._reading():
            self._head = self._read_head()
            offer, fence = self._head
            ended = self._read_ended()
            return Contents(
                offer=_offer_decoder.decode(offer),
                fence=fence,
                last_entry=self._last_entry(),
                leases=self._read_leases(),
                ended=[_ended_decoder.decode(body) for body in ended],
            )

    def load_leases(self) -> list[StoredLease]:
        """Read the current leases. Raises like `load`, also if the file is no longer in its place."""
        if self._lock is not None:
            self._lock.check_place()
        with self._reading():
            return self._read_leases()

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise storage_error(self.path, error) from error
        except (msgspec.MsgspecError, TypeError, UnicodeError) as error:
            raise damaged_error(self.path, f"a row cannot be read: {error}") from error

    def _read_leases(self) -> list[StoredLease]:
        return [
            StoredLease(_lease_decoder.decode(body), due, boot_id)
            for _, body, due, boot_id in self._rows("SELECT lease_id, body, due, boot_id, checksum FROM leases")
        ]

    def write(self, changes: Sequence[Change]) -> None:
        """Write changes in their order as one transaction, and return when they are on the disk.

        Raises `StorageError`; then none of them is acknowledged.
        """
        if self._lock is not None:
            # Writes to a file that was moved away or replaced would be lost at the next start.
            self._lock.check_place()
        try:
            if self._ended is None:
                self._read_ended()
            self._db.execute("BEGIN IMMEDIATE")
            try:
                head, ended, forgotten = self._write_all(changes)
                self._db.execute("COMMIT")
            except BaseException:
                # Some errors have rolled back already. A second rollback would hide the first error.
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise
        except sqlite3.Error as error:
            raise storage_error(self.path, error) from error
        self._head = head
        known = self._known_ended
        for key, number in ended.items():
            known.pop(key, None)
            known[key] = number
        for key in forgotten:
            del known[key]

    def reopen(self) -> Contents:
        """Open the file again after an error, to find out what it contains. Raises `StorageError` while the
        disk fails.
        """
        if self._lock is None:
            raise StorageError(f"the ledger {self.path} is closed")
        self._lock.check_place()
        try:
            empty_log(self._db, self.path)
        except sqlite3.Error as error:
            # On a full disk the connection can still be read.
            if primary_code(error) == sqlite3.SQLITE_FULL:
                raise storage_error(self.path, error) from error
        with contextlib.suppress(sqlite3.Error):
            self._db.close()
        self._db = connect_ledger(self.path, self._schema)
        contents = self.load()
        self._probe()
        return contents

    def _probe(self) -> None:
        # A disk that can be read again may still refuse writes.
        try:
            self._db.execute(_SET_HEAD, _with_checksum(*self._head))
        except sqlite3.Error as error:
            raise storage_error(self.path, error) from error

    def history(self, *, limit: int, before: int | None = None) -> list[tuple[int, HistoryEntry]]:
        """The newest entries first, with their numbers: at most `limit`, all older than the entry `before`."""
        return self._read_history(
            "WHERE number < ? ORDER BY number DESC LIMIT ?", (2**62 if before is None else before, limit)
        )

    def history_after(self, number: int, *, limit: int) -> HistoryPage:
        """The oldest entries after this number first: at most `limit`. Raises `StorageError`."""
        entries = self._read_history("WHERE number > ? ORDER BY number LIMIT ?", (number, limit))
        with self._reading():
            (oldest,) = self._db.execute("SELECT min(number) FROM history").fetchone()
        return HistoryPage(oldest=oldest, entries=entries)

    def _read_history(self, which: str, values: tuple[int, int]) -> list[tuple[int, HistoryEntry]]:
        columns = "number, at, actor, action, lease_id, reason, detail, holder, fence"
        with self._reading():
            rows = self._db.execute(f"SELECT {columns} FROM history {which}", values).fetchall()
        return [
            (
                number,
                HistoryEntry(
                    at=at,
                    actor=actor,
                    action=action,
                    lease_id=lease_id,
                    reason=reason,
                    detail=detail,
                    holder=holder,
                    fence=fence,
                ),
            )
            for number, at, actor, action, lease_id, reason, detail, holder, fence in rows
        ]

    def _last_entry(self) -> int:
        # SQLite keeps the last number even if that entry was pruned.
        row = self._db.execute("SELECT seq FROM sqlite_sequence WHERE name = 'history'").fetchone()
        return int(row[0]) if row else 0

    def prune(self, *, history_before: float) -> bool:
        """Delete some history older than this Unix time, and some of the ended leases that an older version kept beyond
        the limit. Returns whether there may be more. Raises `StorageError`.
        """
        try:
            if self._ended is None:
                self._read_ended()
            known = self._known_ended
            oldest = next(iter(known.values()), -math.inf) if len(known) >= MOST_ENDED else -math.inf
            gone = (
                self._forget_history(history_before),
                self._db.execute(
                    "DELETE FROM ended WHERE lease_id IN (SELECT lease_id FROM ended WHERE ended < ? LIMIT ?)",
                    (oldest, _PRUNE_STEP),
                ).rowcount,
                self._shorten_history(_PRUNE_STEP),
            )
        except sqlite3.Error as error:
            raise storage_error(self.path, error) from error
        return max(gone) >= _PRUNE_STEP

    def _forget_history(self, before: float) -> int:
        # Only from the beginning: readers of events need a history without gaps, and a clock may have been set back.
        rows = self._db.execute("SELECT number, at FROM history ORDER BY number LIMIT ?", (_PRUNE_STEP,)).fetchall()
        old = [number for number, at in takewhile(lambda row: row[1] < before, rows)]
        return self._db.execute("DELETE FROM history WHERE number <= ?", (old[-1],)).rowcount if old else 0

    def _shorten_history(self, most: int) -> int:
        return self._db.execute(
            "DELETE FROM history WHERE number IN (SELECT number FROM history"
            " WHERE number <= (SELECT max(number) FROM history) - ? ORDER BY number LIMIT ?)",
            (MOST_HISTORY, most),
        ).rowcount

    def _write_all(self, changes: Sequence[Change]) -> tuple[tuple[str, int], dict[str, float], list[str]]:
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
        ended, forgotten = self._write_ended(changes)
        entries = list(_history_rows(changes))
        run(
            "INSERT INTO history (at, actor, action, lease_id, reason, detail, holder, fence)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            entries,
        )
        if entries:
            self._shorten_history(2 * len(entries))
        return self._write_head(changes), ended, forgotten

    def _write_ended(self, changes: Sequence[Change]) -> tuple[dict[str, float], list[str]]:
        """What ended, with the numbers that keep the order, and which ended leases are deleted for it."""
        known = self._known_ended
        newest = next(reversed(known.values()), -math.inf)
        rows: dict[str, tuple[str, float]] = {}
        for change in changes:
            for end in change.ended:
                # The wall clock may have been set back since the last end.
                newest = max(float(end.ended), math.nextafter(newest, math.inf))
                rows.pop(end.lease_id, None)
                rows[end.lease_id] = (_text(end), newest)
        self._db.executemany(
            "INSERT OR REPLACE INTO ended VALUES (?, ?, ?, ?)",
            [_with_checksum(key, body, number) for key, (body, number) in rows.items()],
        )
        older = sum(key in known for key in rows)
        in_order = chain((key for key in known if key not in rows), rows)
        forgotten = list(islice(in_order, max(0, len(known) - older + len(rows) - MOST_ENDED)))
        self._db.executemany("DELETE FROM ended WHERE lease_id = ?", [(key,) for key in forgotten])
        return {key: number for key, (_, number) in rows.items()}, forgotten

    @property
    def _known_ended(self) -> OrderedDict[str, float]:
        if self._ended is None:
            raise ValueError("what ended was not read yet")
        return self._ended

    def _read_ended(self) -> list[str]:
        """The bodies of the ended leases, the first that ended first; no more than are remembered."""
        self._ended = None
        rows = list(
            self._rows(
                "SELECT * FROM (SELECT lease_id, body, ended, checksum FROM ended ORDER BY ended DESC"
                f" LIMIT {MOST_ENDED}) ORDER BY ended"
            )
        )
        self._ended = OrderedDict((lease_id, ended) for lease_id, _, ended in rows)
        return [body for _, body, _ in rows]

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
            self._lock.close()
            self._lock = None


def _with_checksum(*values: str | float | None) -> tuple[str | float | None, ...]:
    return (*values, zlib.crc32(repr(values).encode()))


def _history_rows(changes: Iterable[Change]) -> Iterator[tuple[float, str, str, str, str, str, str, int]]:
    for change in changes:
        for entry in change.entries:
            what = (entry.at, entry.actor, entry.action, entry.lease_id, entry.reason, entry.detail)
            yield (*what, entry.holder, entry.fence)


def _real(seconds: float | None) -> float | None:
    # SQLite returns a float for every number in a REAL column, and the checksum covers what it returns.
    return None if seconds is None else float(seconds)


def _text(value: object) -> str:
    return _encoder.encode(value).decode()
