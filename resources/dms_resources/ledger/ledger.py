"""The ledger at work: a book in memory, its journal and its file, and the clock that ends commitments.

Every change goes one way: it is decided on the book and applied at once, the journal makes it durable, and then it is
acknowledged. When the disk fails, what was not acknowledged is taken back, and the book is made anew of the file before
anything else is decided.
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
from .history import HistoryEntry
from .journal import Journal
from .leases import Lease
from .ledger_file import damaged_error
from .moment import Moment
from .storage import Contents, SQLiteStorage, StoredLease
from .windows import ALWAYS_OPEN, Opening, Window, opening_at

__all__ = ["Ledger"]

_T = TypeVar("_T")
_log = logging.getLogger(__name__)

# How many changes may wait for the disk before new ones are refused.
_MOST_WAITING = 4096
# The sweeper looks again after so many seconds at the latest: the event loop's clock stops while a laptop sleeps.
_LONGEST_NAP = 30.0
_RETRY_SECONDS = 1.0
_PRUNE_SECONDS = 3600.0
_HISTORY_SECONDS = 90 * 86400.0


class Ledger:
    """One open ledger. `book` is what is promised now, `changed` is set and replaced with every change.

    `physical`, when set, tells where a demand is more than the machine itself has free now. `on_end`, when set, is
    called with the id of each lease that ends at its deadline. `work` runs a blocking call beside the event loop, to
    which everything else here belongs.
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
        self._disk = trio.Lock()
        self._recovering = trio.Lock()
        self._attempts = 0
        self._opening: tuple[float, float, tuple[str, ...], Opening] | None = None
        self._rebase(contents)

    async def change(self, decide: Callable[[Moment], tuple[Change, _T]]) -> _T:
        """Decides at once and returns when the disk has it. Raises what `decide` raises, or `StorageError`.

        Cancelled, it leaves the ledger as if it had finished or never begun.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        await self.ready()
        if self.journal.waiting >= _MOST_WAITING:
            raise StorageError("the disk does not keep up with the changes", hint="try again in a moment")
        # From here to the submission nothing waits, so what is decided is what is written.
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
        """Returns when the storage works; reads the file anew after a failure. Raises `StorageError`; cancellable."""
        if self.journal.failed is None:
            return
        attempts = self._attempts
        async with self._recovering:
            if self.journal.failed is None:
                return
            # Callers that waited for another attempt share its outcome: a slow disk is not tried by each in turn.
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
            # A number that a holder may have seen is not given out again.
            self.book.fence = max(before.fence, self.book.fence)
            self.journal.failed = None
            self._rebase(found[0])
            self.tell()
            _log.warning("the ledger's storage works again")

    async def compare(self) -> list[StoredLease] | None:
        """The leases that the file has; None while changes are on their way. Raises `StorageError`; cancellable."""
        await self.ready()
        stored: list[list[StoredLease]] = []
        async with self._disk:
            settled, version = self.journal.idle, self.book.version
            # Changes wait meanwhile, so no more is read than is compared.
            await self.work(lambda: stored.append(self.storage.load_leases()))
        return stored[0] if settled and version == self.book.version else None

    async def reload(self, why: str, entries: Callable[[Moment], tuple[HistoryEntry, ...]]) -> None:
        """Makes the book anew of what was acknowledged, which is what the file has, and writes that to the history."""
        while not self.journal.idle:
            await self.journal.submit(self.book, Change()).wait()
        # Nothing is on its way to the file now, and nothing is decided before `ready` has read it.
        self.journal.failed = StorageError(why)
        await self.change(lambda now: (Change(entries=entries(now)), None))

    def expire(self) -> None:
        """Ends what has passed its deadline. Never waits."""
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
        """The instant for a decision."""
        wall = self.clock.wall()
        return Moment(wall=wall, steady=self.clock.steady(), opening=self._opening_at(wall), physical=self.physical)

    def tell(self) -> None:
        """Wakes all that wait for `changed`."""
        changed, self.changed = self.changed, trio.Event()
        changed.set()

    async def run_on_disk(self, call: Callable[[], None]) -> None:
        """Runs a blocking call on the storage, alone. Raises what the call raises; cancellable while it waits."""
        # One connection: a reader must not look into the middle of the writer's transaction.
        async with self._disk:
            await self.work(call)

    async def keep_journal(self) -> None:
        """Writes what is decided, until it is cancelled."""
        await self.journal.run(self._current_book, self.tell)

    async def flush(self) -> None:
        """Writes what is decided so far; a write under way is not cut."""
        await self.journal.flush(self._current_book, self.tell)

    def _current_book(self) -> Book:
        return self.book

    async def sweep(self) -> None:
        """Ends what passes its deadline, again and again, until it is cancelled."""
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
        """Forgets old history every hour, until it is cancelled."""
        while True:
            # Not at the start: a machine that boots with a clock years ahead soon learns the time, and has its history
            # still. Without that it is no longer than MOST_HISTORY.
            await trio.sleep(_PRUNE_SECONDS)
            try:
                await self._forget(self.clock.wall() - _HISTORY_SECONDS)
            except StorageError as error:
                _log.warning("old history is kept: %s", error)

    async def _forget(self, history_before: float) -> None:
        more = [True]

        def forget() -> None:
            more.append(self.storage.prune(history_before=history_before))

        # Step by step, so that changes get the disk between two of them.
        while more.pop():
            await self.run_on_disk(forget)

    # Inside.

    def _build(self, contents: Contents, machine: MachineResources) -> Book:
        records = (restored(stored.lease, stored.due, stored.boot_id, self.clock) for stored in contents.leases)
        try:
            return Book.load(machine, contents.offer, contents.fence, records, contents.ended)
        except ValueError as error:
            raise damaged_error(self.storage.path, str(error)) from error

    def _rebase(self, contents: Contents) -> None:
        # Deadlines of an earlier boot count on this boot's steady clock from now on, whatever the wall clock does, also
        # when this process starts anew.
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
        return HistoryEntry(
            at=self.clock.wall(), actor="deadline", action="grace", lease_id=lease.lease_id, detail=detail
        )

    def _opening_at(self, wall: float) -> Opening:
        onboarded = self.book.offer.onboarded
        texts = onboarded.windows if onboarded else ()
        if not texts:
            return ALWAYS_OPEN
        known = self._opening
        if known and known[2] == texts and known[0] <= wall < known[1]:
            return known[3]
        opening = opening_at(tuple(Window.parse(text) for text in texts), wall)
        # Looked at again each minute: the time zone's rules may change under a long opening.
        until = min(wall + 60.0, opening.until if opening.until is not None else wall + 60.0)
        self._opening = (wall, until, texts, opening)
        return opening
