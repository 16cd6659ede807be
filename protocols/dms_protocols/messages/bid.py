"""`/dms/bid`: whether a provider would take an ensemble, and on what terms.

The request has the DMS's field names. A bid is the deterministic CBOR of `Bid` in a signed envelope.
"""

from __future__ import annotations

import hashlib
from typing import Annotated, Any, Final, TypeAlias

from msgspec import Meta, Struct

from dms_resources.components import Amount, Resources
from dms_resources.demands import Demand, PortDemand, Shortage
from dms_resources.ledger.leases import Price

from ..wire.cbor import encode_deterministic, encode_fast

__all__ = [
    "BID_DOMAIN",
    "BID_PAYLOAD_TYPE",
    "MAX_GPUS",
    "MAX_NODES",
    "MAX_PORTS",
    "Bid",
    "BidAnswer",
    "BidRequest",
    "EnsembleRequest",
    "GeneralRequirements",
    "Location",
    "NodeRequest",
    "OfferAnswer",
    "Place",
    "Price",
    "Reason",
    "Refusal",
    "bid_lease_id",
    "count_ports",
    "request_digest",
]

BID_DOMAIN: Final = "dms-bid"
"""The domain of the signature, so that it is valid for bids only."""

BID_PAYLOAD_TYPE: Final = b"/dms/bid/1.0.0"

MAX_NODES: Final = 64
"""Node requests in one ensemble request."""

MAX_GPUS: Final = 64
"""GPUs in the demand of one node."""

MAX_PORTS: Final = 1024
"""Ports in one request, static and dynamic ones of all its nodes together."""

Name: TypeAlias = Annotated[str, Meta(max_length=128)]
Digest: TypeAlias = Annotated[bytes, Meta(min_length=32, max_length=32)]


class Place(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A place on earth. In a request, an empty field means any."""

    continent: Name = ""
    country: Name = ""
    city: Name = ""


class Location(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Where a node may run (anywhere, when `accept` is empty) and where not."""

    accept: Annotated[tuple[Place, ...], Meta(max_length=64)] = ()
    reject: Annotated[tuple[Place, ...], Meta(max_length=64)] = ()


class GeneralRequirements(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a node needs besides resources."""

    privileged_docker: bool = False


class NodeRequest(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One node of an ensemble, and what it needs of a machine. It needs all of `executors`, such as "docker"."""

    node_id: Annotated[str, Meta(min_length=1, max_length=128)]
    executors: Annotated[tuple[Name, ...], Meta(max_length=16)] = ()
    resources: Demand = Demand()
    location: Location = Location()
    public_ports: PortDemand = PortDemand()
    general_requirements: GeneralRequirements = GeneralRequirements()

    def __post_init__(self) -> None:
        if len(self.resources.gpus) > MAX_GPUS:
            raise ValueError(f"at most {MAX_GPUS} GPUs can be asked for")
        _check_ports(count_ports(self.public_ports))
        texts = [self.resources.cpu.architecture, *(t for gpu in self.resources.gpus for t in (gpu.model, gpu.uuid))]
        if max(map(len, texts)) > 128:
            raise ValueError("a name in the resources has more than 128 characters")


class EnsembleRequest(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A request for bids on the nodes of an ensemble.

    `nonce` distinguishes repeated requests. `deadline` (Unix seconds) is until when the requester waits for bids. The
    peers of `peer_exclusion` should not bid.
    """

    id: Annotated[str, Meta(min_length=1, max_length=128)]
    nonce: Amount
    deadline: float
    request: Annotated[tuple[NodeRequest, ...], Meta(min_length=1, max_length=MAX_NODES)]
    peer_exclusion: Annotated[tuple[Name, ...], Meta(max_length=1024)] = ()

    def __post_init__(self) -> None:
        if len({node.node_id for node in self.request}) != len(self.request):
            raise ValueError("two nodes have the same node_id")
        _check_ports(sum(count_ports(node.public_ports) for node in self.request))


class BidRequest(Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="op", tag="bid_request"):
    """Requests bids; answered with BidAnswer, or with OfferAnswer for a `dry_run`.

    `ensemble` is the map of an EnsembleRequest, kept as it came: its digest covers fields that a later version added.
    `hold` (seconds) requests a hold of the offer, `ttl` (seconds) is how long it is to be committed (0: unknown).
    """

    ensemble: dict[str, Any]
    dry_run: bool = False
    hold: Annotated[float, Meta(ge=0, le=3600)] = 0.0
    ttl: Annotated[float, Meta(ge=0)] = 0.0


class Bid(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a provider offers to one requester for one node; valid until `valid_until` (Unix seconds).

    `resources` name the GPUs that the requester would get. `held` says that the offer is held for the requester until
    then; otherwise another requester may be faster. A bid is committed under `lease_id`, at most once.
    """

    request_digest: Digest
    ensemble_id: str
    nonce: Amount
    node_id: str
    lease_id: str
    requester: str
    provider: str
    demand: Demand
    public_ports: PortDemand = PortDemand()
    resources: Resources
    valid_until: float
    price: Price | None = None
    location: Place | None = None
    held: bool = False
    simulated: bool = False


class Reason(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One thing that stands against a node, and what the requester can do about it (`hint`).

    The other fields are those of Refusal.
    """

    code: str
    message: str
    hint: str = ""
    shortages: tuple[Shortage, ...] = ()
    retry_after: float | None = None


class Refusal(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The refusal of one node, with everything that stands against it.

    `code` is that of the first reason: excluded, not_onboarded, draining, location, executor, resources, ports, window,
    policy or busy. `shortages` has every dimension that falls short with what was asked, what is free and what there is
    in total: a request for what is free would have been granted. `retry_after` is when (seconds) something is known to
    change. `reasons` has all reasons; a provider of an earlier release sends none.
    """

    node_id: str
    code: str
    message: str
    shortages: tuple[Shortage, ...] = ()
    retry_after: float | None = None
    reasons: Annotated[tuple[Reason, ...], Meta(max_length=16)] = ()

    @property
    def all_reasons(self) -> tuple[Reason, ...]:
        """All reasons; where the provider sent no list, the one that the refusal itself names."""
        return self.reasons or (
            Reason(code=self.code, message=self.message, shortages=self.shortages, retry_after=self.retry_after),
        )


class BidAnswer(Struct, frozen=True, kw_only=True):
    """Bids as signed envelopes, and refusals for the other nodes."""

    bids: tuple[bytes, ...]
    refusals: tuple[Refusal, ...]


class OfferAnswer(Struct, frozen=True, kw_only=True):
    """The same as BidAnswer for a dry run: unsigned, without holds."""

    offers: tuple[Bid, ...]
    refusals: tuple[Refusal, ...]


def count_ports(asked: PortDemand) -> int:
    """How many ports the demand has, static and dynamic ones."""
    return len(asked.static) + asked.dynamic


def _check_ports(count: int) -> None:
    if count > MAX_PORTS:
        raise ValueError(f"at most {MAX_PORTS} ports can be asked for")


def request_digest(ensemble: dict[str, Any]) -> bytes:
    """SHA-256 of the deterministic encoding of an ensemble request's map."""
    return hashlib.sha256(encode_deterministic(ensemble)).digest()


def bid_lease_id(*, requester: str, digest: bytes, node_id: str, provider: str) -> str:
    """The id of the lease of a bid: the same for the same request, so that it can be committed only once.

    The first 32 hexadecimal digits of the SHA-256 of the deterministic encoding of these four.
    """
    # In the order of the deterministic encoding already; no value here has more than one form.
    named = {"node_id": node_id, "provider": provider, "requester": requester, "request_digest": digest}
    return hashlib.sha256(encode_fast(named)).hexdigest()[:32]
