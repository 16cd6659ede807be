"""`/dms/bid`: whether a provider would run an ensemble, and on which terms.

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
"""The largest number of nodes in one ensemble request."""

MAX_GPUS: Final = 64
"""The largest number of GPUs in the demand of one node."""

MAX_PORTS: Final = 1024
"""The largest number of ports in one request, static and dynamic, of all its nodes together."""

Name: TypeAlias = Annotated[str, Meta(max_length=128)]
Digest: TypeAlias = Annotated[bytes, Meta(min_length=32, max_length=32)]


class Place(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A place on earth. In a request, an empty field means any."""

    continent: Name = ""
    country: Name = ""
    city: Name = ""


class Location(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Where a node may run (anywhere if `accept` is empty), and where it may not."""

    accept: Annotated[tuple[Place, ...], Meta(max_length=64)] = ()
    reject: Annotated[tuple[Place, ...], Meta(max_length=64)] = ()


class GeneralRequirements(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a node needs in addition to resources."""

    privileged_docker: bool = False


class NodeRequest(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One node of an ensemble, and what it needs of a machine. It needs all of `executors`, for example "docker"."""

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

    `nonce` distinguishes repeated requests. The requester waits for bids until `deadline` (Unix seconds). The peers in
    `peer_exclusion` should not bid.
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
    """Requests bids. The answer is BidAnswer, or OfferAnswer for a `dry_run`.

    `ensemble` is the map of an EnsembleRequest exactly as it was received, because its digest also covers fields that a
    later version added. `hold` (seconds) requests a hold of the offer. `ttl` (seconds) is the time for which it will be
    committed (0: unknown).
    """

    ensemble: dict[str, Any]
    dry_run: bool = False
    hold: Annotated[float, Meta(ge=0, le=3600)] = 0.0
    ttl: Annotated[float, Meta(ge=0)] = 0.0


class Bid(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The offer of a provider to one requester for one node; valid until `valid_until` (Unix seconds).

    `resources` name the GPUs that the requester would get. If `held` is true, the provider holds the offer for the
    requester until then; otherwise another requester may be faster. A bid is committed under `lease_id`, at most once.
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
    """One reason against a node, and what the requester can do about it (`hint`).

    The other fields are those of Refusal.
    """

    code: str
    message: str
    hint: str = ""
    shortages: tuple[Shortage, ...] = ()
    retry_after: float | None = None


class Refusal(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The refusal of one node, with all reasons.

    `code` is the code of the first reason: excluded, not_onboarded, draining, location, executor, resources, ports,
    window, policy or busy. `shortages` lists every dimension that falls short, with the requested, the free and the
    total amount. A request for the free amount would have succeeded. `retry_after` is the number of seconds until a
    known change. `reasons` has all reasons; a provider of an earlier release does not send it.
    """

    node_id: str
    code: str
    message: str
    shortages: tuple[Shortage, ...] = ()
    retry_after: float | None = None
    reasons: Annotated[tuple[Reason, ...], Meta(max_length=16)] = ()

    @property
    def all_reasons(self) -> tuple[Reason, ...]:
        """All reasons. If the provider sent no list, the reason in the refusal itself."""
        return self.reasons or (
            Reason(code=self.code, message=self.message, shortages=self.shortages, retry_after=self.retry_after),
        )


class BidAnswer(Struct, frozen=True, kw_only=True):
    """Bids as signed envelopes, and refusals of the other nodes."""

    bids: tuple[bytes, ...]
    refusals: tuple[Refusal, ...]


class OfferAnswer(Struct, frozen=True, kw_only=True):
    """The same as BidAnswer for a dry run: unsigned, without holds."""

    offers: tuple[Bid, ...]
    refusals: tuple[Refusal, ...]


def count_ports(asked: PortDemand) -> int:
    """The number of ports in the demand, static and dynamic."""
    return len(asked.static) + asked.dynamic


def _check_ports(count: int) -> None:
    if count > MAX_PORTS:
        raise ValueError(f"at most {MAX_PORTS} ports can be asked for")


def request_digest(ensemble: dict[str, Any]) -> bytes:
    """SHA-256 of the deterministic encoding of an ensemble request's map."""
    return hashlib.sha256(encode_deterministic(ensemble)).digest()


def bid_lease_id(*, requester: str, digest: bytes, node_id: str, provider: str) -> str:
    """The id of the lease of a bid. The same request always gives the same id, so that its bid can be committed only
    once.

    It is the first 32 hexadecimal digits of the SHA-256 of the deterministic encoding of the four arguments.
    """
    # This is already the order of the deterministic encoding, and each value has only one encoding.
    named = {"node_id": node_id, "provider": provider, "requester": requester, "request_digest": digest}
    return hashlib.sha256(encode_fast(named)).hexdigest()[:32]
