"""The requests that the owner's policies decide on, and their decisions: a price or a refusal for each node.

Rules:

1. A policy sees the requester and the offers, and decides about each node. It cannot tell a dry run from a request for
   bids.
2. Policies decide in their order: first those that decide at once, then those that take time. Each policy sees the
   price that the policies before it set. The first refusal of a node is final.
3. If a policy fails, or does not return one decision for each node, all nodes are refused.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import Annotated, Final, Literal, Protocol

from msgspec import Meta, Struct
from msgspec.structs import replace

from dms_resources.components import Resources
from dms_resources.ledger.leases import Price

from ..logs import LimitedLog
from ..messages.bid import NodeRequest, Reason, Refusal
from .refusals import ELSEWHERE, refusal

__all__ = [
    "AsyncPolicy",
    "Decision",
    "Decisions",
    "NodeOffer",
    "PeerList",
    "Policy",
    "PolicyRequest",
    "decide_in_place",
    "decide_in_turn",
    "no_answer",
]

_log = LimitedLog(logging.getLogger(__name__))

_REFUSED: Final = "the owner's policy refuses"
_LATER: Final = "ask again later"
_NO_ANSWER: Final = "the owner's policy did not answer"

Seconds = Annotated[float, Meta(ge=0, le=31_536_000)]


class NodeOffer(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What the requester would get for one node, with named GPUs, and the price so far (None: free of charge)."""

    node: NodeRequest
    resources: Resources
    price: Price | None = None


class PolicyRequest(Struct, frozen=True, kw_only=True):
    """A request for bids as a policy sees it: the requester, and what it would get.

    `hold` is how many seconds the offer is to be held (0: not at all), `ttl` how long it is to be committed (0:
    unknown). `nodes` are those that fit; the others were refused before.
    """

    requester: str
    ensemble_id: str
    nonce: int
    hold: float
    ttl: float
    nodes: tuple[NodeOffer, ...]


class Decision(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The decision about one node: whether to bid, and at what price (None: the price so far).

    A refusal may have a `message` for the requester and the seconds after which to retry. `code` is `busy` only where
    the policy could not decide at this time.
    """

    accept: bool
    price: Price | None = None
    message: Annotated[str, Meta(max_length=500)] = ""
    retry_after: Seconds | None = None
    code: Literal["policy", "busy"] = "policy"


class Decisions(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One decision for each node of the request, in its order; they may be given again for `max_age` seconds."""

    decisions: tuple[Decision, ...]
    max_age: Seconds = 0.0


class Policy(Protocol):
    """A policy that decides at once, from memory."""

    def decide(self, request: PolicyRequest) -> Sequence[Decision]:
        """One decision for each of `request.nodes`, in their order. It is called for every bid and must not wait."""


class AsyncPolicy(Protocol):
    """A policy that takes time. `PolicyGate` limits it."""

    async def decide(self, request: PolicyRequest) -> Decisions:
        """One decision for each of `request.nodes`, in their order. May be cancelled at any time."""


class PeerList(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A policy: peers in `deny` get no bids. If `allow` names any peers, only they get bids."""

    allow: frozenset[str] = frozenset()
    deny: frozenset[str] = frozenset()

    def decide(self, request: PolicyRequest) -> Sequence[Decision]:
        """Accept or refuse all nodes, by the requester."""
        peer = request.requester
        accept = peer not in self.deny and (not self.allow or peer in self.allow)
        return (Decision(accept=accept),) * len(request.nodes)


def no_answer(count: int) -> tuple[Decision, ...]:
    """The decisions in place of those that a policy did not make."""
    return (Decision(accept=False, message=_NO_ANSWER),) * count


def decide_in_place(
    policies: Iterable[Policy], request: PolicyRequest
) -> tuple[tuple[NodeOffer, ...], tuple[Refusal, ...]]:
    """The accepted offers with their prices, and the refusals of the others."""
    refusals: tuple[Refusal, ...] = ()
    for policy in policies:
        try:
            offers, refused = _settle(request, policy.decide(request))
        except Exception as error:
            offers, refused = _failed(policy, request, error)
        request, refusals = replace(request, nodes=offers), refusals + refused
    return request.nodes, refusals


async def decide_in_turn(
    policies: Iterable[AsyncPolicy], request: PolicyRequest
) -> tuple[tuple[NodeOffer, ...], tuple[Refusal, ...]]:
    """The same for policies that take time. May be cancelled at any time."""
    refusals: tuple[Refusal, ...] = ()
    for policy in policies:
        if not request.nodes:
            break
        try:
            offers, refused = _settle(request, (await policy.decide(request)).decisions)
        except Exception as error:
            offers, refused = _failed(policy, request, error)
        request, refusals = replace(request, nodes=offers), refusals + refused
    return request.nodes, refusals


def _settle(request: PolicyRequest, decisions: Sequence[Decision]) -> tuple[tuple[NodeOffer, ...], tuple[Refusal, ...]]:
    offers, refusals = [], []
    for offer, decision in zip(request.nodes, decisions, strict=True):
        if decision.accept:
            offers.append(offer if decision.price is None else replace(offer, price=decision.price))
        else:
            reason = Reason(
                code=decision.code,
                message=(decision.message or _REFUSED)[:500],
                hint=_LATER if decision.code == "busy" else ELSEWHERE,
                retry_after=decision.retry_after,
            )
            refusals.append(refusal(offer.node.node_id, [reason]))
    return tuple(offers), tuple(refusals)


def _failed(
    policy: Policy | AsyncPolicy, request: PolicyRequest, error: Exception
) -> tuple[tuple[NodeOffer, ...], tuple[Refusal, ...]]:
    _log.error("policy %s failed, so nothing is bid: %.300r", type(policy).__name__, error)
    return _settle(request, no_answer(len(request.nodes)))
