"""The ledger at work: a book in memory, its journal and its file, and the clock that ends leases.

Every change takes the same path: it is decided and applied to the book at once, the journal makes it durable, and then
it is acknowledged. If the disk fails, the changes that were not acknowledged are undone, and the book is read from the
file again before anything else is decided.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

import trio

from ..components import MachineResources
from ..demands import Demand, Shortage
from ..errors import ResourcesError, StorageError
from ..tasks import Worker
from .book import Book, Change
from .clock import Clock
from .deadlines import restored
from .endings import expire
from .events import EventLog, HistoryPage
from .history import HistoryEntry, history_entry
from .journal import Journal
from .leases import Lease
from .ledger_file import damaged_error
from .moment import Moment
from .storage import Contents, SQLiteStorage, StoredLease
from .windows import ALWAYS_OPEN, Opening, Window, opening_at

__all__ = ["Ledger"]

_T = TypeVar("_T")
_log = logging.getLogger(__name__)

# The largest number of changes that may wait for the disk. Beyond it, new ones are refused.
_MOST_WAITING = 4096
# The longest time in seconds between two looks of the sweeper: the clock of the event loop stops while a laptop sleeps.
_LONGEST_NAP = 30.0
_RETRY_SECONDS = 1.0
_PRUNE_SECONDS = 3600.0
_HISTORY_SECONDS = 90 * 86400.0


class Ledger:
    """One open ledger. `book` is the current state; `changed` is set and replaced with every change.

    If `physical` is set, it returns where a demand exceeds what is physically free. If `on_end` is set, it is called
    with the id of each lease that ends at its deadline. `work` runs a blocking call in a thread; everything else here
    runs in the event loop.
    """

    def __init__(
        self, storage: SQLiteStorage, contents: Contents, machine: MachineResources, clock: Clock, worker: Worker
    ) -> None:
        self.storage = storage
        self.clock = clock
        self.work = worker
        self.physical: Callable[[Demand], tuple[Shortage, ...]] | None = None
        self.on_end: Callable[[str], None] | None = None
        self.changed = trio.Event()
        self.book = self._build(contents, machine)
        self.journal = Journal(storage, self.run_on_disk)
        self.events = EventLog(contents.last_entry, self._read_history)
        self.journal.on_write = self.events.written
        self._disk = trio.Lock()
        self._recovering = trio.Lock()
        self._attempts = 0
        self._opening: tuple[float, float, tuple[str, ...], Opening] | None = None
        self._rebase(contents)

    async def change(self, decide: Callable[[Moment], tuple[Change, _T]]) -> _T:
        """Decide at once, and return when the change is on the disk. Raises what `decide` raises, or `StorageError`.

        If cancelled, the change either takes place as a whole or not at all.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        await self.ready()
        if self.journal.waiting >= _MOST_WAITING:
            raise StorageError("the disk does not keep up with the changes", hint="try again in a moment")
        # Nothing waits between here and the submission, so that what was decided is what is written.
        self.expire()
        try:
            change, answer = decide(self.now())
        except ResourcesError:
            # A caller that retries after each refusal must let other tasks run.
            await trio.lowlevel.cancel_shielded_checkpoint()
            raise
        batch = self.journal.submit(self.book, change)
        if not change.empty:
            self.tell()
        await batch.wait()
        return answer

    async def ready(self) -> None:
        """Return when the storage works. After a failure it reads the file again. Raises `StorageError`;
        cancellable.
        """
        if self.journal.failed is None:
            return
        attempts = self._attempts
        async with self._recovering:
            if self.journal.failed is None:
                return
            # Callers that waited during another attempt share its outcome: not each of them tries a slow disk in turn.
            if self.journal.closed or self._attempts != attempts:
                raise StorageError(self.journal.failed.message, hint=self.journal.failed.hint)
            self._attempts += 1
            found: list[Contents] = []
            try:
                await self.run_on_disk(lambda: found.append(self.storage.reopen()))
            except StorageError as error:
                self.journal.failed = error
                raise
            before = self.book
            self.book = self._build(found[0], before.machine)
            self.book.version = before.version + 1
            self.book.set_used_ports(before.used_ports)
            # A holder may have seen this number, so it is not used again.
            self.book.fence = max(before.fence, self.book.fence)
            self.journal.failed = None
            self.events.reset(found[0].last_entry)
            self._rebase(found[0])
            self.tell()
            _log.warning("the ledger's storage works again")

    async def compare(self) -> list[StoredLease] | None:
        """The leases in the file; None while changes wait to be written. Raises `StorageError`; cancellable."""
        await self.ready()
        stored: list[list[StoredLease]] = []
        async with self._disk:
            settled, version = self.journal.idle, self.book.version
            # Changes wait meanwhile, so that the file does not get ahead of the comparison.
            await self.work(lambda: stored.append(self.storage.load_leases()))
        return stored[0] if settled and version == self.book.version else None

    async def reload(self, why: str, entries: Callable[[Moment], tuple[HistoryEntry, ...]]) -> None:
        """Build the book again from the acknowledged changes, which the file has, and record that in the history."""
        while not self.journal.idle:
            await self.journal.submit(self.book, Change()).wait()
        # Nothing is on its way to the file now. `ready` reads it before anything is decided.
        self.journal.failed = StorageError(why)
        await self.change(lambda now: (Change(entries=entries(now)), None))

    def expire(self) -> None:
        """End the leases whose deadline has passed. Never waits."""
        due = self.book.next_due()
        if due is None or due[0] > self.clock.steady() or self.journal.failed is not None:
            return
        change = expire(self.book, self.now())
        self.journal.submit(self.book, change)
        self.tell()
        if self.on_end is not None:
            for ended in change.ended:
                self.on_end(ended.lease_id)

    def now(self) -> Moment:
        """The instant of a decision."""
        wall = self.clock.wall()
        return Moment(wall=wall, steady=self.clock.steady(), opening=self._opening_at(wall), physical=self.physical)

    def tell(self) -> None:
        """Wake all that wait for `changed`."""
        changed, self.changed = self.changed, trio.Event()
        changed.set()

    async def run_on_disk(self, call: Callable[[], None]) -> None:
        """Run a blocking call on the storage, alone. Raises what the call raises; cancellable while it waits."""
        # There is one connection: a reader must not see the middle of the writer's transaction.
        async with self._disk:
            await self.work(call)

    async def keep_journal(self) -> None:
        """Write what is decided, until cancelled."""
        await self.journal.run(self._current_book, self.tell)

    async def flush(self) -> None:
        """Write what is decided so far. A write in progress is not cut off."""
        await self.journal.flush(self._current_book, self.tell)

    def _current_book(self) -> Book:
        return self.book

    async def sweep(self) -> None:
        """End leases whose deadline passes, until cancelled."""
        while True:
            changed = self.changed
            due = self.book.next_due()
            nap = _LONGEST_NAP if due is None else min(_LONGEST_NAP, due[0] - self.clock.steady())
            if nap > 0:
                with trio.move_on_after(nap):
                    await changed.wait()
            try:
                await self.ready()
                self.expire()
            except StorageError as error:
                _log.warning("deadlines wait for the disk: %s", error)
                await trio.sleep(_RETRY_SECONDS)
            await trio.lowlevel.checkpoint()

    async def prune(self) -> None:
        """Delete old history every hour, until cancelled."""
        while True:
            # Not at the start: a machine that boots with a clock years ahead soon gets the right time, and must not
            # lose its history by then. Even without pruning the history has at most MOST_HISTORY entries.
            await trio.sleep(_PRUNE_SECONDS)
            try:
                await self._forget(self.clock.wall() - _HISTORY_SECONDS)
            except StorageError as error:
                _log.warning("old history is kept: %s", error)

    async def _forget(self, history_before: float) -> None:
        more = [True]

        def forget() -> None:
            more.append(self.storage.prune(history_before=history_before))

        # In steps, so that changes can use the disk between two of them.
        while more.pop():
            await self.run_on_disk(forget)

    # Internal

    async def _read_history(self, after: int, most: int) -> HistoryPage:
        pages: list[HistoryPage] = []
        await self.run_on_disk(lambda: pages.append(self.storage.history_after(after, limit=most)))
        return pages[0]

    def _build(self, contents: Contents, machine: MachineResources) -> Book:
        records = (restored(stored.lease, stored.due, stored.boot_id, self.clock) for stored in contents.leases)
        try:
            return Book.load(machine, contents.offer, contents.fence, records, contents.ended)
        except ValueError as error:
            raise damaged_error(self.storage.path, str(error)) from error

    def _rebase(self, contents: Contents) -> None:
        # The deadlines of an earlier boot are converted to the steady clock of this boot once, so that later jumps of
        # the wall clock and restarts of this process do not change them.
        pairs, entries = [], []
        for stored in contents.leases:
            record = self.book.leases[stored.lease.lease_id]
            graced = record.lease.grace and not stored.lease.grace
            if graced:
                entries.append(self._grace_entry(record.lease))
            if graced or (stored.due is not None and stored.boot_id != self.clock.boot_id):
                pairs.append((record, record))
        if pairs:
            self.journal.submit(self.book, Change(leases=tuple(pairs), entries=tuple(entries)))

    def _grace_entry(self, lease: Lease) -> HistoryEntry:
        detail = f"could not be renewed while this provider was away: lasts {lease.ttl:.0f} s more"
        return history_entry(lease, self.clock.wall(), "deadline", "grace", detail=detail)

    def _opening_at(self, wall: float) -> Opening:
        onboarded = self.book.offer.onboarded
        texts = onboarded.windows if onboarded else ()
        if not texts:
            return ALWAYS_OPEN
        known = self._opening
        if known and known[2] == texts and known[0] <= wall < known[1]:
            return known[3]
        opening = opening_at(tuple(Window.parse(text) for text in texts), wall)
        # Checked again each minute: the rules of the time zone may change during a long opening.
        until = min(wall + 60.0, opening.until if opening.until is not None else wall + 60.0)
        self._opening = (wall, until, texts, opening)
        return opening
