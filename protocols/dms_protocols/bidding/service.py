"""Answers all versions of `/dms/bid`: a bid for each node that would fit, a refusal with all reasons for each other
node.

Rules:

1. The provider keeps no state of a request. A bid contains everything, and the requester sends it with the commitment.
2. Bids on several nodes can all be committed together.
3. A dry run gives the same answer, unsigned and without a hold.
4. If the owner's limits do not allow a requested hold, the bids come without a hold, and say so.
5. If a bid of this request was committed already, the answer has what was committed, at its price. A repeated request
   changes nothing, even if the owner has changed the terms.
6. The owner's policies see what would be offered. If none of them takes time, the request is answered in place.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from dms_resources.demands import Demand
from dms_resources.errors import ConflictError
from dms_resources.ledger.decisions import LONGEST_TTL
from dms_resources.ledger.leases import LeaseRequest, LeaseState
from dms_resources.manager import ResourceManager
from dms_resources.refusals import RequestError

from ..disclosure import for_strangers
from ..errors import MessageError
from ..messages.bid import (
    Bid,
    BidAnswer,
    BidRequest,
    EnsembleRequest,
    NodeRequest,
    OfferAnswer,
    Place,
    Reason,
    Refusal,
    bid_lease_id,
)
from ..outstanding import OutstandingShares
from ..rpc.counts import ServiceCounts
from ..rpc.limits import Shares
from ..rpc.operations import Answer, Caller, Operations
from ..wire.conversion import from_map
from .locations import unknown_requirements, why_not_here
from .policies import AsyncPolicy, NodeOffer, Policy, PolicyRequest, decide_in_place, decide_in_turn
from .refusals import ELSEWHERE, ledger_reasons, refusal
from .signing import Signer, seal_bid
from .versions import BID_1_0, BidVersion

__all__ = ["BidTerms", "CurrentTerms", "bid_operations"]


@dataclass(frozen=True, slots=True)
class BidTerms:
    """The terms on which this peer bids.

    `executors` are the executors that it has. `location` is where the machine is (None if not known). A bid is valid
    for `valid_seconds`. `policies` decide in place about each bid. `async_policies` decide after them and may take
    time, which `PolicyGate` limits.
    """

    executors: frozenset[str] = frozenset()
    privileged_docker: bool = False
    location: Place | None = None
    valid_seconds: float = 300.0
    policies: tuple[Policy, ...] = ()
    async_policies: tuple[AsyncPolicy, ...] = ()


class CurrentTerms:
    """Terms that the owner may replace while the peer bids: assign `terms`. A bid in progress keeps the old terms."""

    __slots__ = ("terms",)

    def __init__(self, terms: BidTerms | None = None) -> None:
        self.terms = terms or BidTerms()


class _Asking(Struct, frozen=True, kw_only=True):
    """One request, with its digest and lease ids."""

    ensemble: EnsembleRequest
    digest: bytes
    lease_ids: dict[str, str]
    unknown: dict[str, list[str]]
    caller: Caller
    hold: float
    ttl: float
    dry_run: bool


class _Draft(Struct, frozen=True, kw_only=True):
    """The answer in the making: bids that exist already, offers that will become bids, and refusals."""

    standing: tuple[Bid, ...]
    offers: tuple[NodeOffer, ...]
    refusals: tuple[Refusal, ...]


def bid_operations(
    manager: ResourceManager,
    signer: Signer,
    terms: BidTerms | CurrentTerms | None = None,
    *,
    clock: Callable[[], float] = time.time,
    counts: ServiceCounts | None = None,
    version: BidVersion = BID_1_0,
    shares: Shares | None = None,
    may_see_free: Callable[[Caller], bool] = lambda caller: True,
) -> Operations:
    """The operations that bid for this manager. `clock` returns the Unix time in seconds.

    Bids and refusals are counted in `counts`. `version` is the version of the protocol. `shares` limit what callers may
    have outstanding. The refusals for a caller that may not see the free capacity do not contain shortages.
    """
    operations = Operations()
    outstanding = OutstandingShares(manager, shares or Shares())
    current = terms if isinstance(terms, CurrentTerms) else CurrentTerms(terms)
    bidding = _Bidding(manager, signer, current, clock, counts or ServiceCounts(), version, outstanding, may_see_free)
    operations.slow(BidRequest, bidding.answer, rate="bids")
    return operations


class _Bidding:
    def __init__(
        self,
        manager: ResourceManager,
        signer: Signer,
        current: CurrentTerms,
        clock: Callable[[], float],
        counts: ServiceCounts,
        version: BidVersion,
        outstanding: OutstandingShares,
        may_see_free: Callable[[Caller], bool],
    ) -> None:
        self._manager = manager
        self._signer = signer
        self._current = current
        self._clock = clock
        self._counts = counts
        self._version = version
        self._outstanding = outstanding
        self._may_see_free = may_see_free

    @property
    def _terms(self) -> BidTerms:
        return self._current.terms

    def answer(self, request: BidRequest, caller: Caller) -> Answer | Coroutine[Any, Any, Answer]:
        asking = self._asking(request, caller)
        if asking.ensemble.deadline < self._clock():
            raise MessageError("ensemble.deadline: it has passed", path="ensemble.deadline")
        draft = self._draft(asking)
        if draft.offers and (self._terms.async_policies or (asking.hold and not asking.dry_run)):
            return self._finish(asking, draft)
        return self._answer(asking, draft)

    async def _finish(self, asking: _Asking, draft: _Draft) -> Answer:
        draft = await self._decided(asking, draft)
        if asking.hold and not asking.dry_run:
            draft = await self._held(asking, draft)
        return self._answer(asking, draft)

    def _asking(self, request: BidRequest, caller: Caller) -> _Asking:
        ensemble, digest = _ensemble(request), self._version.digest(request.ensemble)
        lease_ids = {
            node.node_id: bid_lease_id(
                requester=caller.peer_id, digest=digest, node_id=node.node_id, provider=self._signer.peer_id
            )
            for node in ensemble.request
        }
        return _Asking(
            ensemble=ensemble,
            digest=digest,
            lease_ids=lease_ids,
            unknown={
                node["node_id"]: unknown
                for node in request.ensemble["request"]
                if (unknown := unknown_requirements(node))
            },
            caller=caller,
            hold=request.hold,
            ttl=request.ttl,
            dry_run=request.dry_run,
        )

    def _answer(self, asking: _Asking, draft: _Draft) -> Answer:
        bids = [*draft.standing, *(self._bid(asking, offer) for offer in draft.offers)]
        self._counts.refusals.update(refusal.code for refusal in draft.refusals)
        if asking.dry_run:
            return OfferAnswer(offers=tuple(bids), refusals=draft.refusals)
        self._counts.bids += len(bids)
        return BidAnswer(bids=tuple(seal_bid(bid, self._signer) for bid in bids), refusals=draft.refusals)

    # Deciding

    def _draft(self, asking: _Asking) -> _Draft:
        refusals: list[Refusal] = []
        candidates: list[NodeRequest] = []
        standing: list[Bid] = []
        offers: list[NodeOffer] = []
        for node in asking.ensemble.request:
            if (taken := self._taken(node, asking)) is not None:
                standing.append(taken)
            elif reasons := self._unsuitable(node, asking):
                refusals.append(self._refusal(node, asking, reasons))
            else:
                candidates.append(node)
        asked = [self._planned(node, asking) for node in candidates]
        for node, granted in zip(candidates, self._manager.would_fit_together(asked), strict=True):
            if isinstance(granted, RequestError):
                refusals.append(self._refusal(node, asking, [], granted))
            else:
                offers.append(NodeOffer(node=node, resources=granted.resources))
        draft = _Draft(standing=tuple(standing), offers=tuple(offers), refusals=tuple(refusals))
        if not offers or not self._terms.policies:
            return draft
        left, refused = decide_in_place(self._terms.policies, _policy_request(asking, draft))
        return replace(draft, offers=left, refusals=draft.refusals + refused)

    async def _decided(self, asking: _Asking, draft: _Draft) -> _Draft:
        if not self._terms.async_policies:
            return draft
        left, refused = await decide_in_turn(self._terms.async_policies, _policy_request(asking, draft))
        return replace(draft, offers=left, refusals=draft.refusals + refused)

    async def _held(self, asking: _Asking, draft: _Draft) -> _Draft:
        requests = [
            replace(
                self._lease_request(offer.node, asking, ttl=asking.hold),
                demand=_demand_as_offered(offer),
                price=offer.price,
            )
            for offer in draft.offers
        ]
        try:
            if requests:
                await self._manager.hold(requests)
        except (RequestError, ConflictError):
            # No hold is allowed, or another requester was faster: answer with what fits now, without a hold.
            return await self._decided(asking, self._draft(asking))
        nodes = [offer.node for offer in draft.offers]
        held = tuple(bid for node in nodes if (bid := self._taken(node, asking)) is not None)
        return replace(draft, standing=draft.standing + held, offers=())

    def _refusal(self, node: NodeRequest, asking: _Asking, reasons: list[Reason], *errors: RequestError) -> Refusal:
        """The refusal of a node, with what this peer lacks and all errors of the ledger."""
        if not (reasons and reasons[0].code == "excluded"):
            errors += self._manager.objections(self._planned(node, asking))
            reasons = reasons + ledger_reasons(errors, detailed=self._may_see_free(asking.caller))
        return refusal(node.node_id, reasons)

    def _planned(self, node: NodeRequest, asking: _Asking) -> LeaseRequest:
        return self._lease_request(node, asking, ttl=asking.ttl or asking.hold)

    def _unsuitable(self, node: NodeRequest, asking: _Asking) -> list[Reason]:
        """The reasons against the node that do not depend on the free capacity."""
        if self._signer.peer_id in asking.ensemble.peer_exclusion:
            return [Reason(code="excluded", message="the request excludes this peer", hint=ELSEWHERE)]
        reasons = []
        if unknown := asking.unknown.get(node.node_id):
            reasons.append(
                Reason(
                    code="location",
                    message=f"this provider cannot check {', '.join(unknown)}"[:300],
                    hint="leave these fields out, or choose another provider",
                )
            )
        elif (why := why_not_here(node.location, self._terms.location)) is not None:
            reasons.append(Reason(code="location", message=why, hint=ELSEWHERE))
        if (why := self._missing_executor(node)) is not None:
            reasons.append(Reason(code="executor", message=why, hint=ELSEWHERE))
        if asking.ttl > LONGEST_TTL:
            sentence = f"a commitment lasts at most {LONGEST_TTL:.0f} s before it is renewed"
            reasons.append(Reason(code="policy", message=sentence, hint="ask for a shorter ttl, and renew"))
        return reasons

    def _missing_executor(self, node: NodeRequest) -> str | None:
        why = []
        if node.general_requirements.privileged_docker and not self._terms.privileged_docker:
            why.append("the owner does not allow privileged containers")
        missing = [name for name in node.executors if name not in self._terms.executors]
        if missing:
            why.append(f"this provider does not have the executors {', '.join(missing)}"[:300])
        return "; ".join(why) or None

    def _taken(self, node: NodeRequest, asking: _Asking) -> Bid | None:
        lease = self._manager.lease(asking.lease_ids[node.node_id])
        if lease is None or lease.holder != asking.caller.peer_id or lease.ended is not None:
            return None
        held = lease.state is LeaseState.HELD
        offer = NodeOffer(node=node, resources=lease.resources, price=lease.price)
        return self._bid(asking, offer, held_until=lease.deadline if held else None)

    # Making bids

    def _lease_request(self, node: NodeRequest, asking: _Asking, *, ttl: float) -> LeaseRequest:
        grants = asking.caller.grants
        return LeaseRequest(
            lease_id=asking.lease_ids[node.node_id],
            holder=asking.caller.peer_id,
            demand=node.resources,
            ports=node.public_ports,
            ttl=ttl,
            accounts=self._outstanding.accounts(asking.caller),
            until=grants.expires if grants else None,
            share=self._outstanding.of(asking.caller),
            ensemble_id=asking.ensemble.id,
            node_id=node.node_id,
        )

    def _bid(self, asking: _Asking, offer: NodeOffer, *, held_until: float | None = None) -> Bid:
        node = offer.node
        valid_until = self._clock() + self._terms.valid_seconds
        return Bid(
            request_digest=asking.digest,
            ensemble_id=asking.ensemble.id,
            nonce=asking.ensemble.nonce,
            node_id=node.node_id,
            lease_id=asking.lease_ids[node.node_id],
            requester=asking.caller.peer_id,
            provider=self._signer.peer_id,
            demand=node.resources,
            public_ports=node.public_ports,
            resources=for_strangers(offer.resources),
            valid_until=valid_until if held_until is None else min(valid_until, held_until),
            price=offer.price,
            location=self._terms.location,
            held=held_until is not None,
            simulated=self._manager.machine.simulated,
        )


def _policy_request(asking: _Asking, draft: _Draft) -> PolicyRequest:
    return PolicyRequest(
        requester=asking.caller.peer_id,
        ensemble_id=asking.ensemble.id,
        nonce=asking.ensemble.nonce,
        hold=asking.hold,
        ttl=asking.ttl,
        nodes=draft.offers,
    )


def _demand_as_offered(offer: NodeOffer) -> Demand:
    """The demand for exactly the devices that were priced. Other devices might have another price."""
    demand, devices = offer.node.resources, offer.resources.gpus
    named = (replace(gpu, uuid=device.uuid) for gpu, device in zip(demand.gpus, devices, strict=True))
    return replace(demand, gpus=tuple(named))


def _ensemble(request: BidRequest) -> EnsembleRequest:
    try:
        return from_map(request.ensemble, EnsembleRequest)
    except MessageError as error:
        path = f"ensemble.{error.path}" if error.path else "ensemble"
        raise MessageError(f"ensemble: {error.message}", path=path) from None
