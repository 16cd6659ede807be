"""What the owner of a machine asks of their own peer: status, onboarding, offboarding, history, audit.

The same operations run behind the Unix socket of a running peer and, when none runs, on the ledger itself. They are
never offered to other peers.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from typing import TYPE_CHECKING, Annotated, Final, Protocol

from msgspec import Meta, Struct

from dms_protocols.client import Client
from dms_protocols.errors import ProtocolError
from dms_protocols.operations import Caller, Operations
from dms_resources.audit import Finding
from dms_resources.book import HistoryEntry
from dms_resources.changes import describe_missing
from dms_resources.components import Amount, FreeResources, MachineResources, OnboardedResources, Resources
from dms_resources.demands import describe_shortage
from dms_resources.leases import Lease

from .offers import Offer, onboarded_resources

if TYPE_CHECKING:
    from dms_resources.manager import ResourceManager

__all__ = [
    "Administration",
    "AuditAnswer",
    "AuditRequest",
    "DrainEvent",
    "DrainRequest",
    "HistoryAnswer",
    "HistoryRequest",
    "HistoryRow",
    "LocalAdministration",
    "OffboardRequest",
    "OfferAnswer",
    "OnboardRequest",
    "RemoteAdministration",
    "StatusAnswer",
    "StatusRequest",
    "administration_operations",
]

# So many leases go into one answer; `lease_count` says how many there are.
_MOST_LEASES: Final = 500
_TIMEOUT: Final = 30.0


class StatusRequest(Struct, frozen=True, tag_field="op", tag="status"):
    """What is onboarded, promised and free, and to whom."""


class StatusAnswer(Struct, frozen=True, kw_only=True):
    """The state of one peer. `running` is false when the ledger was read without a peer.

    `addrs` end in `/p2p/PEER_ID`; `leases` are the newest ones, `lease_count` counts all; `limits` and `problems` are
    sentences on the machine, `missing` on what is onboarded and no longer there, `short_now` on what the ledger has
    free and the machine has not. `storage_error` says why nothing can be promised now, `findings` are those of the last
    audit, `audited` (Unix seconds) is when that was. `usage` is what the whole machine used `usage_age` seconds ago,
    None where nothing watches it.
    """

    peer_id: str
    addrs: tuple[str, ...]
    running: bool
    simulated: bool
    draining: bool
    onboarded: OnboardedResources | None
    free: FreeResources
    committed: Resources
    allocated: Resources
    leases: tuple[Lease, ...]
    lease_count: int
    limits: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    usage: Resources | None = None
    usage_age: float | None = None
    missing: tuple[str, ...] = ()
    short_now: tuple[str, ...] = ()
    storage_error: str | None = None
    findings: tuple[Finding, ...] = ()
    audited: float | None = None


class OnboardRequest(Struct, frozen=True, kw_only=True, tag_field="op", tag="onboard"):
    """Offers these resources from now on; ends a drain. `machine` is what the owner believes the machine to be.

    A `dry_run` asks whether that could be done, and changes nothing.
    """

    offer: Offer
    machine: MachineResources | None = None
    dry_run: bool = False


class OffboardRequest(Struct, frozen=True, kw_only=True, tag_field="op", tag="offboard"):
    """Offers nothing any more; refused while anything is promised."""


class OfferAnswer(Struct, frozen=True, kw_only=True):
    """What is offered now, and what of it is free."""

    onboarded: OnboardedResources | None
    free: FreeResources
    simulated: bool


class DrainRequest(Struct, frozen=True, kw_only=True, tag_field="op", tag="drain"):
    """Takes nothing new; tells how much is still promised until nothing is."""


class DrainEvent(Struct, frozen=True, kw_only=True):
    """How many leases have not ended yet."""

    leases: int


class HistoryRequest(Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="op", tag="history"):
    """The newest entries first; `before` continues from an entry's number."""

    limit: Annotated[int, Meta(ge=1, le=1000)] = 100
    before: Amount | None = None


class HistoryRow(HistoryEntry, frozen=True, kw_only=True):
    """One entry of the history and its number."""

    number: int


class HistoryAnswer(Struct, frozen=True, kw_only=True):
    """Entries of the history, newest first."""

    entries: tuple[HistoryRow, ...]


class AuditRequest(Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="op", tag="audit"):
    """Compares the ledger with itself, with its file and with the operating system; `repair` mends what can be."""

    repair: bool = False


class AuditAnswer(Struct, frozen=True, kw_only=True):
    """What does not match: by how many, and each with its code."""

    findings: tuple[Finding, ...]
    repaired: bool


class Administration(Protocol):
    """What an owner can ask, of a running peer or of the ledger alike. May be cancelled at any time."""

    async def status(self) -> StatusAnswer:
        """What is onboarded, promised and free."""

    async def onboard(self, request: OnboardRequest) -> OfferAnswer:
        """Offers resources. Raises what `ResourceManager.update_onboarded_resources` raises."""

    async def offboard(self) -> OfferAnswer:
        """Offers nothing. Raises what `ResourceManager.offboard` raises."""

    async def drain(self, tell: Callable[[int], None]) -> None:
        """Takes nothing new and returns when nothing is promised; `tell` hears how many leases are left."""

    async def history(self, request: HistoryRequest) -> HistoryAnswer:
        """What happened, newest first."""

    async def audit(self, request: AuditRequest) -> AuditAnswer:
        """What does not match. Raises what `ResourceManager.audit` raises."""


class LocalAdministration:
    """Administers an open ledger in this process; `addrs` are where the peer listens, None when it does not run."""

    def __init__(self, manager: ResourceManager, peer_id: str, addrs: tuple[str, ...] | None = None) -> None:
        self._manager = manager
        self._peer_id = peer_id
        self._addrs = addrs

    async def status(self) -> StatusAnswer:
        """As the protocol says."""
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
        )

    async def onboard(self, request: OnboardRequest) -> OfferAnswer:
        """As the protocol says. Raises ProtocolError `other_machine` when the owner means another machine."""
        if request.machine is not None and request.machine != self._manager.machine:
            raise ProtocolError(
                "the running peer describes another machine than the --machine given", code="other_machine"
            )
        onboarded = onboarded_resources(request.offer, self._manager.machine)
        if request.dry_run:
            self._manager.check_onboarding(onboarded)
            return OfferAnswer(
                onboarded=onboarded, free=self._manager.get_free_resources(), simulated=self._manager.machine.simulated
            )
        await self._manager.update_onboarded_resources(onboarded)
        if self._manager.draining:
            await self._manager.set_draining(False)
        return self._offer()

    async def offboard(self) -> OfferAnswer:
        """As the protocol says."""
        await self._manager.offboard()
        return self._offer()

    async def drain(self, tell: Callable[[int], None]) -> None:
        """As the protocol says."""
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
        """As the protocol says."""
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
        """As the protocol says."""
        findings = await self._manager.audit(repair=request.repair)
        return AuditAnswer(findings=tuple(findings), repaired=request.repair)

    def _offer(self) -> OfferAnswer:
        manager = self._manager
        return OfferAnswer(
            onboarded=manager.get_onboarded_resources(),
            free=manager.get_free_resources(),
            simulated=manager.machine.simulated,
        )


class RemoteAdministration:
    """Administers a running peer over its socket; errors arrive as RemoteError with the codes of the ledger."""

    def __init__(self, client: Client) -> None:
        self._client = client

    async def status(self) -> StatusAnswer:
        """As the protocol says."""
        return await self._client.call(StatusRequest(), StatusAnswer, timeout=_TIMEOUT)

    async def onboard(self, request: OnboardRequest) -> OfferAnswer:
        """As the protocol says."""
        return await self._client.call(request, OfferAnswer, timeout=_TIMEOUT)

    async def offboard(self) -> OfferAnswer:
        """As the protocol says."""
        return await self._client.call(OffboardRequest(), OfferAnswer, timeout=_TIMEOUT)

    async def drain(self, tell: Callable[[int], None]) -> None:
        """As the protocol says."""
        async with self._client.watch(DrainRequest(), DrainEvent, timeout=_TIMEOUT) as events:
            async for event in events:
                tell(event.leases)

    async def history(self, request: HistoryRequest) -> HistoryAnswer:
        """As the protocol says."""
        return await self._client.call(request, HistoryAnswer, timeout=_TIMEOUT)

    async def audit(self, request: AuditRequest) -> AuditAnswer:
        """As the protocol says."""
        return await self._client.call(request, AuditAnswer, timeout=_TIMEOUT)


def administration_operations(administration: LocalAdministration) -> Operations:
    """The operations for the owner's socket."""

    async def status(request: StatusRequest, caller: Caller) -> StatusAnswer:
        return await administration.status()

    async def onboard(request: OnboardRequest, caller: Caller) -> OfferAnswer:
        return await administration.onboard(request)

    async def offboard(request: OffboardRequest, caller: Caller) -> OfferAnswer:
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
