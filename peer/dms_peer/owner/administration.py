"""What a peer answers its owner: status, onboarding, offboarding, history, audit.

The same operations run behind the Unix socket of a running peer and, when none runs, on the ledger itself. They are
never offered to other peers.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import aclosing, asynccontextmanager
from typing import TYPE_CHECKING, Final

from dms_protocols.errors import ProtocolError
from dms_protocols.rpc.counts import ServiceCounts
from dms_protocols.rpc.operations import Caller, Operations
from dms_resources.demands import describe_shortage
from dms_resources.ledger.missing import describe_missing

from .messages import (
    AuditAnswer,
    AuditRequest,
    DrainEvent,
    DrainRequest,
    HistoryAnswer,
    HistoryRequest,
    HistoryRow,
    LeaseUse,
    OffboardRequest,
    OnboardAnswer,
    OnboardRequest,
    StatusAnswer,
    StatusRequest,
    TermsSummary,
)
from .offers import onboarded_resources

if TYPE_CHECKING:
    from dms_resources.manager import ResourceManager

    from ..config.terms import OwnerTerms

__all__ = ["LocalAdministration", "administration_operations", "terms_summary"]

# So many leases go into one answer; `lease_count` says how many there are.
_MOST_LEASES: Final = 500


def terms_summary(terms: OwnerTerms) -> TermsSummary:
    """The terms on which the peer bids, for its owner to see."""
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
    """Administers an open ledger in this process; `addrs` are where the peer listens, None when it does not run.

    `terms` are those on which it bids, `counts` what it counts of its answers, `limits_hit` what its host turned away.
    """

    def __init__(
        self,
        manager: ResourceManager,
        peer_id: str,
        addrs: tuple[str, ...] | None = None,
        terms: TermsSummary | None = None,
        *,
        counts: ServiceCounts | None = None,
        limits_hit: Mapping[str, int] | None = None,
    ) -> None:
        self._manager = manager
        self._peer_id = peer_id
        self._addrs = addrs
        self.terms = terms
        self._counts = counts or ServiceCounts()
        # Not `or`: what nobody has hit yet is empty.
        self._limits_hit: Mapping[str, int] = {} if limits_hit is None else limits_hit

    async def status(self) -> StatusAnswer:
        """What is onboarded, promised and free."""
        manager = self._manager
        leases = manager.leases()
        audited, findings = manager.last_audit or (None, ())
        sample = manager.usage_sample
        return StatusAnswer(
            peer_id=self._peer_id,
            addrs=self._addrs or (),
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
            lease_use=tuple(
                LeaseUse(lease_id=job.lease_id, cores=job.cpu, ram=job.ram) for job in (sample.jobs if sample else ())
            ),
        )

    async def onboard(self, request: OnboardRequest) -> OnboardAnswer:
        """Offers resources from now on. Raises ProtocolError `other_machine` when the owner means another machine."""
        if request.machine is not None and request.machine != self._manager.machine:
            raise ProtocolError(
                "the running peer describes another machine than the --machine given", code="other_machine"
            )
        onboarded = onboarded_resources(request.offer, self._manager.machine)
        if request.dry_run:
            self._manager.check_onboarding(onboarded)
            return OnboardAnswer(
                onboarded=onboarded, free=self._manager.get_free_resources(), simulated=self._manager.machine.simulated
            )
        await self._manager.update_onboarded_resources(onboarded)
        if self._manager.draining:
            await self._manager.set_draining(False)
        return self._offer()

    async def offboard(self) -> OnboardAnswer:
        """Offers nothing. Raises what `ResourceManager.offboard` raises."""
        await self._manager.offboard()
        return self._offer()

    async def drain(self, tell: Callable[[int], None]) -> None:
        """Takes nothing new and returns when nothing is promised; `tell` hears how many leases are left."""
        async with aclosing(self.draining()) as counts:
            async for count in counts:
                tell(count)

    async def draining(self) -> AsyncGenerator[int, None]:
        """Starts to drain and yields the number of leases left after every change, until there are none."""
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
        return HistoryAnswer(
            entries=tuple(
                HistoryRow(
                    number=number,
                    at=entry.at,
                    actor=entry.actor,
                    action=entry.action,
                    lease_id=entry.lease_id,
                    reason=entry.reason,
                    detail=entry.detail,
                )
                for number, entry in found
            )
        )

    async def audit(self, request: AuditRequest) -> AuditAnswer:
        """What does not match. Raises what `ResourceManager.audit` raises."""
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
    operations.watch(DrainRequest, drain)
    return operations


async def _drain_events(administration: LocalAdministration) -> AsyncGenerator[DrainEvent, None]:
    async with aclosing(administration.draining()) as counts:
        async for count in counts:
            yield DrainEvent(leases=count)
