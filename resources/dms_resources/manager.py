"""The resource manager: what the machine's owner offers, what is free, and the promises made of it.

Reads are answered from memory and never wait. Writes decide at once, are durable when they return, and are safe to
cancel: a cancelled call leaves the ledger as if it had finished or never begun.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Sequence
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias, TypeVar

import msgspec
import psutil
import trio

from . import decisions
from .audit import AuditSnapshot, Finding, audit_snapshot, started_after_boot
from .book import Book, Change, HistoryEntry, Record
from .changes import Missing, describe_missing, missing_resources
from .clock import Clock, SystemClock, due_after_restart
from .components import (
    CPU,
    GPU,
    RAM,
    Disk,
    FreeResources,
    MachineResources,
    OnboardedResources,
    Resources,
)
from .decisions import Moment
from .demands import (
    NO_PORTS,
    CPUDemand,
    Demand,
    DiskDemand,
    GPUDemand,
    PortDemand,
    RAMDemand,
    Shortage,
    describe_shortage,
)
from .errors import LeaseError, RequestError, ResourcesError, StorageError
from .guard import physical_shortages
from .hardware.cgroups import own_group
from .journal import Journal, Worker
from .leases import EndedLease, EndReason, Lease, LeaseRequest, LeaseState, ResourceAllocation
from .ledger_file import damaged_error
from .room import Granted
from .storage import Contents, SQLiteStorage
from .units import Cores
from .windows import ALWAYS_OPEN, Opening, Window, opening_at

if TYPE_CHECKING:
    from .sampling import UsageSample
    from .usage import UsageMonitor

__all__ = ["Guard", "ResourceManager", "open_manager"]

# What to do with a commitment that the ledger has room for and the machine itself is short of now.
Guard: TypeAlias = Literal["off", "warn", "enforce"]

_T = TypeVar("_T")
_log = logging.getLogger(__name__)

# How many changes may wait for the disk before new ones are refused.
_MOST_WAITING = 4096
# The sweeper looks again after so many seconds at the latest: the event loop's clock stops while a laptop sleeps.
_LONGEST_NAP = 30.0
_FLUSH_SECONDS = 10.0
_RETRY_SECONDS = 1.0
_PRUNE_SECONDS = 3600.0
_AUDIT_SECONDS = 600.0
_FOLLOW_SECONDS = 5.0
_WARN_SECONDS = 60.0
_HISTORY_SECONDS = 90 * 86400.0
# Longer than any bid is valid, so that a bid whose lease was released cannot be taken again.
_ENDED_SECONDS = 3600.0

_NOT_ALLOCATED = (LeaseState.HELD, LeaseState.COMMITTED)
_ANY_STATE = tuple(LeaseState)


@asynccontextmanager
async def open_manager(
    path: Path,
    machine: MachineResources,
    *,
    clock: Clock | None = None,
    usage_monitor: UsageMonitor | None = None,
    guard: Guard = "off",
    worker: Worker | None = None,
) -> AsyncIterator[ResourceManager]:
    """Opens the ledger at `path` and keeps it: writes what changes, ends what passes its deadline, audits it.

    A `usage_monitor` is run meanwhile, and its surveys of the machine are followed; by `guard` a commitment that the
    machine itself is short of now is taken, taken with a warning in the log, or refused. `worker` runs blocking calls
    of the disk, by default in threads that nobody else of this process can use up. Raises `LedgerInUseError`,
    `LedgerDamagedError`, `LedgerVersionError` or `StorageError` when it cannot be opened. On exit all that waits for
    the disk is written, for 10 seconds at most.
    """
    clock, worker = clock or SystemClock(), worker or _new_worker()
    opened: list[SQLiteStorage] = []
    await worker(lambda: opened.append(SQLiteStorage(path, boot_id=clock.boot_id)))
    with opened[0] as storage:
        stored: list[Contents] = []
        await worker(lambda: stored.append(storage.load()))
        manager = ResourceManager(storage, stored[0], machine, clock, usage_monitor, guard, worker)
        failure: BaseException | None = None
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(manager._keep_journal)
                nursery.start_soon(manager._sweep)
                nursery.start_soon(manager._prune)
                nursery.start_soon(manager._audit_at_intervals)
                if usage_monitor is not None:
                    # The outdated stubs that libp2p brings (trio-typing) know no task status that fits.
                    await nursery.start(usage_monitor.run)  # type: ignore[arg-type]
                    nursery.start_soon(manager._follow_machine, usage_monitor)
                try:
                    yield manager
                except BaseException as error:
                    # Raised again below, outside of the nursery, which would wrap it in a group.
                    failure = error
                nursery.cancel_scope.cancel()
            with trio.CancelScope(deadline=trio.current_time() + _FLUSH_SECONDS, shield=True):
                await manager._flush()
        finally:
            manager._journal.close(manager._book)
        if failure is not None:
            raise failure


def _new_worker() -> Worker:
    # One for the ledger's disk, one for what an audit asks of the operating system.
    limiter = trio.CapacityLimiter(2)

    async def work(call: Callable[[], None]) -> None:
        await trio.to_thread.run_sync(call, limiter=limiter)

    return work


class ResourceManager:
    """The seed's resource manager, made by `open_manager`. It belongs to one trio event loop."""

    def __init__(
        self,
        storage: SQLiteStorage,
        contents: Contents,
        machine: MachineResources,
        clock: Clock,
        usage_monitor: UsageMonitor | None,
        guard: Guard,
        worker: Worker,
    ) -> None:
        self._storage = storage
        self._clock = clock
        self._usage_monitor = usage_monitor
        self._guard = guard
        self._warned = float("-inf")
        self._audited: tuple[float, tuple[Finding, ...]] | None = None
        self._worker = worker
        self._disk = trio.Lock()
        self._book = self._book_of(contents, machine)
        self._journal = Journal(storage, self._run_on_disk)
        self._rebase(contents)
        self._recovering = trio.Lock()
        self._attempts = 0
        self._changed = trio.Event()
        self._free: tuple[int, FreeResources] | None = None
        self._opening: tuple[float, float, tuple[str, ...], Opening] | None = None

    # What is there: from memory, without waiting.

    @property
    def machine(self) -> MachineResources:
        """What the hardware has, as last measured."""
        return self._book.machine

    @property
    def version(self) -> int:
        """A number that grows with every change of what is free, onboarded or promised."""
        self._expire()
        return self._book.version

    @property
    def draining(self) -> bool:
        """Whether the owner drains this machine."""
        return self._book.offer.draining

    @property
    def storage_error(self) -> StorageError | None:
        """The last failure of the disk, None when it works."""
        return self._journal.failed

    @property
    def last_audit(self) -> tuple[float, tuple[Finding, ...]] | None:
        """When the ledger was last audited (Unix seconds) and what was found; None before the first time."""
        return self._audited

    @property
    def missing_resources(self) -> tuple[Missing, ...]:
        """What is onboarded and is no longer there; new commitments against it are refused."""
        onboarded = self._book.offer.onboarded
        return missing_resources(onboarded, self._book.machine) if onboarded else ()

    @property
    def usage_sample(self) -> UsageSample | None:
        """The last sample of what the machine uses, with its age; None where nothing watches it."""
        return self._usage_monitor.sample if self._usage_monitor else None

    @property
    def physically_short(self) -> tuple[Shortage, ...]:
        """Where the machine itself has less free now than the ledger: a disk that fills, memory that others use."""
        sample = self.usage_sample
        if sample is None or self._book.offer.onboarded is None:
            return ()
        free = self.get_free_resources()
        everything = Demand(
            cpu=CPUDemand(cores=free.cpu.cores),
            ram=RAMDemand(size=free.ram.size),
            disk=DiskDemand(size=free.disk.size),
            gpus=tuple(GPUDemand(vram=gpu.vram, uuid=gpu.uuid) for gpu in free.gpus),
        )
        return physical_shortages(everything, sample, self._book.machine)

    @property
    def usage_monitor(self) -> UsageMonitor:
        """What the machine uses now. Raises `LookupError` when this manager was opened without one."""
        if self._usage_monitor is None:
            raise LookupError("this manager was opened without a usage monitor")
        return self._usage_monitor

    def get_onboarded_resources(self) -> OnboardedResources | None:
        """What the owner offers and on what terms, None when nothing."""
        return self._book.offer.onboarded

    def get_free_resources(self) -> FreeResources:
        """Offered less everything that is held, committed and allocated, at this instant."""
        self._expire()
        if self._free is None or self._free[0] != self._book.version:
            self._free = (self._book.version, _free(self._book))
        return self._free[1]

    def get_total_allocation(self) -> Resources:
        """The sum of all allocations; GPUs with the bytes allocated on each."""
        return self._total(LeaseState.ALLOCATED)

    def get_total_commitment(self) -> Resources:
        """The sum of all commitments and holds; GPUs with the bytes committed on each."""
        self._expire()
        return self._total(*_NOT_ALLOCATED)

    def leases(self, holder: str | None = None) -> tuple[Lease, ...]:
        """All leases, or those of one holder."""
        self._expire()
        if holder is None:
            return tuple(record.lease for record in self._book.leases.values())
        return tuple(self._book.leases[key].lease for key in self._book.ids_by_holder.get(holder, ()))

    def lease(self, lease_id: str) -> Lease | None:
        """The lease of this id, None when there is none."""
        self._expire()
        record = self._book.leases.get(lease_id)
        return record.lease if record else None

    def is_committed(self, lease_id: str) -> bool:
        """Whether a commitment of this id stands."""
        lease = self.lease(lease_id)
        return lease is not None and lease.state is LeaseState.COMMITTED

    def is_allocated(self, lease_id: str) -> bool:
        """Whether an allocation of this id stands."""
        lease = self.lease(lease_id)
        return lease is not None and lease.state is LeaseState.ALLOCATED

    def would_fit(self, demand: Demand, ports: PortDemand = NO_PORTS, *, ttl: float = 0.0) -> Granted | RequestError:
        """What this demand would get at this instant, or the refusal with every short dimension. Changes nothing."""
        asked = LeaseRequest(lease_id="", holder="", demand=demand, ports=ports, ttl=ttl)
        return self.would_fit_together([asked])[0]

    def would_fit_together(self, requests: Sequence[LeaseRequest]) -> list[Granted | RequestError]:
        """The same for several demands, each beside those before it that fit."""
        self._expire()
        return decisions.fit(self._book, requests, self._now())

    @asynccontextmanager
    async def watch(self) -> AsyncIterator[AsyncIterator[FreeResources]]:
        """Yields what is free now and after every change; changes that come while the reader is busy are one."""
        async with aclosing(self._watch()) as changes:
            yield changes

    # What changes: decided at once, durable on return.

    async def commit_resources(
        self, lease_id: str, demand: Demand, ports: PortDemand = NO_PORTS, *, holder: str, ttl: float
    ) -> Lease:
        """Promises this capacity to `holder` for `ttl` seconds; takes over a hold of the same id without a gap.

        Raises `RequestError` (with every short dimension), `ConflictError`, `ExpiredError`, `EndedError` or
        `StorageError`. May be cancelled.
        """
        request = LeaseRequest(lease_id=lease_id, holder=holder, demand=demand, ports=ports, ttl=ttl)
        return (await self.commit_group([request]))[0]

    async def commit_group(self, requests: Sequence[LeaseRequest], *, group: str = "") -> list[Lease]:
        """Commits all the requests, in one indivisible change, or none. Raises as `commit_resources`; cancellable."""
        return await self._change(lambda now: decisions.commit(self._book, requests, now, group=group))

    async def hold(self, requests: Sequence[LeaseRequest]) -> list[Lease]:
        """Holds capacity for bids for some seconds, within the owner's limits. Raises `HoldLimitError`; cancellable."""
        return await self._change(lambda now: decisions.hold(self._book, requests, now))

    async def renew_commitment(
        self, lease_id: str, *, ttl: float, holder: str | None = None, fence: int | None = None
    ) -> Lease:
        """Moves the deadline to `ttl` seconds from now.

        Raises `ExpiredError` when it has passed, `NotCommittedError`, `NotHolderError`, `StaleFenceError`,
        `WindowError` or `StorageError`. May be cancelled.
        """
        return await self._change(
            lambda now: decisions.renew(self._book, lease_id, now, ttl=ttl, holder=holder, fence=fence)
        )

    async def uncommit_resources(
        self, lease_id: str, *, holder: str | None = None, fence: int | None = None
    ) -> EndedLease:
        """Gives a commitment or hold back. Raises `NotCommittedError` (also for an allocation), `ExpiredError`,
        `NotHolderError`, `StaleFenceError` or `StorageError`. May be cancelled."""
        return await self._end(lease_id, _NOT_ALLOCATED, holder, fence)

    async def allocate_resources(self, request: ResourceAllocation) -> Lease:
        """Gives capacity to a running job: a commitment of this id becomes the allocation in one step; without one, the
        demand is allocated directly.

        Raises `RequestError`, `NotCommittedError`, `ConflictError`, `ExpiredError`, `NotHolderError`,
        `StaleFenceError` or `StorageError`. May be cancelled.
        """
        processes = tuple(_started(request.processes))
        lease = await self._change(lambda now: decisions.allocate(self._book, request, now, processes))
        if self._usage_monitor is not None and lease.processes:
            await self._worker(lambda: self._follow_use(lease))
        return lease

    async def deallocate_resources(
        self, lease_id: str, *, holder: str | None = None, fence: int | None = None
    ) -> EndedLease:
        """Takes capacity back from a job. Raises `NotAllocatedError` (also for a commitment), `NotHolderError`,
        `StaleFenceError` or `StorageError`. May be cancelled."""
        return await self._end(lease_id, (LeaseState.ALLOCATED,), holder, fence)

    async def release(self, lease_id: str, *, holder: str | None = None, fence: int | None = None) -> EndedLease:
        """Ends a lease in whatever state it is. Raises as `deallocate_resources`. May be cancelled."""
        return await self._end(lease_id, _ANY_STATE, holder, fence)

    def check_onboarding(self, onboarded: OnboardedResources) -> None:
        """Raises what `update_onboarded_resources` would raise of this, and changes nothing."""
        offer = msgspec.structs.replace(self._book.offer, onboarded=onboarded)
        decisions.change_offer(self._book, offer, self._now(), action="onboard")

    async def update_onboarded_resources(self, onboarded: OnboardedResources) -> None:
        """Offers these resources from now on; what is promised stays as it is.

        Raises `OnboardingError` for more than the machine has or less than is promised, or `StorageError`.
        May be cancelled.
        """
        detail = f"{onboarded.cpu.cores} cores, {onboarded.ram.size} B RAM, {onboarded.disk.size} B disk"
        await self._change_offer("onboard", detail, onboarded=onboarded)

    async def offboard(self) -> None:
        """Offers nothing any more. Raises `StillPromisedError` while anything is promised. May be cancelled."""
        await self._change(lambda now: (decisions.offboard(self._book, now), None))

    async def set_draining(self, draining: bool) -> None:
        """Stops taking, or takes again, new commitments; what runs goes on. May be cancelled."""
        await self._change_offer("drain" if draining else "undrain", "", draining=draining)

    async def wait_drained(self) -> None:
        """Returns when nothing is promised any more. May be cancelled."""
        await trio.lowlevel.checkpoint()
        while self._book.leases:
            await self._changed.wait()

    def update_machine(self, machine: MachineResources) -> None:
        """Takes note of what the machine has now: what is gone is offered no more, what is promised stays."""
        self._book.set_machine(machine)
        self._tell()

    async def history(self, *, limit: int = 100, before: int | None = None) -> list[tuple[int, HistoryEntry]]:
        """What happened, newest first, with numbers to continue from. Raises `StorageError`. May be cancelled."""
        found: list[tuple[int, HistoryEntry]] = []
        await self._run_on_disk(lambda: found.extend(self._storage.history(limit=limit, before=before)))
        return found

    async def audit(self, *, repair: bool = False) -> list[Finding]:
        """Compares the ledger with itself, with its file and with what the operating system shows.

        With `repair` an allocation whose processes are gone is ended, and a book that differs from its file or from
        its own sums is made anew of the file, each with an entry in the history. Raises `StorageError`. May be
        cancelled.
        """
        await self._ready()
        stored: list[Contents] = []
        async with self._disk:
            settled, version = self._journal.idle, self._book.version
            await self._worker(lambda: stored.append(self._storage.load()))
        # Changes on their way to the disk, or made since, would look like differences.
        same = settled and version == self._book.version
        found = await self._observe(stored[0] if same else None)
        self._audited = (self._clock.wall(), tuple(found))
        if repair:
            await self._repair(found)
        return found

    # Inside.

    async def _observe(self, stored: Contents | None) -> list[Finding]:
        findings: list[Finding] = []
        sample = self._usage_monitor.get_usage() if self._usage_monitor else None
        # A copy of the records, so that the thread does not look at what changes meanwhile.
        snapshot = AuditSnapshot.of(self._book, stored)
        await self._worker(lambda: findings.extend(audit_snapshot(snapshot, sample)))
        return findings

    async def _repair(self, found: Sequence[Finding]) -> None:
        differing = [finding for finding in found if finding.code in ("totals", "stored")]
        if differing:
            await self._reload(differing)
        for finding in found:
            if finding.code == "process_gone":
                await self._end_allocation(finding)

    async def _reload(self, findings: Sequence[Finding]) -> None:
        """Makes the book anew of what was acknowledged, which is what the file has."""
        while not self._journal.idle:
            await self._journal.submit(self._book, Change()).wait()
        # Nothing is on its way to the file now, and nothing is decided before `_ready` has read it.
        self._journal.failed = StorageError(f"audit: {findings[0].message}")
        await self._change(lambda now: (Change(entries=tuple(_reload_entry(now, one) for one in findings)), None))

    async def _end_allocation(self, finding: Finding) -> None:
        # Its holder may have given it back since it was found.
        with contextlib.suppress(LeaseError):
            await self._change(
                lambda now: decisions.end(
                    self._book,
                    finding.lease_id,
                    now,
                    states=(LeaseState.ALLOCATED,),
                    holder=None,
                    fence=None,
                    actor="audit",
                    reason=EndReason.REPAIRED,
                    why=finding.message,
                )
            )

    async def _change_offer(self, action: str, detail: str, **terms: OnboardedResources | bool) -> None:
        def decide(now: Moment) -> tuple[Change, None]:
            # What else the owner decided is read now and not before a wait, or another change of it would be undone.
            offer = msgspec.structs.replace(self._book.offer, **terms)
            return decisions.change_offer(self._book, offer, now, action=action, detail=detail), None

        await self._change(decide)

    async def _end(
        self, lease_id: str, states: tuple[LeaseState, ...], holder: str | None, fence: int | None
    ) -> EndedLease:
        ended = await self._change(
            lambda now: decisions.end(self._book, lease_id, now, states=states, holder=holder, fence=fence)
        )
        if self._usage_monitor is not None:
            self._usage_monitor.unfollow(lease_id)
        return ended

    def _follow_use(self, lease: Lease) -> None:
        """Has the use of a job told apart from the rest, where its process has a cgroup of its own."""
        group = own_group(lease.processes[0][0])
        if group is not None and self._usage_monitor is not None:
            self._usage_monitor.follow(lease.lease_id, group)

    async def _change(self, decide: Callable[[Moment], tuple[Change, _T]]) -> _T:
        await trio.lowlevel.checkpoint_if_cancelled()
        await self._ready()
        if self._journal.waiting >= _MOST_WAITING:
            raise StorageError("the disk does not keep up with the changes", hint="try again in a moment")
        # From here to the submission nothing waits, so what is decided is what is written.
        self._expire()
        try:
            change, answer = decide(self._now())
        except ResourcesError:
            # Whoever asks again and again after refusals must not keep everybody else from running.
            await trio.lowlevel.cancel_shielded_checkpoint()
            raise
        batch = self._journal.submit(self._book, change)
        if not change.empty:
            self._tell()
        await batch.wait()
        return answer

    async def _ready(self) -> None:
        if self._journal.failed is None:
            return
        attempts = self._attempts
        async with self._recovering:
            if self._journal.failed is None:
                return
            # Those who waited for another's attempt share its outcome: a slow disk is not tried by each in turn.
            if self._journal.closed or self._attempts != attempts:
                raise StorageError(self._journal.failed.message, hint=self._journal.failed.hint)
            self._attempts += 1
            found: list[Contents] = []
            try:
                await self._run_on_disk(lambda: found.append(self._storage.reopen()))
            except StorageError as error:
                self._journal.failed = error
                raise
            before = self._book
            self._book = self._book_of(found[0], before.machine)
            self._book.version = before.version + 1
            # A number that somebody may have seen is not given out again.
            self._book.fence = max(before.fence, self._book.fence)
            self._journal.failed = None
            self._rebase(found[0])
            self._tell()
            _log.warning("the ledger's storage works again")

    def _book_of(self, contents: Contents, machine: MachineResources) -> Book:
        records = (
            Record(
                stored.lease,
                None
                if stored.due is None
                else due_after_restart(
                    self._clock,
                    due=stored.due,
                    boot_id=stored.boot_id,
                    deadline=stored.lease.deadline or 0.0,
                    ttl=stored.lease.ttl,
                ),
            )
            for stored in contents.leases
        )
        try:
            return Book.load(machine, contents.offer, contents.fence, records, contents.ended)
        except ValueError as error:
            raise damaged_error(self._storage.path, str(error)) from error

    def _rebase(self, contents: Contents) -> None:
        # Deadlines of an earlier boot count on this boot's steady clock from now on, whatever the wall clock does, also
        # when this process starts anew.
        moved = [
            self._book.leases[stored.lease.lease_id]
            for stored in contents.leases
            if stored.due is not None and stored.boot_id != self._clock.boot_id
        ]
        if moved:
            self._journal.submit(self._book, Change(leases=tuple((record, record) for record in moved)))

    def _expire(self) -> None:
        due = self._book.next_due()
        if due is None or due[0] > self._clock.steady() or self._journal.failed is not None:
            return
        self._journal.submit(self._book, decisions.expire(self._book, self._now()))
        self._tell()

    def _now(self) -> Moment:
        wall = self._clock.wall()
        physical = None if self._guard == "off" or self._usage_monitor is None else self._physical_shortages
        return Moment(wall=wall, steady=self._clock.steady(), opening=self._opening_at(wall), physical=physical)

    def _physical_shortages(self, demand: Demand) -> tuple[Shortage, ...]:
        sample = self.usage_sample
        shortages = physical_shortages(demand, sample, self._book.machine) if sample else ()
        if self._guard == "enforce" or not shortages:
            return shortages
        # Anybody may ask for a bid as often as they like: that must not fill the log.
        if self._clock.steady() >= self._warned + _WARN_SECONDS:
            self._warned = self._clock.steady()
            _log.warning("promised beyond what is free now: %s", "; ".join(map(describe_shortage, shortages)))
        return ()

    def _opening_at(self, wall: float) -> Opening:
        onboarded = self._book.offer.onboarded
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

    def _tell(self) -> None:
        changed, self._changed = self._changed, trio.Event()
        changed.set()

    def _total(self, *states: LeaseState) -> Resources:
        book = self._book
        sums = [book.totals[state] for state in states]
        gpus = []
        for uuid, device in book.devices.items():
            vram = sum(book.vram[state].get(uuid, 0) for state in states)
            if vram:
                gpus.append(msgspec.structs.replace(device.device, vram=vram))
        return Resources(
            cpu=CPU(cores=Cores(sum(total.millicores for total in sums))),
            ram=RAM(size=sum(total.ram for total in sums)),
            disk=Disk(size=sum(total.disk for total in sums)),
            gpus=_by_index(gpus),
        )

    async def _watch(self) -> AsyncGenerator[FreeResources, None]:
        seen = -1
        while True:
            changed = self._changed
            if self.version != seen:
                seen = self._book.version
                yield self.get_free_resources()
            else:
                await changed.wait()

    async def _run_on_disk(self, call: Callable[[], None]) -> None:
        # One connection: a reader must not look into the middle of the writer's transaction.
        async with self._disk:
            await self._worker(call)

    async def _keep_journal(self) -> None:
        await self._journal.run(self._current_book, self._tell)

    async def _flush(self) -> None:
        await self._journal.flush(self._current_book, self._tell)

    def _current_book(self) -> Book:
        return self._book

    async def _sweep(self) -> None:
        while True:
            changed = self._changed
            due = self._book.next_due()
            nap = _LONGEST_NAP if due is None else min(_LONGEST_NAP, due[0] - self._clock.steady())
            if nap > 0:
                with trio.move_on_after(nap):
                    await changed.wait()
            try:
                await self._ready()
                self._expire()
            except StorageError as error:
                _log.warning("deadlines wait for the disk: %s", error)
                await trio.sleep(_RETRY_SECONDS)
            await trio.lowlevel.checkpoint()

    async def _follow_machine(self, monitor: UsageMonitor) -> None:
        while True:
            await trio.sleep(_FOLLOW_SECONDS)
            if monitor.machine is not self._book.machine:
                self.update_machine(monitor.machine)
                for missing in self.missing_resources:
                    _log.warning("onboarded but no longer there: %s", describe_missing(missing))

    async def _audit_at_intervals(self) -> None:
        while True:
            await trio.sleep(_AUDIT_SECONDS)
            try:
                for finding in await self.audit():
                    _log.warning("audit: %s: %s", finding.code, finding.message)
            except StorageError as error:
                _log.warning("the audit waits for the disk: %s", error)

    async def _prune(self) -> None:
        while True:
            # At the start too: a process that never lives for an hour would keep everything.
            now = self._clock.wall()
            try:
                await self._forget(now - _HISTORY_SECONDS, now - _ENDED_SECONDS)
            except StorageError as error:
                _log.warning("old history is kept: %s", error)
            await trio.sleep(_PRUNE_SECONDS)

    async def _forget(self, history_before: float, ended_before: float) -> None:
        more = [True]

        def prune() -> None:
            more.append(self._storage.prune(history_before=history_before, ended_before=ended_before))

        # Step by step, so that changes get the disk between two of them.
        while more.pop():
            await self._run_on_disk(prune)


def _free(book: Book) -> FreeResources:
    room = book.room()
    return FreeResources(
        cpu=msgspec.structs.replace(room.cpu, cores=Cores(room.millicores)),
        ram=RAM(size=room.ram),
        disk=Disk(size=room.disk),
        gpus=_by_index(
            msgspec.structs.replace(state.device, vram=state.free, exclusive=state.exclusive)
            for state in room.devices
            if not state.missing
        ),
        ports=book.ports.free if book.offer.onboarded else 0,
        onboarded=book.offer.onboarded is not None,
        draining=book.offer.draining,
        simulated=book.machine.simulated,
    )


def _reload_entry(now: Moment, finding: Finding) -> HistoryEntry:
    return HistoryEntry(
        at=now.wall,
        actor="audit",
        action="reload",
        lease_id=finding.lease_id,
        reason=EndReason.REPAIRED.value,
        detail=finding.message,
    )


def _by_index(gpus: Iterable[GPU]) -> tuple[GPU, ...]:
    return tuple(sorted(gpus, key=lambda gpu: (gpu.index, gpu.uuid)))


def _started(processes: Iterable[int]) -> Iterable[tuple[int, float]]:
    # The start tells a process from a later one with the same number.
    for process in processes:
        try:
            yield process, started_after_boot(process)
        except (psutil.Error, ValueError, OverflowError):
            yield process, 0.0
