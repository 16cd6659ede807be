"""The resource manager: what the machine's owner offers, what is free, and the leases.

Reads are answered from memory and never wait. Writes decide at once, are durable when they return, and may be
cancelled: a cancelled write takes place as a whole or not at all.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import trio

from .components import (
    MachineResources,
    OnboardedResources,
)
from .demands import (
    NO_PORTS,
    Demand,
    PortDemand,
)
from .ledger import decisions, endings, jobs
from .ledger.auditor import Auditor
from .ledger.book import Change
from .ledger.clock import Clock, SystemClock
from .ledger.deadlines import AllocationTerms
from .ledger.endings import Eviction
from .ledger.history import Finding, HistoryEntry
from .ledger.job_usage import JobUsageFollower, start_times
from .ledger.leases import EndedLease, Lease, LeaseRequest, LeaseState, ResourceAllocation
from .ledger.ledger import Ledger
from .ledger.missing import describe_missing
from .ledger.moment import Moment
from .ledger.port_watch import PortWatch, ReadPorts
from .ledger.storage import Contents, SQLiteStorage
from .ledger.view import LedgerView
from .machine.guard import Guard, PhysicalGuard
from .tasks import Worker, new_worker, open_background

if TYPE_CHECKING:
    from .machine.usage import UsageMonitor

__all__ = ["AllocationTerms", "Eviction", "Guard", "ResourceManager", "open_manager"]

_log = logging.getLogger(__name__)

_FLUSH_SECONDS = 10.0
_FOLLOW_SECONDS = 5.0

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
        await manager._ports.update()
        work = (ledger.keep_journal, ledger.sweep, ledger.prune, manager._auditor.run, manager._ports.run)
        try:
            async with open_background(*work) as nursery:
                if usage_monitor is not None:
                    # The outdated stubs that libp2p installs (trio-typing) have no matching task status.
                    await nursery.start(usage_monitor.run)  # type: ignore[arg-type]
                    nursery.start_soon(manager._follow_machine, usage_monitor)
                    await manager._jobs.follow(manager.leases())
                yield manager
        finally:
            try:
                with trio.CancelScope(deadline=trio.current_time() + _FLUSH_SECONDS, shield=True):
                    await ledger.flush()
            finally:
                ledger.journal.close(ledger.book)


class ResourceManager(LedgerView):
    """The seed's resource manager. `open_manager` makes it. It belongs to one trio event loop."""

    def __init__(
        self,
        ledger: Ledger,
        usage_monitor: UsageMonitor | None,
        guard: Guard,
        allocation_terms: AllocationTerms,
        read_ports: ReadPorts | None = None,
    ) -> None:
        super().__init__(ledger, usage_monitor)
        self._allocation_terms = allocation_terms
        self._ports = PortWatch(ledger, read_ports)
        self._jobs = JobUsageFollower(ledger, usage_monitor)
        self._auditor = Auditor(
            ledger, lambda: usage_monitor.get_usage() if usage_monitor else None, self._jobs.unfollow
        )
        ledger.on_end = self._jobs.unfollow
        if guard != "off" and usage_monitor is not None:
            ledger.physical = PhysicalGuard(guard, lambda: self.usage_sample, lambda: self.machine, ledger.clock.steady)

    @property
    def allocation_terms(self) -> AllocationTerms:
        """How long an allocation lasts that replaces a commitment."""
        return self._allocation_terms

    @property
    def last_audit(self) -> tuple[float, tuple[Finding, ...]] | None:
        """When the ledger was last audited (Unix seconds) and the findings; None before the first time."""
        return self._auditor.last

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
        await self._ports.update(request.ports for request in requests)
        return await self._ledger.change(lambda now: decisions.commit(self._ledger.book, requests, now, group=group))

    async def hold(self, requests: Sequence[LeaseRequest]) -> list[Lease]:
        """Hold capacity for bids for some seconds, within the owner's limits. Raises `HoldLimitError`; cancellable."""
        await self._ports.update(request.ports for request in requests)
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
        await self._ports.update([request.ports])
        processes = start_times(request.processes)

        def decide(now: Moment) -> tuple[Change, Lease]:
            book = self._ledger.book
            by_default = self._allocation_terms if request.lease_id in book.leases else None
            return decisions.allocate(book, request, now, processes, terms or by_default)

        lease = await self._ledger.change(decide)
        await self._jobs.follow([lease])
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
        started = start_times(processes)
        lease = await self._ledger.change(
            lambda now: jobs.attach_processes(self._ledger.book, lease_id, started, cgroup)
        )
        await self._jobs.follow([lease])
        return lease

    async def job_gone(self, lease_id: str, *, fence: int, how: str = "") -> None:
        """Report that nothing of the job of this lease runs any more. A lease that is ending ends in the same step.

        `how` says in the history how the job ended; it is cut to 200 characters.
        Nothing changes if the lease is unknown, has another fencing number, or has no running job. Raises
        `StorageError`. May be cancelled.
        """
        await self._ledger.change(lambda now: jobs.gone(self._ledger.book, lease_id, now, fence=fence, how=how))
        self._jobs.unfollow(lease_id)

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
            self._jobs.unfollow(ended.lease_id)
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
        if draining:
            await self._change_offer("drain", "", draining=True)
        else:
            await self._change_offer("undrain", "", draining=False, drain_deadline=None)

    async def drain(self, *, evict: bool = False, deadline: float = 0.0, reason: str = "") -> Eviction:
        """Stop accepting new commitments. Jobs continue, unless `evict` ends every lease, in the same step, at the
        latest after `deadline` seconds; with deadline 0 at once.

        The holders get `evicted` with the reason. The deadline is recorded (`drain_deadline`).
        Raises `AmountError` or `StorageError`; then nothing has changed. May be cancelled.
        """
        eviction = await self._ledger.change(
            lambda now: decisions.drain(self._ledger.book, now, evict=evict, deadline=deadline, reason=reason)
        )
        for ended in eviction.ended:
            self._jobs.unfollow(ended.lease_id)
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
        self._ports.reserve(ports)

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
        return await self._auditor.audit(repair=repair)

    # Internal

    async def _change_offer(self, action: str, detail: str, **terms: OnboardedResources | bool | None) -> None:
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
        self._jobs.unfollow(lease_id)
        return ended

    async def _follow_machine(self, monitor: UsageMonitor) -> None:
        while True:
            await trio.sleep(_FOLLOW_SECONDS)
            if monitor.machine is not self._ledger.book.machine:
                self.update_machine(monitor.machine)
                for missing in self.missing_resources:
                    _log.warning("onboarded but no longer there: %s", describe_missing(missing))
