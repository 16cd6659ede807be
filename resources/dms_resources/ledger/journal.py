"""Group commit: many waiting changes, one transaction, one fsync.

A change is applied to the book at once and in order, so that no other request is promised the same capacity. It is
acknowledged when its batch is durable. If a batch fails, it and all later changes are undone, and their callers get the
error.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Protocol

import trio

from ..errors import StorageError
from ..tasks import Worker
from .book import Book, Change
from .metrics import LedgerMetrics
from .storage import Contents

__all__ = ["Batch", "Journal", "Storage"]

_log = logging.getLogger(__name__)


class Storage(Protocol):
    """Writes changes to the disk; blocking."""

    def write(self, changes: list[Change]) -> None:
        """Make changes durable. Raises `StorageError`."""

    def reopen(self) -> Contents:
        """Read the stored state after an error. Raises `StorageError`."""


class Batch:
    """Changes that become durable together. `done` is set when they are durable, or have failed with `error`."""

    def __init__(self) -> None:
        self.changes: list[Change] = []
        self.done = trio.Event()
        self.error: StorageError | None = None

    async def wait(self) -> None:
        """Return when the batch is durable; raise `StorageError` if it failed. Cancelling the wait changes nothing."""
        await self.done.wait()
        if self.error is not None:
            raise StorageError(self.error.message, hint=self.error.hint) from self.error


class Journal:
    """Writes the changes of one book to one storage."""

    def __init__(self, storage: Storage, worker: Worker) -> None:
        self._storage = storage
        self._worker = worker
        self._open = Batch()
        self._writing: Batch | None = None
        self._wake = trio.Event()
        # Called with the changes of each batch that became durable, before their callers are acknowledged.
        self.on_write: Callable[[Sequence[Change]], None] | None = None
        self.failed: StorageError | None = None
        self.closed = False
        self.metrics = LedgerMetrics()

    @property
    def waiting(self) -> int:
        """The number of changes that wait for the disk."""
        return len(self._open.changes)

    @property
    def idle(self) -> bool:
        """Whether everything is on the disk."""
        return not self._open.changes and self._writing is None

    def submit(self, book: Book, change: Change) -> Batch:
        """Apply a change and queue it. An empty change waits for all changes before it.

        Raises `StorageError` after `close`.
        """
        if self.closed:
            raise StorageError("the ledger is closed")
        if change.empty:
            return self._open if self._open.changes else self._writing or _finished()
        book.apply(change)
        self._open.changes.append(change)
        self._wake.set()
        return self._open

    async def run(self, current: Callable[[], Book], tell: Callable[[], None]) -> None:
        """Write batch after batch until cancelled. If a batch fails, its changes are undone in the book that `current`
        returns, and then `tell` is called.
        """
        while True:
            await self._wake.wait()
            self._wake = trio.Event()
            await self.flush(current, tell)

    async def flush(self, current: Callable[[], Book], tell: Callable[[], None]) -> None:
        """Write everything that waits. May be cancelled between two batches; it always waits for a thread
        that writes.
        """
        while self._open.changes:
            await trio.lowlevel.checkpoint_if_cancelled()
            batch, self._open = self._open, Batch()
            self._writing = batch
            try:
                with trio.CancelScope(shield=True):
                    started = time.perf_counter()
                    await self._worker(lambda: self._storage.write(batch.changes))  # noqa: B023 - awaited at once
                self.metrics.written(batch.changes, time.perf_counter() - started)
                if self.on_write is not None:
                    self.on_write(batch.changes)
            except BaseException as error:
                # Whatever the error was, the change must not be acknowledged.
                self._fail(current(), batch, _as_storage_error(error))
                tell()
                if not isinstance(error, Exception):
                    raise
            finally:
                self._writing = None
                batch.done.set()

    def close(self, book: Book) -> None:
        """Accept no more changes. Callers that still wait get an error: their changes did not happen."""
        self.closed = True
        self._fail(book, Batch(), StorageError("the ledger is closed"))

    def _fail(self, book: Book, batch: Batch, error: StorageError) -> None:
        later, self._open = self._open, Batch()
        self.failed = batch.error = later.error = error
        later.done.set()
        lost = [*batch.changes, *later.changes]
        if lost:
            self.metrics.failed_writes += 1
            _log.error("the ledger could not be written, %d changes are taken back: %s", len(lost), error)
        for change in reversed(lost):
            book.undo(change)


def _as_storage_error(error: BaseException) -> StorageError:
    if isinstance(error, StorageError):
        return error
    failed = StorageError(f"the ledger could not be written: {error!r}", hint="this is a defect: please report it")
    failed.__cause__ = error
    return failed


def _finished() -> Batch:
    batch = Batch()
    batch.done.set()
    return batch
