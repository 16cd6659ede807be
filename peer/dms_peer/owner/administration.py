"""The owner's operations: status, onboarding, offboarding, history, audit.

The same operations run behind the Unix socket of a running peer and, if none runs, on the ledger itself. They are never
offered to other peers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import TYPE_CHECKING, Final

import trio
from msgspec.structs import asdict, replace

from dms_protocols.errors import ProtocolError
from dms_protocols.rpc.counts import ServiceCounts
from dms_protocols.rpc.operations import Caller, Operations
from dms_resources.demands import describe_shortage
from dms_resources.ledger.leases import EndedLease, Lease, LeaseState
from dms_resources.ledger.missing import describe_missing
from dms_resources.machine.advice import offer_warnings
from dms_resources.machine.listening import read_ephemeral_ports
from dms_resources.machine.registry import Registration
from dms_resources.units import format_size

from .. import __version__
from .messages import (
    AuditAnswer,
    AuditRequest,
    CancelDrainAnswer,
    CancelDrainRequest,
    DrainAnswer,
    DrainEvent,
    DrainRequest,
    EvictAnswer,
    EvictRequest,
    ExecutorStatus,
    HistoryAnswer,
    HistoryRequest,
    HistoryRow,
    LeaseJobStatus,
    LeaseUse,
    OffboardRequest,
    OnboardAnswer,
    OnboardRequest,
    ReleaseLeaseRequest,
    StartDrainRequest,
    StatusAnswer,
    StatusRequest,
    TermsSummary,
)
from .offers import onboarded_resources

if TYPE_CHECKING:
    from dms_protocols.messages.job import JobStatus
    from dms_resources.components import OnboardedResources, Resources
    from dms_resources.machine.sampling import UsageSample
    from dms_resources.manager import ResourceManager

    from ..config.terms import OwnerTerms
    from ..executors.executor import Capabilities

__all__ = ["LocalAdministration", "administration_operations", "terms_summary"]

# The most leases in one answer. `lease_count` has the number of all.
_MOST_LEASES: Final = 500


# The reason that holders get for leases that end with a drain.
_DRAINED: Final = "the owner drains the machine"


def _lease_use(leases: Sequence[Lease], sample: UsageSample) -> tuple[LeaseUse, ...]:
    """What the followed leases use. The use of a GPU is that of the only lease on it."""
    users = Counter(gpu.uuid for lease in leases for gpu in lease.resources.gpus)
    used = {gpu.uuid: gpu.vram for gpu in sample.usage.gpus}
    alone = {
        lease.lease_id: {
            gpu.uuid: used[gpu.uuid] for gpu in lease.resources.gpus if users[gpu.uuid] == 1 and gpu.uuid in used
        }
        for lease in leases
    }
    return tuple(
        LeaseUse(lease_id=job.lease_id, cores=job.cpu, ram=job.ram, vram=alone.get(job.lease_id, {}))
        for job in sample.jobs
    )


def _only(name: str, what: str, found: Sequence[str]) -> str:
    """The only match, or the name itself if there is none. Raises ProtocolError `ambiguous`."""
    different = sorted(set(found))
    if len(different) > 1:
        raise ProtocolError(f"{len(different)} {what} begin with {name!r}: write more of the id", code="ambiguous")
    return different[0] if different else name


def terms_summary(terms: OwnerTerms) -> TermsSummary:
    """The terms on which the peer bids, for the owner."""
    prices, place, peers = terms.prices, terms.location, terms.peers
    fields = [name for name in prices.__struct_fields__ if name != "currency"] if prices else []
    return TermsSummary(
        currency=prices.currency if prices else "",
        micros_per_hour={name: price for name in fields if (price := getattr(prices, name))},
        location=tuple(filter(None, (place.continent, place.country, place.city))) if place else (),
        executors=terms.executors,
        privileged_docker=terms.privileged_docker,
        valid_seconds=terms.valid_seconds,
        allowed_peers=tuple(sorted(peers.allow)),
        denied_peers=tuple(sorted(peers.deny)),
        policies=tuple(f"{policy.describe()} (within {policy.budget:g} s)" for policy in terms.policies),
    )


class LocalAdministration:
    """Administers an open ledger in this process. `addrs` returns where the peer listens now; None if it does not run.

    `terms` are the terms on which it bids, `counts` its counters, `limits_hit` what its host refused. `free_now` is how
    many bytes of RAM and disk the machine had free, if nothing watches it. `registration` knows the other peers of this
    machine; it is None if the machine is only described.
    """

    def __init__(
        self,
        manager: ResourceManager,
        peer_id: str,
        addrs: Callable[[], tuple[str, ...]] | None = None,
        terms: TermsSummary | None = None,
        *,
        counts: ServiceCounts | None = None,
        limits_hit: Mapping[str, int] | None = None,
        free_now: tuple[int | None, int | None] = (None, None),
        registration: Registration | None = None,
        jobs: Callable[[], Sequence[JobStatus]] = list,
        executors: Callable[[], Mapping[str, Capabilities]] = dict,
    ) -> None:
        self._manager = manager
        self._peer_id = peer_id
        self._free_now = free_now
        self._registration = registration
        self._jobs = jobs
        self._executors = executors
        self._addrs = addrs
        self.terms = terms
        self._counts = counts or ServiceCounts()
        # Not `or`, because counters without a hit are empty.
        self._limits_hit: Mapping[str, int] = {} if limits_hit is None else limits_hit

    async def status(self) -> StatusAnswer:
        """What is onboarded, promised and free."""
        manager = self._manager
        leases = manager.leases()
        audited, findings = manager.last_audit or (None, ())
        sample = manager.usage_sample
        return StatusAnswer(
            peer_id=self._peer_id,
            addrs=self._addrs() if self._addrs is not None else (),
            running=self._addrs is not None,
            simulated=manager.machine.simulated,
            draining=manager.draining,
            onboarded=manager.get_onboarded_resources(),
            free=manager.get_free_resources(),
            committed=manager.get_total_commitment(),
            allocated=manager.get_total_allocation(),
            leases=tuple(reversed(leases[-_MOST_LEASES:])),
            lease_count=len(leases),
            limits=manager.machine.limits,
            problems=manager.machine.problems,
            usage=sample.usage if sample else None,
            usage_age=sample.age if sample else None,
            missing=tuple(map(describe_missing, manager.missing_resources)),
            short_now=tuple(map(describe_shortage, manager.physically_short)),
            storage_error=manager.storage_error.message if manager.storage_error else None,
            findings=findings,
            audited=audited,
            terms=self.terms,
            refusals=dict(self._counts.refusals),
            failures=self._counts.failures(),
            limits_hit=dict(self._limits_hit),
            lease_use=_lease_use(leases, sample) if sample else (),
            jobs=self._jobs_of(leases),
            executors=tuple(
                ExecutorStatus(
                    name=name, works=found.works, problem=found.problem, version=found.version, notes=found.notes
                )
                for name, found in sorted(self._executors().items())
            ),
            other_peers=await self._other_peers(manager.get_onboarded_resources()),
            version=__version__,
            drain_deadline=manager.drain_deadline,
        )

    def _jobs_of(self, leases: Iterable[Lease]) -> tuple[LeaseJobStatus, ...]:
        fences = {lease.lease_id: lease.fence for lease in leases}
        return tuple(
            LeaseJobStatus(
                lease_id=job.lease_id,
                executor=job.executor,
                state=job.state,
                since=job.since,
                exit=job.exit,
                reason=job.reason,
                output=job.output,
            )
            for job in self._jobs()
            if fences.get(job.lease_id) == job.fence
        )

    async def onboard(self, request: OnboardRequest) -> OnboardAnswer:
        """Offer resources from now on.

        Raises ProtocolError `other_machine` if the owner means another machine, and `MachineInUseError` if this peer
        runs and the other peers of this machine leave it less. A peer that does not run is only warned.
        """
        if request.machine is not None and request.machine != self._manager.machine:
            raise ProtocolError(
                "the running peer describes another machine than the --machine given", code="other_machine"
            )
        machine = self._manager.machine
        onboarded = onboarded_resources(request.offer, machine)
        warnings = offer_warnings(onboarded, machine, await trio.to_thread.run_sync(read_ephemeral_ports))
        if self._addrs is None:
            warnings += await self._other_peers(onboarded)
        if request.dry_run:
            self._manager.check_onboarding(onboarded)
            await self._publish(onboarded, only_check=True)
            return OnboardAnswer(
                onboarded=onboarded,
                free=self._manager.get_free_resources(),
                simulated=machine.simulated,
                warnings=(*warnings, *self._short_now(onboarded)),
            )
        before = self._manager.get_onboarded_resources()
        await self._publish(onboarded)
        try:
            await self._manager.update_onboarded_resources(onboarded)
        except BaseException:
            if self._registration is not None:
                self._registration.restore(before)
            raise
        if self._manager.draining:
            await self._manager.set_draining(False)
        return replace(self._offer(), warnings=(*warnings, *self._short_now(self._manager.get_free_resources())))

    def _short_now(self, promised: Resources) -> tuple[str, ...]:
        """Where the machine now has less RAM or disk free than this; empty if that is not known."""
        sample = self._manager.usage_sample
        ram, disk = self._free_now if sample is None else (sample.free.ram.size, sample.free.disk.size)
        return tuple(
            f"{name}: {format_size(asked)} could be promised, but the machine has {format_size(free)} free now"
            for name, asked, free in (("RAM", promised.ram.size, ram), ("disk", promised.disk.size, disk))
            if free is not None and free < asked
        )

    async def offboard(self) -> OnboardAnswer:
        """Offer nothing. Raises what `ResourceManager.offboard` raises."""
        await self._manager.offboard()
        await self._publish(None)
        return self._offer()

    async def _other_peers(self, offer: OnboardedResources | None) -> tuple[str, ...]:
        if self._registration is None:
            return ()
        return await trio.to_thread.run_sync(self._registration.sentences, offer)

    async def _publish(self, offer: OnboardedResources | None, *, only_check: bool = False) -> None:
        """Tells the other peers of this machine what is offered. Raises `MachineInUseError`."""
        if self._registration is None or self._addrs is None:
            return
        await trio.to_thread.run_sync(self._registration.check if only_check else self._registration.publish, offer)

    async def evict(self, request: EvictRequest) -> EvictAnswer:
        """End leases for the owner. Raises ProtocolError `ambiguous`, and what `ResourceManager.evict` raises."""
        leases = [self._lease_id(name) for name in request.leases]
        holder = None if request.holder is None else self._holder(request.holder)
        evicted = await self._manager.evict(
            leases, holder=holder, everything=request.everything, reason=request.reason, notice=request.notice
        )
        ending = (one.lease_id for one in evicted.ended if self._manager.lease(one.lease_id) is not None)
        return EvictAnswer(ended=evicted.ended, noticed=evicted.noticed, ending=tuple(ending))

    async def release(self, request: ReleaseLeaseRequest) -> EndedLease:
        """End one lease as its holder would. Raises what `evict` raises."""
        return await self._manager.release(self._lease_id(request.lease))

    def _lease_id(self, name: str) -> str:
        """The id of the lease with this id or with an id that begins with this text. An unknown name is returned
        unchanged.
        """
        if self._manager.lease(name) is not None:
            return name
        return _only(name, "leases", [one.lease_id for one in self._manager.leases() if one.lease_id.startswith(name)])

    def _holder(self, name: str) -> str:
        if self._manager.leases(name):
            return name
        return _only(name, "holders", [one.holder for one in self._manager.leases() if one.holder.startswith(name)])

    async def start_drain(self, request: StartDrainRequest) -> DrainAnswer:
        """Accept no new commitments from now on. Raises what `ResourceManager.drain` raises."""
        reason = _DRAINED if request.evict else ""
        eviction = await self._manager.drain(evict=request.evict, deadline=request.notice, reason=reason)
        evicted = len(eviction.ended) + len(eviction.noticed)
        return DrainAnswer(
            leases=len(self._manager.leases()),
            evicted=evicted,
            running=self._addrs is not None,
            ending=self._manager.lease_counts[LeaseState.ENDING],
            deadline=self._manager.drain_deadline,
        )

    async def cancel_drain(self) -> CancelDrainAnswer:
        """Accept new commitments again. Raises what `ResourceManager.cancel_drain` raises."""
        drained = self._manager.draining
        withdrawn = await self._manager.cancel_drain()
        return CancelDrainAnswer(drained=drained, withdrawn=len(withdrawn))

    async def drain(self, tell: Callable[[int], None]) -> None:
        """Accept no new commitments, and return when no lease exists. Calls `tell` with the number of leases left."""
        async with aclosing(self.draining()) as counts:
            async for count in counts:
                tell(count)

    async def draining(self) -> AsyncGenerator[int, None]:
        """Start to drain, and yield the number of leases left after every change, until there are none."""
        await self._manager.set_draining(True)
        async with self._manager.watch() as changes:
            async for _ in changes:
                count = len(self._manager.leases())
                yield count
                if not count:
                    return

    async def history(self, request: HistoryRequest) -> HistoryAnswer:
        """What happened, newest first."""
        found = await self._manager.history(limit=request.limit, before=request.before)
        return HistoryAnswer(entries=tuple(HistoryRow(number=number, **asdict(entry)) for number, entry in found))

    async def audit(self, request: AuditRequest) -> AuditAnswer:
        """The mismatches that an audit finds. Raises what `ResourceManager.audit` raises."""
        findings = await self._manager.audit(repair=request.repair)
        return AuditAnswer(findings=tuple(findings), repaired=request.repair)

    def _offer(self) -> OnboardAnswer:
        manager = self._manager
        return OnboardAnswer(
            onboarded=manager.get_onboarded_resources(),
            free=manager.get_free_resources(),
            simulated=manager.machine.simulated,
        )


def administration_operations(administration: LocalAdministration) -> Operations:
    """The operations for the owner's socket."""

    async def status(request: StatusRequest, caller: Caller) -> StatusAnswer:
        return await administration.status()

    async def onboard(request: OnboardRequest, caller: Caller) -> OnboardAnswer:
        return await administration.onboard(request)

    async def offboard(request: OffboardRequest, caller: Caller) -> OnboardAnswer:
        return await administration.offboard()

    async def history(request: HistoryRequest, caller: Caller) -> HistoryAnswer:
        return await administration.history(request)

    async def audit(request: AuditRequest, caller: Caller) -> AuditAnswer:
        return await administration.audit(request)

    async def evict(request: EvictRequest, caller: Caller) -> EvictAnswer:
        return await administration.evict(request)

    async def release(request: ReleaseLeaseRequest, caller: Caller) -> EndedLease:
        return await administration.release(request)

    async def start_drain(request: StartDrainRequest, caller: Caller) -> DrainAnswer:
        return await administration.start_drain(request)

    async def cancel_drain(request: CancelDrainRequest, caller: Caller) -> CancelDrainAnswer:
        return await administration.cancel_drain()

    @asynccontextmanager
    async def drain(request: DrainRequest, caller: Caller) -> AsyncIterator[AsyncIterator[DrainEvent]]:
        async with aclosing(_drain_events(administration)) as events:
            yield events

    operations = Operations()
    operations.slow(StatusRequest, status)
    operations.slow(OnboardRequest, onboard)
    operations.slow(OffboardRequest, offboard)
    operations.slow(HistoryRequest, history)
    operations.slow(AuditRequest, audit)
    operations.slow(EvictRequest, evict)
    operations.slow(ReleaseLeaseRequest, release)
    operations.slow(StartDrainRequest, start_drain)
    operations.slow(CancelDrainRequest, cancel_drain)
    operations.watch(DrainRequest, drain)
    return operations


async def _drain_events(administration: LocalAdministration) -> AsyncGenerator[DrainEvent, None]:
    async with aclosing(administration.draining()) as counts:
        async for count in counts:
            yield DrainEvent(leases=count)
