"""The resource manager: what the machine's owner offers, what is free, and the leases.

Reads are answered from memory and never wait. Writes decide at once, are durable when they return, and may be
cancelled: a cancelled write takes place as a whole or not at all.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Sequence
from contextlib import aclosing, asynccontextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

import msgspec
import psutil
import trio

from .components import (
    FreeResources,
    MachineResources,
    OnboardedResources,
    Resources,
)
from .demands import (
    NO_PORTS,
    CPUDemand,
    CPUShortage,
    Demand,
    DiskDemand,
    GPUDemand,
    GPUShortage,
    PortDemand,
    RAMDemand,
    RAMShortage,
    Shortage,
    describe_shortage,
)
from .errors import LeaseError, StorageError
from .ledger import decisions, endings, jobs
from .ledger.audit import AuditSnapshot, audit_snapshot, started_after_boot
from .ledger.book import Change, free_resources, promised_resources
from .ledger.capacity import Granted
from .ledger.clock import Clock, SystemClock
from .ledger.deadlines import AllocationTerms
from .ledger.endings import Eviction
from .ledger.events import LeaseEvent
from .ledger.history import Finding, HistoryEntry
from .ledger.leases import EndedLease, EndReason, Lease, LeaseRequest, LeaseState, ResourceAllocation
from .ledger.ledger import Ledger
from .ledger.metrics import LedgerMetrics
from .ledger.missing import Missing, describe_missing, missing_resources
from .ledger.moment import Moment
from .ledger.storage import Contents, SQLiteStorage, StoredLease
from .machine.guard import physical_shortages
from .machine.hardware.cgroups import own_group
from .refusals import RequestError
from .tasks import Worker, new_worker, open_background

if TYPE_CHECKING:
    from .machine.sampling import UsageSample
    from .machine.usage import UsageMonitor

__all__ = ["AllocationTerms", "Eviction", "Guard", "ResourceManager", "open_manager"]

Guard: TypeAlias = Literal["off", "warn", "enforce"]
"""What to do when the ledger has free capacity but the machine itself does not.

`enforce` refuses what memory, disk or VRAM lacks now, and logs a warning about a busy CPU. `warn` refuses only what the
disk lacks, and logs a warning about the rest. `off` does neither.
"""

ReadPorts: TypeAlias = Callable[[], frozenset[int] | None]
"""Reads which ports programs use now (None: this cannot be known). It is called in a worker thread."""

_log = logging.getLogger(__name__)

_FLUSH_SECONDS = 10.0
_AUDIT_SECONDS = 600.0
_FOLLOW_SECONDS = 5.0
_WARN_SECONDS = 60.0
# Reading the kernel's tables takes milliseconds of CPU time. Ports are checked again when they are granted.
_PORTS_SECONDS = 30.0

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
    allocation_terms: AllocationTerms | None = None,
    worker: Worker | None = None,
    read_ports: ReadPorts | None = None,
) -> AsyncIterator[ResourceManager]:
    """Open the ledger at `path` and run it: write changes, end leases at their deadlines, audit.

    A `usage_monitor` runs meanwhile, and the manager follows its surveys of the machine. `guard` says what happens to a
    commitment for which the machine itself lacks capacity now: it is accepted, accepted with a warning in the log (but
    refused if the disk is full), or refused. `allocation_terms` say how long an allocation lasts without a renewal, and
    at most. `read_ports` returns the ports that programs use, so that none of them is granted; it is called every 30
    seconds and before each change that grants ports. `worker` runs blocking calls of the disk, by default in threads
    that no other part of this process can occupy. Raises `LedgerInUseError`, `LedgerDamagedError`, `LedgerVersionError`
    or `StorageError` if the ledger cannot be opened. On exit all waiting changes are written, for 10 seconds at most.
    """
    if not isinstance(machine, MachineResources):
        given = type(machine).__name__
        raise TypeError(f"open_manager needs the machine's resources, not {given}: measure them with measure_machine")
    clock, worker = clock or SystemClock(), worker or new_worker()
    opened: list[SQLiteStorage] = []
    await worker(lambda: opened.append(SQLiteStorage(path, boot_id=clock.boot_id)))
    with opened[0] as storage:
        stored: list[Contents] = []
        await worker(lambda: stored.append(storage.load()))
        ledger = Ledger(storage, stored[0], machine, clock, worker)
        manager = ResourceManager(ledger, usage_monitor, guard, allocation_terms or AllocationTerms(), read_ports)
        await manager._update_ports()
        work = (ledger.keep_journal, ledger.sweep, ledger.prune, manager._audit_at_intervals)
        try:
            async with open_background(*work) as nursery:
                if usage_monitor is not None:
                    # The outdated stubs that libp2p installs (trio-typing) have no matching task status.
                    await nursery.start(usage_monitor.run)  # type: ignore[arg-type]
                    nursery.start_soon(manager._follow_machine, usage_monitor)
                    await manager._follow_use(manager.leases())
                yield manager
        finally:
            try:
                with trio.CancelScope(deadline=trio.current_time() + _FLUSH_SECONDS, shield=True):
                    await ledger.flush()
            finally:
                ledger.journal.close(ledger.book)


class ResourceManager:
    """The seed's resource manager. `open_manager` makes it. It belongs to one trio event loop."""

    def __init__(
        self,
        ledger: Ledger,
        usage_monitor: UsageMonitor | None,
        guard: Guard,
        allocation_terms: AllocationTerms,
        read_ports: ReadPorts | None = None,
    ) -> None:
        self._ledger = ledger
        self._read_ports = read_ports
        self._own_ports: frozenset[int] = frozenset()
        self._ports_unread = False
        self._usage_monitor = usage_monitor
        self._guard = guard
        self._allocation_terms = allocation_terms
        ledger.on_end = self._unfollow_use
        self._warned = float("-inf")
        self._audited: tuple[float, tuple[Finding, ...]] | None = None
        if guard != "off" and usage_monitor is not None:
            ledger.physical = self._physical_shortages
        self._free: tuple[int, FreeResources] | None = None

    # Reads: from memory, without waiting

    @property
    def machine(self) -> MachineResources:
        """What the hardware has, as last measured."""
        return self._ledger.book.machine

    @property
    def version(self) -> int:
        """A number that grows with every change of the free, onboarded or leased resources."""
        self._ledger.expire()
        return self._ledger.book.version

    @property
    def allocation_terms(self) -> AllocationTerms:
        """How long an allocation lasts that replaces a commitment."""
        return self._allocation_terms

    @property
    def draining(self) -> bool:
        """Whether this machine drains."""
        return self._ledger.book.offer.draining

    @property
    def storage_error(self) -> StorageError | None:
        """The last failure of the disk; None if it works."""
        return self._ledger.journal.failed

    @property
    def metrics(self) -> LedgerMetrics:
        """The counters of the ledger's own work."""
        return self._ledger.journal.metrics

    @property
    def lease_counts(self) -> dict[LeaseState, int]:
        """The number of leases in each state."""
        self._ledger.expire()
        return {state: totals.count for state, totals in self._ledger.book.totals.items()}

    @property
    def waiting_changes(self) -> int:
        """The number of changes that wait for the disk."""
        return self._ledger.journal.waiting

    @property
    def last_audit(self) -> tuple[float, tuple[Finding, ...]] | None:
        """When the ledger was last audited (Unix seconds) and the findings; None before the first time."""
        return self._audited

    @property
    def missing_resources(self) -> tuple[Missing, ...]:
        """What is onboarded but no longer present. New commitments of it are refused."""
        onboarded = self._ledger.book.offer.onboarded
        return missing_resources(onboarded, self._ledger.book.machine) if onboarded else ()

    @property
    def usage_sample(self) -> UsageSample | None:
        """The last sample of what the machine uses, with its age; None if nothing watches it."""
        return self._usage_monitor.sample if self._usage_monitor else None

    @property
    def physically_short(self) -> tuple[Shortage, ...]:
        """Where less is physically free than in the ledger: a disk that fills up, memory that others use."""
        sample = self.usage_sample
        if sample is None or self._ledger.book.offer.onboarded is None:
            return ()
        free = self.get_free_resources()
        everything = Demand(
            cpu=CPUDemand(cores=free.cpu.cores),
            ram=RAMDemand(size=free.ram.size),
            disk=DiskDemand(size=free.disk.size),
            gpus=tuple(GPUDemand(vram=gpu.vram, uuid=gpu.uuid) for gpu in free.gpus),
        )
        return physical_shortages(everything, sample, self._ledger.book.machine)

    @property
    def usage_monitor(self) -> UsageMonitor:
        """The monitor of the machine's use. Raises `LookupError` if this manager was opened without one."""
        if self._usage_monitor is None:
            raise LookupError("this manager was opened without a usage monitor")
        return self._usage_monitor

    def get_onboarded_resources(self) -> OnboardedResources | None:
        """What the owner offers and on what terms; None if nothing is onboarded."""
        return self._ledger.book.offer.onboarded

    def get_free_resources(self) -> FreeResources:
        """The offer minus everything that is held, committed and allocated, at this instant."""
        self._ledger.expire()
        if self._free is None or self._free[0] != self._ledger.book.version:
            self._free = (self._ledger.book.version, free_resources(self._ledger.book))
        return self._free[1]

    def get_total_allocation(self) -> Resources:
        """The sum of all allocations and of the leases that are ending. GPUs have the bytes allocated on each."""
        self._ledger.expire()
        return promised_resources(self._ledger.book, LeaseState.ALLOCATED, LeaseState.ENDING)

    def get_total_commitment(self) -> Resources:
        """The sum of all commitments and holds. GPUs have the bytes committed on each."""
        self._ledger.expire()
        return promised_resources(self._ledger.book, *_NOT_ALLOCATED)

    def leases(self, holder: str | None = None) -> tuple[Lease, ...]:
        """All leases, or those of one holder; also those that are ending."""
        self._ledger.expire()
        if holder is None:
            return tuple(record.lease for record in self._ledger.book.leases.values())
        return tuple(self._ledger.book.leases[key].lease for key in self._ledger.book.ids_by_holder.get(holder, ()))

    def lease(self, lease_id: str) -> Lease | None:
        """The lease of this id; None if there is none."""
        self._ledger.expire()
        record = self._ledger.book.leases.get(lease_id)
        return record.lease if record else None

    def leases_with_jobs(self) -> tuple[Lease, ...]:
        """The leases to which a job is attached, also those that are ending and those whose job is gone."""
        return tuple(lease for lease in self.leases() if lease.job is not None)

    def evicted(self, holder: str) -> tuple[EndedLease, ...]:
        """The last leases of this holder that the owner evicted, at most 100; the oldest first."""
        self._ledger.expire()
        return self._ledger.book.evicted(holder)

    def is_committed(self, lease_id: str) -> bool:
        """Whether a commitment of this id exists."""
        lease = self.lease(lease_id)
        return lease is not None and lease.state is LeaseState.COMMITTED

    def is_allocated(self, lease_id: str) -> bool:
        """Whether an allocation of this id exists."""
        lease = self.lease(lease_id)
        return lease is not None and lease.state is LeaseState.ALLOCATED

    def would_fit(self, demand: Demand, ports: PortDemand = NO_PORTS, *, ttl: float = 0.0) -> Granted | RequestError:
        """What this demand would get at this instant, or the error with every dimension that falls short. Changes
        nothing.
        """
        asked = LeaseRequest(lease_id="", holder="", demand=demand, ports=ports, ttl=ttl)
        return self.would_fit_together([asked])[0]

    def would_fit_together(self, requests: Sequence[LeaseRequest]) -> list[Granted | RequestError]:
        """The same for several demands, each in addition to those before it that fit."""
        self._ledger.expire()
        return decisions.fit(self._ledger.book, requests, self._ledger.now())

    def objections(self, request: LeaseRequest) -> tuple[RequestError, ...]:
        """All errors of a request at this instant; empty if it would be granted."""
        self._ledger.expire()
        return decisions.objections(self._ledger.book, request, self._ledger.now())

    @asynccontextmanager
    async def watch(self) -> AsyncIterator[AsyncIterator[FreeResources]]:
        """Yield what is free now and after every change. Changes while the reader is busy are combined."""
        async with aclosing(self._watch()) as changes:
            yield changes

    @asynccontextmanager
    async def events(self, after: int | None = None) -> AsyncIterator[AsyncIterator[LeaseEvent]]:
        """Yield every event of a lease after the event with this number, and wait for more. None: from now on.

        There are no gaps, also across restarts. A reader that lists the leases within this block misses nothing. An
        event is reported when it is durable. Raises `EventsGoneError`, here or from the iterator, if some events after
        that number are no longer kept: the history has 90 days, and at most 1,000,000 entries. Raises `StorageError`.
        May be cancelled.
        """
        log = self._ledger.events
        number = log.last if after is None else after
        await log.check(number)
        async with aclosing(log.follow(number)) as events:
            yield events

    # Writes: decided at once, durable on return

    async def commit_resources(
        self, lease_id: str, demand: Demand, ports: PortDemand = NO_PORTS, *, holder: str, ttl: float
    ) -> Lease:
        """Commit this capacity to `holder` for `ttl` seconds. A hold of the same id is replaced without a gap.

        Raises `RequestError` (with every dimension that falls short), `ConflictError`, `ExpiredError`, `EndedError` or
        `StorageError`. May be cancelled.
        """
        request = LeaseRequest(lease_id=lease_id, holder=holder, demand=demand, ports=ports, ttl=ttl)
        return (await self.commit_group([request]))[0]

    async def commit_group(self, requests: Sequence[LeaseRequest], *, group: str = "") -> list[Lease]:
        """Commit all the requests, in one atomic change, or none. Raises like `commit_resources`; cancellable."""
        await self._update_ports(request.ports for request in requests)
        return await self._ledger.change(lambda now: decisions.commit(self._ledger.book, requests, now, group=group))

    async def hold(self, requests: Sequence[LeaseRequest]) -> list[Lease]:
        """Hold capacity for bids for some seconds, within the owner's limits. Raises `HoldLimitError`; cancellable."""
        await self._update_ports(request.ports for request in requests)
        return await self._ledger.change(lambda now: decisions.hold(self._ledger.book, requests, now))

    async def renew(self, lease_id: str, *, ttl: float, holder: str | None = None, fence: int | None = None) -> Lease:
        """Move the deadline of a commitment to `ttl` seconds from now, or restart the keep-alive of an allocation.

        The owner's `allocation_terms`, not `ttl`, set the length of a keep-alive. No deadline goes beyond the owner's
        notice or longest time; the returned lease has the deadline. Raises `ExpiredError` if it has passed,
        `EvictedError`, `NotCommittedError`, `NotHolderError`, `StaleFenceError`, `WindowError` or `StorageError`. May
        be cancelled.
        """
        return await self._ledger.change(
            lambda now: decisions.renew(
                self._ledger.book, lease_id, now, ttl=ttl, holder=holder, fence=fence, terms=self._allocation_terms
            )
        )

    async def uncommit_resources(
        self, lease_id: str, *, holder: str | None = None, fence: int | None = None
    ) -> EndedLease:
        """Release a commitment or hold. Raises `NotCommittedError` (also for an allocation), `ExpiredError`,
        `NotHolderError`, `StaleFenceError` or `StorageError`. May be cancelled.
        """
        return await self._end(lease_id, _NOT_ALLOCATED, holder, fence)

    async def allocate_resources(self, request: ResourceAllocation, *, terms: AllocationTerms | None = None) -> Lease:
        """Allocate capacity to a running job: a commitment of this id becomes the allocation in one step; without a
        commitment, the demand is allocated directly.

        An allocation that replaces a commitment lasts as `terms` say, by default the manager's `allocation_terms`. A
        direct one lasts until it is deallocated, unless `terms` are given. If the allocation exists already, the
        `processes` of the request replace its processes. Raises `RequestError`, `NotCommittedError`, `ConflictError`,
        `ExpiredError`, `EvictedError`, `NotHolderError`, `StaleFenceError` or `StorageError`. May be cancelled.
        """
        await self._update_ports([request.ports])
        processes = tuple(_started(request.processes))

        def decide(now: Moment) -> tuple[Change, Lease]:
            book = self._ledger.book
            by_default = self._allocation_terms if request.lease_id in book.leases else None
            return decisions.allocate(book, request, now, processes, terms or by_default)

        lease = await self._ledger.change(decide)
        await self._follow_use([lease])
        return lease

    async def deallocate_resources(
        self, lease_id: str, *, holder: str | None = None, fence: int | None = None
    ) -> EndedLease:
        """Release the capacity of a job. While an attached job is not gone, the lease is `ENDING` and still counts.

        Raises `NotAllocatedError` (also for a commitment), `NotHolderError`, `StaleFenceError` or `StorageError`.
        May be cancelled.
        """
        return await self._end(lease_id, (LeaseState.ALLOCATED,), holder, fence)

    async def release(self, lease_id: str, *, holder: str | None = None, fence: int | None = None) -> EndedLease:
        """End a lease in any state. Raises like `deallocate_resources`. May be cancelled."""
        return await self._end(lease_id, _ANY_STATE, holder, fence)

    async def attach_job(
        self, lease_id: str, digest: str, *, holder: str | None = None, fence: int | None = None
    ) -> Lease:
        """Attach a job to an allocation, by the `digest` of its document in hexadecimal. Call this before you start
        anything of the job.

        From then on the capacity of the lease is not free before `job_gone`. A lease has one job in its life: the same
        digest again gets the same answer. Raises `ConflictError` for another job, `NotAllocatedError`, `ExpiredError`,
        `EndedError`, `EvictedError`, `NotHolderError`, `StaleFenceError`, `AmountError` or `StorageError`. May be
        cancelled.
        """
        return await self._ledger.change(
            lambda now: jobs.attach(self._ledger.book, lease_id, now, digest=digest, holder=holder, fence=fence)
        )

    async def attach_processes(self, lease_id: str, processes: Iterable[int], *, cgroup: str | None = None) -> Lease:
        """Set the processes of an allocation, also of one that is ending. They replace earlier ones. Their use is
        measured, and audits check that they run.

        `cgroup` is the name of their group as in `/proc/PID/cgroup`, by default the group of the first process. Raises
        `NotAllocatedError`, `ExpiredError`, `EndedError`, `EvictedError`, `AmountError` or `StorageError`. May be
        cancelled.
        """
        started = tuple(_started(islice(processes, jobs.MOST_PROCESSES + 1)))
        lease = await self._ledger.change(
            lambda now: jobs.attach_processes(self._ledger.book, lease_id, started, cgroup)
        )
        await self._follow_use([lease])
        return lease

    async def job_gone(self, lease_id: str, *, fence: int) -> None:
        """Report that nothing of the job of this lease runs any more. A lease that is ending ends in the same step.

        Nothing changes if the lease is unknown, has another fencing number, or has no running job. Raises
        `StorageError`. May be cancelled.
        """
        await self._ledger.change(lambda now: jobs.gone(self._ledger.book, lease_id, now, fence=fence))
        self._unfollow_use(lease_id)

    async def evict(
        self,
        lease_ids: Iterable[str] = (),
        *,
        holder: str | None = None,
        everything: bool = False,
        reason: str = "",
        notice: float = 0.0,
    ) -> Eviction:
        """End leases of any state for the owner: those of `lease_ids`, all of `holder`, or `everything`.

        With a `notice` in seconds each lease ends at the latest that long from now, even if its holder renews it.
        Repeating it gives no more time. The holders get `evicted` with the reason (at most 200 characters). Raises
        `NotAllocatedError` for an unknown id, `AmountError` or `StorageError`; then nothing has changed. May be
        cancelled.
        """
        named = tuple(lease_ids)

        def decide(now: Moment) -> tuple[Change, Eviction]:
            book = self._ledger.book
            chosen = [*named, *(endings.standing(book, holder) if holder is not None else ())]
            chosen += endings.standing(book) if everything else ()
            return endings.evict(book, chosen, now, reason=reason, notice=notice)

        eviction = await self._ledger.change(decide)
        for ended in eviction.ended:
            self._unfollow_use(ended.lease_id)
        return eviction

    async def withdraw_notices(self) -> tuple[Lease, ...]:
        """Withdraw the notice of every lease that was evicted with one, and return these leases.

        Each lasts from now as if it had just been renewed. Raises `StorageError`. May be cancelled.
        """
        leases = await self._ledger.change(lambda now: endings.withdraw_notices(self._ledger.book, now, drain=False))
        return tuple(leases)

    def check_onboarding(self, onboarded: OnboardedResources) -> None:
        """Raise what `update_onboarded_resources` would raise. Changes nothing."""
        self._ledger.expire()
        offer = msgspec.structs.replace(self._ledger.book.offer, onboarded=onboarded)
        decisions.change_offer(self._ledger.book, offer, self._ledger.now(), action="onboard")

    async def update_onboarded_resources(self, onboarded: OnboardedResources) -> None:
        """Offer these resources from now on. Existing leases stay as they are.

        Raises `OnboardingError` for more than the machine has or less than is promised, or `StorageError`. May be
        cancelled.
        """
        detail = f"{onboarded.cpu.cores} cores, {onboarded.ram.size} B RAM, {onboarded.disk.size} B disk"
        await self._change_offer("onboard", detail, onboarded=onboarded)

    async def offboard(self) -> None:
        """Offer nothing any more. Raises `StillPromisedError` while leases exist. May be cancelled."""
        await self._ledger.change(lambda now: (decisions.offboard(self._ledger.book, now), None))

    async def set_draining(self, draining: bool) -> None:
        """Stop accepting new commitments, or accept them again. Existing leases continue. May be cancelled."""
        await self._change_offer("drain" if draining else "undrain", "", draining=draining)

    async def drain(self, *, evict: bool = False, deadline: float = 0.0, reason: str = "") -> Eviction:
        """Stop accepting new commitments. Jobs continue, unless `evict` ends every lease, in the same step, at the
        latest after `deadline` seconds; with deadline 0 at once.

        The holders get `evicted` with the reason. Raises `AmountError` or `StorageError`; then nothing has changed. May
        be cancelled.
        """
        eviction = await self._ledger.change(
            lambda now: decisions.drain(self._ledger.book, now, evict=evict, deadline=deadline, reason=reason)
        )
        for ended in eviction.ended:
            self._unfollow_use(ended.lease_id)
        return eviction

    async def cancel_drain(self) -> tuple[Lease, ...]:
        """Accept new commitments again, and withdraw the notices that a drain gave. Returns these leases.

        Notices of `evict` stay. Raises `StorageError`. May be cancelled.
        """
        leases = await self._ledger.change(lambda now: decisions.cancel_drain(self._ledger.book, now))
        return tuple(leases)

    async def wait_drained(self) -> None:
        """Return when no lease exists any more. May be cancelled."""
        await trio.lowlevel.checkpoint()
        while self._ledger.book.leases:
            await self._ledger.changed.wait()

    def update_machine(self, machine: MachineResources) -> None:
        """Use a new description of the machine: what is gone is no longer offered, existing leases stay."""
        self._ledger.book.set_machine(machine)
        self._ledger.tell()

    def reserve_ports(self, ports: Iterable[int]) -> None:
        """Never grant these ports, on which the peer itself listens. Replaces the earlier reservation."""
        before, self._own_ports = self._own_ports, frozenset(ports)
        self._note_ports(self._ledger.book.used_ports - before)

    async def history(self, *, limit: int = 100, before: int | None = None) -> list[tuple[int, HistoryEntry]]:
        """What happened, newest first, with numbers to continue from. Raises `StorageError`. May be cancelled."""
        found: list[tuple[int, HistoryEntry]] = []
        await self._ledger.run_on_disk(lambda: found.extend(self._ledger.storage.history(limit=limit, before=before)))
        return found

    async def audit(self, *, repair: bool = False) -> list[Finding]:
        """Compare the ledger with itself, with its file and with what the operating system reports.

        With `repair` an allocation without a job whose processes are gone is ended, and a book that differs from its
        file or from its own sums is built again from the file, each with an entry in the history. Raises
        `StorageError`. May be cancelled.
        """
        # Changes on their way to the disk, or made since, would look like differences.
        found = await self._observe(await self._ledger.compare())
        self._audited = (self._ledger.clock.wall(), tuple(found))
        if repair:
            await self._repair(found)
        return found

    # Internal

    async def _observe(self, stored: list[StoredLease] | None) -> list[Finding]:
        findings: list[Finding] = []
        sample = self._usage_monitor.get_usage() if self._usage_monitor else None
        # A copy of the records, so that the thread does not read what changes meanwhile.
        snapshot = AuditSnapshot.of(self._ledger.book, stored)
        await self._ledger.work(lambda: findings.extend(audit_snapshot(snapshot, sample)))
        return findings

    async def _repair(self, found: Sequence[Finding]) -> None:
        differing = [finding for finding in found if finding.code in ("totals", "stored")]
        if differing:
            await self._ledger.reload(
                f"audit: {differing[0].message}", lambda now: tuple(_reload_entry(now, one) for one in differing)
            )
        for finding in found:
            lease = self.lease(finding.lease_id)
            if finding.code == "process_gone" and lease is not None and lease.job is None:
                await self._end_allocation(finding)

    async def _end_allocation(self, finding: Finding) -> None:
        # Its holder may have released it since the audit found it.
        with contextlib.suppress(LeaseError):
            await self._ledger.change(
                lambda now: endings.end(
                    self._ledger.book,
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
            self._unfollow_use(finding.lease_id)

    async def _change_offer(self, action: str, detail: str, **terms: OnboardedResources | bool) -> None:
        def decide(now: Moment) -> tuple[Change, None]:
            # The owner's other decisions are read here, after the wait, so that a change of them meanwhile is not
            # undone.
            offer = msgspec.structs.replace(self._ledger.book.offer, **terms)
            return decisions.change_offer(self._ledger.book, offer, now, action=action, detail=detail), None

        await self._ledger.change(decide)

    async def _end(
        self, lease_id: str, states: tuple[LeaseState, ...], holder: str | None, fence: int | None
    ) -> EndedLease:
        ended = await self._ledger.change(
            lambda now: endings.end(self._ledger.book, lease_id, now, states=states, holder=holder, fence=fence)
        )
        self._unfollow_use(lease_id)
        return ended

    async def _follow_use(self, leases: Iterable[Lease]) -> None:
        """Measures the use of each job, where its processes have a cgroup of their own."""
        leases = tuple(leases)
        groups: dict[str, str | None] = {lease.lease_id: lease.cgroup for lease in leases if lease.cgroup}
        known = {lease.lease_id: lease.processes[0][0] for lease in leases if lease.processes and not lease.cgroup}
        if self._usage_monitor is None or not (known or groups):
            return
        await self._ledger.work(lambda: groups.update((key, own_group(number)) for key, number in known.items()))
        for lease_id, group in groups.items():
            # It may have been released while its group was looked up.
            if group is not None and lease_id in self._ledger.book.leases:
                self._usage_monitor.follow(lease_id, group)

    def _unfollow_use(self, lease_id: str) -> None:
        # The use of a job is followed until the job is gone.
        record = self._ledger.book.leases.get(lease_id)
        if self._usage_monitor is not None and not (record and record.lease.runs_job):
            self._usage_monitor.unfollow(lease_id)

    def _physical_shortages(self, demand: Demand) -> tuple[Shortage, ...]:
        sample = self.usage_sample
        shortages = physical_shortages(demand, sample, self._ledger.book.machine) if sample else ()
        # CPU time is shared and may be free in a second, so a busy CPU never leads to a refusal. Other programs may
        # free memory, and `warn` takes that risk. A full disk stays full.
        tolerated = (CPUShortage,) if self._guard == "enforce" else (CPUShortage, RAMShortage, GPUShortage)
        passed = [shortage for shortage in shortages if isinstance(shortage, tolerated)]
        # Anybody may request bids at any rate, and must not fill the log.
        if passed and self._ledger.clock.steady() >= self._warned + _WARN_SECONDS:
            self._warned = self._ledger.clock.steady()
            _log.warning("promised beyond what is free now: %s", "; ".join(map(describe_shortage, passed)))
        return tuple(shortage for shortage in shortages if not isinstance(shortage, tolerated))

    async def _watch(self) -> AsyncGenerator[FreeResources, None]:
        seen = -1
        while True:
            changed = self._ledger.changed
            if self.version != seen:
                seen = self._ledger.book.version
                yield self.get_free_resources()
            else:
                await changed.wait()

    async def _follow_machine(self, monitor: UsageMonitor) -> None:
        while True:
            await trio.sleep(_FOLLOW_SECONDS)
            if monitor.machine is not self._ledger.book.machine:
                self.update_machine(monitor.machine)
                for missing in self.missing_resources:
                    _log.warning("onboarded but no longer there: %s", describe_missing(missing))

    async def _follow_ports(self) -> None:
        while True:
            await trio.sleep(_PORTS_SECONDS)
            await self._update_ports()

    async def _update_ports(self, asked: Iterable[PortDemand] | None = None) -> None:
        """Read which ports programs use now. With `asked`, only if one of the demands requests ports."""
        if self._read_ports is None or (asked is not None and all(ports == NO_PORTS for ports in asked)):
            return
        read, found = self._read_ports, list[frozenset[int] | None]()
        await self._ledger.work(lambda: found.append(read()))
        unread, self._ports_unread = self._ports_unread, found[0] is None
        if found[0] is not None:
            self._note_ports(found[0])
        elif not unread:
            _log.warning("the ports that programs use cannot be read: the ledger alone decides which are free")

    def _note_ports(self, used: frozenset[int]) -> None:
        if self._ledger.book.set_used_ports(used | self._own_ports):
            self._ledger.tell()

    async def _audit_at_intervals(self) -> None:
        while True:
            await trio.sleep(_AUDIT_SECONDS)
            try:
                for finding in await self.audit():
                    _log.warning("audit: %s: %s", finding.code, finding.message)
            except StorageError as error:
                _log.warning("the audit waits for the disk: %s", error)


def _reload_entry(now: Moment, finding: Finding) -> HistoryEntry:
    return HistoryEntry(
        at=now.wall,
        actor="audit",
        action="reload",
        lease_id=finding.lease_id,
        reason=EndReason.REPAIRED.value,
        detail=finding.message,
    )


def _started(processes: Iterable[int]) -> Iterable[tuple[int, float]]:
    # The start time distinguishes a process from a later one with the same number.
    for process in processes:
        try:
            yield process, started_after_boot(process)
        except (psutil.Error, ValueError, OverflowError):
            yield process, 0.0
