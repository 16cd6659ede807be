"""What a ledger says now: what the owner offers, what is free, and the leases. From memory, without waiting.

Each read first ends what has passed its deadline, so that no answer counts it.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import TYPE_CHECKING

from ..components import FreeResources, MachineResources, OnboardedResources, Resources
from ..demands import NO_PORTS, CPUDemand, Demand, DiskDemand, GPUDemand, PortDemand, RAMDemand, Shortage
from ..errors import StorageError
from ..machine.guard import physical_shortages
from ..refusals import RequestError
from . import decisions
from .book import free_resources, promised_resources
from .capacity import Granted
from .events import LeaseEvent
from .leases import EndedLease, Lease, LeaseRequest, LeaseState
from .ledger import Ledger
from .metrics import LedgerMetrics
from .missing import Missing, missing_resources

if TYPE_CHECKING:
    from ..machine.sampling import UsageSample
    from ..machine.usage import UsageMonitor

__all__ = ["LedgerView"]


class LedgerView:
    """The reads of one ledger. With a `usage_monitor` it also says what the machine uses."""

    def __init__(self, ledger: Ledger, usage_monitor: UsageMonitor | None) -> None:
        self._ledger = ledger
        self._usage_monitor = usage_monitor
        self._free: tuple[int, FreeResources] | None = None

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
    def draining(self) -> bool:
        """Whether this machine drains."""
        return self._ledger.book.offer.draining

    @property
    def drain_deadline(self) -> float | None:
        """The time (Unix seconds) by which the owner wants the drain to end; None without a drain or a deadline."""
        return self._ledger.book.offer.drain_deadline

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
        return promised_resources(self._ledger.book, LeaseState.HELD, LeaseState.COMMITTED)

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

    async def _watch(self) -> AsyncGenerator[FreeResources, None]:
        seen = -1
        while True:
            changed = self._ledger.changed
            if self.version != seen:
                seen = self._ledger.book.version
                yield self.get_free_resources()
            else:
                await changed.wait()
