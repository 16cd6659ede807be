"""Answers `/dms/allocation/1.1.0` and 1.0.0: commits bids, and manages the resulting leases.

Rules:

1. A bid can be committed only by the requester that it names, at the provider that made it, while it is valid. Each
   violation has a code of its own. A bid that is valid for longer than any bid can be was made while the clock was
   ahead: it counts as expired.
2. Several bids are committed together or not at all.
3. The provider first tries the devices that a bid names, then other devices of the same vendor and model.
4. If a bid was committed before, the answer is its lease, however late the request is repeated.
5. Only the holder of a lease may see and change it.
6. A lease is charged to each grant of the token that its commitment needed, and counts against the share of its
   holder. When one of these grants is revoked, the lease can no longer be renewed or allocated, only released.
7. The two versions differ in allocations. In 1.1.0 an allocation has the keep-alive that the owner set; `renew`
   restarts it, and an eviction by the owner has the code `evicted`. A client of 1.0.0 cannot renew an allocation. Its
   allocations last for the longest time that the owner allows, or for a day if the owner set only a keep-alive, and
   an eviction is reported as `ended`.
8. Both versions know no jobs: no answer shows the job of a lease or its processes. A lease that ended while its job
   still runs is reported as ended, although its capacity is not free before the job is gone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from msgspec.structs import replace

from dms_resources.demands import Demand, GPUDemand
from dms_resources.errors import EndedError, EvictedError, NotCommittedError
from dms_resources.ledger.leases import Lease, LeaseRequest, LeaseState, ResourceAllocation
from dms_resources.manager import AllocationTerms, ResourceManager
from dms_resources.refusals import InsufficientError

from .bidding.signing import EnvelopeOpener, open_bid
from .errors import BidError, MessageError
from .messages.allocation import (
    AllocateRequest,
    CommitAnswer,
    CommitRequest,
    LeaseAnswer,
    ListAnswer,
    ListRequest,
    ReleaseAnswer,
    ReleaseRequest,
    RenewRequest,
)
from .messages.bid import MAX_PORTS, Bid, count_ports
from .outstanding import OutstandingShares
from .protocol_ids import ALLOCATION_PROTOCOL, ALLOCATION_PROTOCOL_1_1
from .rpc.limits import Shares
from .rpc.operations import Caller, Operations
from .tokens.checks import TokenChecker

__all__ = ["allocation_operations"]

# An owner may let bids be valid for at most a day.
_LONGEST_VALIDITY = 86400.0


def allocation_operations(
    manager: ResourceManager,
    peer_id: str,
    opener: EnvelopeOpener,
    *,
    clock: Callable[[], float] = time.time,
    shares: Shares | None = None,
    tokens: TokenChecker | None = None,
    protocol: str = ALLOCATION_PROTOCOL_1_1,
) -> Operations:
    """The operations on the leases of this manager, for bids of `peer_id`, in one version of the protocol.

    `clock` returns the Unix time in seconds. `shares` limit what callers may have outstanding. `tokens` knows which
    grants were revoked.
    """
    outstanding = OutstandingShares(manager, shares or Shares())
    kind = _FirstAllocations if protocol == ALLOCATION_PROTOCOL else _Allocations
    allocations = kind(manager, peer_id, opener, clock, outstanding, tokens)
    operations = Operations()
    operations.slow(CommitRequest, allocations.commit)
    operations.slow(RenewRequest, allocations.renew)
    operations.slow(AllocateRequest, allocations.allocate)
    operations.slow(ReleaseRequest, allocations.release)
    # It reads memory only, but walks over all leases of the holder.
    operations.slow(ListRequest, allocations.own_leases)
    return operations


class _Allocations:
    def __init__(
        self,
        manager: ResourceManager,
        peer_id: str,
        opener: EnvelopeOpener,
        clock: Callable[[], float],
        outstanding: OutstandingShares,
        tokens: TokenChecker | None,
    ) -> None:
        self._manager = manager
        self._peer_id = peer_id
        self._opener = opener
        self._clock = clock
        self._outstanding = outstanding
        self._tokens = tokens

    async def commit(self, request: CommitRequest, caller: Caller) -> CommitAnswer:
        bids = [self._genuine(raw, caller) for raw in request.bids]
        if sum(count_ports(bid.public_ports) for bid in bids) > MAX_PORTS:
            # Each bid is within the limit of a request, and so is their sum.
            raise MessageError(f"bids: at most {MAX_PORTS} ports can be taken together", path="bids")
        leases = await self._commit(bids, caller, request.ttl)
        return CommitAnswer(leases=tuple(map(_without_job, leases)))

    async def renew(self, request: RenewRequest, caller: Caller) -> LeaseAnswer:
        if not self._manager.is_allocated(request.lease_id):
            self._outstanding.check_ttl(request.ttl, caller)
        self._check_grants(request.lease_id, caller)
        lease = await self._manager.renew(request.lease_id, ttl=request.ttl, holder=caller.peer_id, fence=request.fence)
        return LeaseAnswer(lease=_without_job(lease))

    async def allocate(self, request: AllocateRequest, caller: Caller) -> LeaseAnswer:
        self._check_grants(request.lease_id, caller)
        allocation = ResourceAllocation(lease_id=request.lease_id, holder=caller.peer_id, fence=request.fence)
        lease = await self._manager.allocate_resources(allocation, terms=self._terms())
        return LeaseAnswer(lease=_without_job(lease))

    async def release(self, request: ReleaseRequest, caller: Caller) -> ReleaseAnswer:
        ended = await self._manager.release(request.lease_id, holder=caller.peer_id, fence=request.fence)
        return ReleaseAnswer(lease=ended)

    def own_leases(self, request: ListRequest, caller: Caller) -> ListAnswer:
        leases = [
            _without_job(lease)
            for lease in self._manager.leases(caller.peer_id)
            if lease.lease_id > request.after and lease.state is not LeaseState.ENDING
        ]
        leases.sort(key=lambda lease: lease.lease_id)
        evicted = () if request.after else self._manager.evicted(caller.peer_id)
        return ListAnswer(leases=tuple(leases[: request.limit]), more=len(leases) > request.limit, evicted=evicted)

    def _terms(self) -> AllocationTerms:
        return self._manager.allocation_terms

    def _check_grants(self, lease_id: str, caller: Caller) -> None:
        lease = self._manager.lease(lease_id)
        if self._tokens is not None and lease is not None and lease.holder == caller.peer_id and lease.ended is None:
            self._tokens.check_revoked(lease.accounts)

    # Taking bids

    def _genuine(self, raw: bytes, caller: Caller) -> Bid:
        bid = open_bid(raw, self._opener)
        if bid.provider != self._peer_id:
            raise BidError(f"the bid was made by {bid.provider}, not here", code="not_my_bid")
        if bid.requester != caller.peer_id:
            raise BidError("the bid was made for another peer", code="not_your_bid")
        valid_for = bid.valid_until - self._clock()
        if not 0 <= valid_for <= _LONGEST_VALIDITY and self._own_lease(bid, caller.peer_id) is None:
            raise BidError("the bid is no longer valid; ask for a new one", code="bid_expired")
        return bid

    def _own_lease(self, bid: Bid, holder: str) -> Lease | None:
        lease = self._manager.lease(bid.lease_id)
        return lease if lease is not None and lease.holder == holder else None

    async def _commit(self, bids: Sequence[Bid], caller: Caller, ttl: float) -> list[Lease]:
        named = [self._request(bid, caller, ttl, _named_devices(bid)) for bid in bids]
        alike = [self._request(bid, caller, ttl, _alike_devices(bid)) for bid in bids]
        try:
            return await self._manager.commit_group(named)
        except InsufficientError:
            if alike == named:
                raise
        return await self._manager.commit_group(alike)

    def _request(self, bid: Bid, caller: Caller, ttl: float, demand: Demand) -> LeaseRequest:
        lease = self._own_lease(bid, caller.peer_id)
        if lease is not None:
            # The ledger holds or has committed this bid already, perhaps with other devices. The same contents make it
            # the same request.
            demand = lease.demand
        return LeaseRequest(
            lease_id=bid.lease_id,
            holder=caller.peer_id,
            demand=demand,
            ports=bid.public_ports,
            ttl=ttl,
            price=bid.price,
            accounts=self._outstanding.accounts(caller),
            until=caller.grants.expires if caller.grants else None,
            share=self._outstanding.of(caller),
            ensemble_id=bid.ensemble_id,
            node_id=bid.node_id,
        )


class _FirstAllocations(_Allocations):
    """The rules of 1.0.0: allocations cannot be renewed, and the code `evicted` does not exist."""

    async def commit(self, request: CommitRequest, caller: Caller) -> CommitAnswer:
        with _evicted_as_ended():
            return await super().commit(request, caller)

    async def renew(self, request: RenewRequest, caller: Caller) -> LeaseAnswer:
        lease = self._manager.lease(request.lease_id)
        if lease is not None and lease.holder == caller.peer_id and lease.state is LeaseState.ALLOCATED:
            raise NotCommittedError(f"{lease.lease_id} is allocated, not committed", lease_id=lease.lease_id)
        with _evicted_as_ended():
            return await super().renew(request, caller)

    async def allocate(self, request: AllocateRequest, caller: Caller) -> LeaseAnswer:
        with _evicted_as_ended():
            return await super().allocate(request, caller)

    async def release(self, request: ReleaseRequest, caller: Caller) -> ReleaseAnswer:
        with _evicted_as_ended():
            return await super().release(request, caller)

    def own_leases(self, request: ListRequest, caller: Caller) -> ListAnswer:
        return replace(super().own_leases(request, caller), evicted=())

    def _terms(self) -> AllocationTerms:
        return self._manager.allocation_terms.without_renewal()


def _without_job(lease: Lease) -> Lease:
    """The lease without what only its provider knows: clients of these versions know no jobs."""
    if lease.job is None and not lease.processes and not lease.cgroup:
        return lease
    return replace(lease, job=None, processes=(), cgroup="")


@contextmanager
def _evicted_as_ended() -> Iterator[None]:
    try:
        yield
    except EvictedError as error:
        raise EndedError(error.message, lease_id=error.lease_id) from error


def _named_devices(bid: Bid) -> Demand:
    """The demand of a bid for exactly the devices that it names, in the order of its GPUs."""
    return _narrowed(bid, lambda asked, index: replace(asked, uuid=bid.resources.gpus[index].uuid))


def _alike_devices(bid: Bid) -> Demand:
    """The demand of a bid for devices of the same vendor and model as those that it names."""

    def narrow(asked: GPUDemand, index: int) -> GPUDemand:
        device = bid.resources.gpus[index]
        return replace(asked, vendor=device.vendor, model=device.model)

    return _narrowed(bid, narrow)


def _narrowed(bid: Bid, narrow: Callable[[GPUDemand, int], GPUDemand]) -> Demand:
    if len(bid.resources.gpus) != len(bid.demand.gpus):
        raise BidError("the bid does not name as many GPUs as were asked for")
    return replace(bid.demand, gpus=tuple(narrow(asked, index) for index, asked in enumerate(bid.demand.gpus)))
