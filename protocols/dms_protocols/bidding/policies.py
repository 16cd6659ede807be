"""The question to the owner's policies, and their answers: a price or a refusal for each node.

Rules:

1. A policy sees the requester and what it would get, and decides about each node. It cannot tell a dry run from a
   request.
2. Policies decide in their order: those that answer at once, then those that take time. Each sees the price that the
   policies before it set. The first refusal of a node stands.
3. A policy that fails, or does not return one decision for each node, has refused all nodes.
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
        """One decision for each of `request.nodes`, in their order. Called for every bid: it must not wait."""


class AsyncPolicy(Protocol):
    """A policy that takes time; `PolicyGate` bounds it."""

    async def decide(self, request: PolicyRequest) -> Decisions:
        """One decision for each of `request.nodes`, in their order. May be cancelled at any time."""


class PeerList(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A policy: the peers of `deny` get no bids, and where `allow` names any, only they do."""

    allow: frozenset[str] = frozenset()
    deny: frozenset[str] = frozenset()

    def decide(self, request: PolicyRequest) -> Sequence[Decision]:
        """Accept or refuse all nodes, by the requester."""
        peer = request.requester
        accept = peer not in self.deny and (not self.allow or peer in self.allow)
        return (Decision(accept=accept),) * len(request.nodes)


def no_answer(count: int) -> tuple[Decision, ...]:
    """The decisions of a policy that gave none."""
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
