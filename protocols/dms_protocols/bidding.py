"""Answers `/dms/bid/1.0.0`: bids on what would fit, refusals that say why not.

Rules:

1. Nothing is remembered of a request: a bid is all that there is, and it comes back with the commitment.
2. Bids on several nodes are for what could be had together.
3. A dry run gives the same answer, unsigned and without a hold.
4. Where a hold is asked for and the owner's limits do not allow it, the bids come without one, and say so.
5. A request that was taken already is answered with what was given, so that asking again changes nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from dms_resources.components import Resources
from dms_resources.demands import PortShortage
from dms_resources.errors import (
    DrainingError,
    InsufficientError,
    NotOnboardedError,
    RequestError,
    WindowError,
)
from dms_resources.leases import LeaseRequest, LeaseState
from dms_resources.manager import ResourceManager

from .conversion import from_map
from .errors import MessageError
from .locations import why_not_here
from .messages.bid import (
    Bid,
    BidAnswer,
    BidRequest,
    EnsembleRequest,
    NodeRequest,
    OfferAnswer,
    Place,
    Price,
    Refusal,
    bid_lease_id,
    request_digest,
)
from .operations import Answer, Caller, Operations
from .signing import Signer, seal_bid

__all__ = ["BidTerms", "PriceList", "bid_operations"]


class PriceList(Protocol):
    """What the owner asks for resources."""

    def price(self, resources: Resources) -> Price | None:
        """The price of these resources; None when they cost nothing. Called for every bid: it must not wait."""


@dataclass(frozen=True, slots=True)
class BidTerms:
    """On what terms this peer bids.

    `executors` are those that it has (None: whatever is asked for), `location` is where the machine stands, and a bid
    is valid for `valid_seconds`.
    """

    executors: frozenset[str] | None = None
    privileged_docker: bool = False
    location: Place | None = None
    prices: PriceList | None = None
    valid_seconds: float = 300.0


@dataclass(frozen=True, slots=True)
class _Asking:
    """One request and what follows from it."""

    ensemble: EnsembleRequest
    digest: bytes
    lease_ids: dict[str, str]
    requester: str
    hold: float
    ttl: float


def bid_operations(
    manager: ResourceManager, signer: Signer, terms: BidTerms | None = None, *, clock: Callable[[], float] = time.time
) -> Operations:
    """The operations that bid for this manager; `clock` tells the Unix time in seconds."""
    operations = Operations()
    operations.slow(BidRequest, _Bidding(manager, signer, terms or BidTerms(), clock).answer)
    return operations


class _Bidding:
    def __init__(self, manager: ResourceManager, signer: Signer, terms: BidTerms, clock: Callable[[], float]) -> None:
        self._manager = manager
        self._signer = signer
        self._terms = terms
        self._clock = clock

    def answer(self, request: BidRequest, caller: Caller) -> Answer | Coroutine[Any, Any, Answer]:
        asking = self._asking(request, caller)
        if asking.ensemble.deadline < self._clock():
            raise MessageError("ensemble.deadline: it has passed", path="ensemble.deadline")
        offers, refusals = self._offers(asking)
        if request.dry_run:
            return OfferAnswer(offers=tuple(offers), refusals=tuple(refusals))
        if offers and request.hold:
            return self._hold_and_answer(asking, offers, refusals)
        return self._signed(offers, refusals)

    def _asking(self, request: BidRequest, caller: Caller) -> _Asking:
        ensemble, digest = _ensemble(request), request_digest(request.ensemble)
        lease_ids = {
            node.node_id: bid_lease_id(
                requester=caller.peer_id, digest=digest, node_id=node.node_id, provider=self._signer.peer_id
            )
            for node in ensemble.request
        }
        return _Asking(ensemble, digest, lease_ids, caller.peer_id, request.hold, request.ttl)

    def _signed(self, offers: Sequence[Bid], refusals: Sequence[Refusal]) -> BidAnswer:
        return BidAnswer(bids=tuple(seal_bid(bid, self._signer) for bid in offers), refusals=tuple(refusals))

    # Deciding

    def _offers(self, asking: _Asking) -> tuple[list[Bid], list[Refusal]]:
        refusals: list[Refusal] = []
        candidates: list[NodeRequest] = []
        offers: list[Bid] = []
        for node in asking.ensemble.request:
            refusal = self._unsuitable(node, asking)
            taken = self._taken(node, asking)
            if refusal is not None:
                refusals.append(refusal)
            elif taken is not None:
                offers.append(taken)
            else:
                candidates.append(node)
        asked = [self._lease_request(node, asking, ttl=asking.ttl or asking.hold) for node in candidates]
        for node, granted in zip(candidates, self._manager.would_fit_together(asked), strict=True):
            if isinstance(granted, RequestError):
                refusals.append(_refusal(node, granted))
            else:
                offers.append(self._bid(node, asking, granted.resources))
        return offers, refusals

    def _unsuitable(self, node: NodeRequest, asking: _Asking) -> Refusal | None:
        if self._signer.peer_id in asking.ensemble.peer_exclusion:
            return Refusal(node_id=node.node_id, code="excluded", message="the request excludes this peer")
        reason = why_not_here(node.location, self._terms.location)
        if reason is not None:
            return Refusal(node_id=node.node_id, code="location", message=reason)
        reason = self._missing_executor(node)
        return None if reason is None else Refusal(node_id=node.node_id, code="executor", message=reason)

    def _missing_executor(self, node: NodeRequest) -> str | None:
        if node.general_requirements.privileged_docker and not self._terms.privileged_docker:
            return "the owner does not allow privileged containers"
        if self._terms.executors is None:
            return None
        missing = [name for name in node.executors if name not in self._terms.executors]
        return f"not here: {', '.join(missing)}"[:300] if missing else None

    def _taken(self, node: NodeRequest, asking: _Asking) -> Bid | None:
        lease = self._manager.lease(asking.lease_ids[node.node_id])
        if lease is None or lease.holder != asking.requester:
            return None
        held = lease.state is LeaseState.HELD
        return self._bid(node, asking, lease.resources, held_until=lease.deadline if held else None)

    # Making bids

    def _lease_request(self, node: NodeRequest, asking: _Asking, *, ttl: float) -> LeaseRequest:
        return LeaseRequest(
            lease_id=asking.lease_ids[node.node_id],
            holder=asking.requester,
            demand=node.resources,
            ports=node.public_ports,
            ttl=ttl,
        )

    def _bid(self, node: NodeRequest, asking: _Asking, resources: Resources, *, held_until: float | None = None) -> Bid:
        valid_until = self._clock() + self._terms.valid_seconds
        return Bid(
            request_digest=asking.digest,
            ensemble_id=asking.ensemble.id,
            nonce=asking.ensemble.nonce,
            node_id=node.node_id,
            lease_id=asking.lease_ids[node.node_id],
            requester=asking.requester,
            provider=self._signer.peer_id,
            demand=node.resources,
            public_ports=node.public_ports,
            resources=resources,
            valid_until=valid_until if held_until is None else min(valid_until, held_until),
            price=self._terms.prices.price(resources) if self._terms.prices else None,
            location=self._terms.location,
            held=held_until is not None,
            simulated=self._manager.machine.simulated,
        )

    async def _hold_and_answer(self, asking: _Asking, offers: list[Bid], refusals: list[Refusal]) -> BidAnswer:
        nodes = {node.node_id: node for node in asking.ensemble.request}
        fresh = [bid for bid in offers if self._manager.lease(bid.lease_id) is None]
        asked = [self._lease_request(nodes[bid.node_id], asking, ttl=asking.hold) for bid in fresh]
        try:
            leases = {lease.lease_id: lease for lease in await self._manager.hold(asked)} if asked else {}
        except RequestError:
            # No hold is allowed, or somebody else was faster: what would fit now, and what is short, without a hold.
            offers, refusals = self._offers(asking)
        else:
            offers = [
                self._bid(nodes[bid.node_id], asking, lease.resources, held_until=lease.deadline)
                if (lease := leases.get(bid.lease_id))
                else bid
                for bid in offers
            ]
        return self._signed(offers, refusals)


def _ensemble(request: BidRequest) -> EnsembleRequest:
    try:
        return from_map(request.ensemble, EnsembleRequest)
    except MessageError as error:
        path = f"ensemble.{error.path}" if error.path else "ensemble"
        raise MessageError(f"ensemble: {error.message}", path=path) from None


def _refusal(node: NodeRequest, error: RequestError) -> Refusal:
    shortages = error.shortages if isinstance(error, InsufficientError) else ()
    return Refusal(
        node_id=node.node_id,
        code=_refusal_code(error),
        message=error.message[:500],
        shortages=shortages,
        retry_after=error.retry_after,
    )


def _refusal_code(error: RequestError) -> str:
    match error:
        case NotOnboardedError():
            return "not_onboarded"
        case DrainingError():
            return "draining"
        case WindowError():
            return "window"
        case InsufficientError(shortages=shortages) if shortages and all(
            isinstance(one, PortShortage) for one in shortages
        ):
            return "ports"
        case InsufficientError():
            return "resources"
        case _:
            return "busy"
