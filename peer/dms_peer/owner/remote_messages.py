"""Requests of a command to other peers: through the running peer of its home, or over a host of its own.

Each request names the peer by its id and by the addresses that the command knows; the running peer adds the addresses
that it knows. The `token` is sent to the other peer if that requires one.
"""

from __future__ import annotations

from typing import Annotated, TypeAlias

from msgspec import Meta, Struct

from dms_protocols.messages.allocation import LeaseID, Seconds
from dms_protocols.messages.bid import MAX_NODES, EnsembleRequest
from dms_resources.components import Amount

from ..requesting.reasons import NodeReasons
from ..requesting.reports import Found, FoundRow, Reserved, SearchProgress

__all__ = [
    "DiscoverRequest",
    "PeerRequest",
    "RemoteAllocateRequest",
    "RemoteBidRequest",
    "RemoteCommitRequest",
    "RemoteFreeRequest",
    "RemoteListRequest",
    "RemoteMachineRequest",
    "RemotePingRequest",
    "RemoteReleaseRequest",
    "RemoteRenewRequest",
    "RemoteUsageRequest",
    "ReservationFailure",
    "ReserveEvent",
    "ReserveRequest",
    "SearchEvent",
]

Addresses: TypeAlias = Annotated[tuple[str, ...], Meta(max_length=32)]


class PeerRequest(Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="op", tag="remote"):
    """The base of the requests for one peer."""

    peer_id: str
    addrs: Addresses = ()
    token: bytes | None = None


class RemoteFreeRequest(PeerRequest, frozen=True, kw_only=True, tag="remote_free"):
    """Requests what the peer has free. The answer is PeerFree."""


class RemoteUsageRequest(PeerRequest, frozen=True, kw_only=True, tag="remote_usage"):
    """Requests what the peer's machine uses now. The answer is PeerUsage."""


class RemoteMachineRequest(PeerRequest, frozen=True, kw_only=True, tag="remote_machine"):
    """Requests the peer's hardware. The answer is PeerMachine."""


class RemotePingRequest(PeerRequest, frozen=True, kw_only=True, tag="remote_ping"):
    """One round trip of libp2p's ping protocol. The answer is Pong."""


class RemoteBidRequest(PeerRequest, frozen=True, kw_only=True, omit_defaults=True, tag="remote_bid"):
    """Requests bids on an ensemble or, with `dry_run`, what they would be. The answer is EnsembleBidReport."""

    ensemble: EnsembleRequest
    dry_run: bool = False
    hold: Annotated[float, Meta(ge=0, le=3600)] = 0.0


class RemoteCommitRequest(PeerRequest, frozen=True, kw_only=True, tag="remote_commit"):
    """Commits bids (signed envelopes) for `ttl` seconds, all or none. The answer is PeerLeases."""

    bids: Annotated[tuple[bytes, ...], Meta(min_length=1, max_length=MAX_NODES)]
    ttl: Seconds


class RemoteRenewRequest(PeerRequest, frozen=True, kw_only=True, omit_defaults=True, tag="remote_renew"):
    """Moves the deadline of a lease to `ttl` seconds from now. The answer is PeerLease."""

    lease_id: LeaseID
    ttl: Seconds
    fence: Amount | None = None


class RemoteAllocateRequest(PeerRequest, frozen=True, kw_only=True, omit_defaults=True, tag="remote_allocate"):
    """Turns a commitment into an allocation. The answer is PeerLease."""

    lease_id: LeaseID
    fence: Amount | None = None


class RemoteReleaseRequest(PeerRequest, frozen=True, kw_only=True, omit_defaults=True, tag="remote_release"):
    """Releases a lease. The answer is PeerEndedLease."""

    lease_id: LeaseID
    fence: Amount | None = None


class RemoteListRequest(PeerRequest, frozen=True, kw_only=True, tag="remote_list"):
    """Requests all leases of the requester at the peer. The answer is PeerLeases."""


class DiscoverRequest(Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="op", tag="discover"):
    """Requests peers that would take a node of the ensemble: `count` of them, or all (None). The answers are
    SearchEvents.
    """

    ensemble: EnsembleRequest
    count: Annotated[int, Meta(ge=1)] | None = None
    token: bytes | None = None


class SearchEvent(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One step of a search: a peer that answered (`row`) with the progress of the search, or its end (`found`)."""

    progress: SearchProgress | None = None
    row: FoundRow | None = None
    found: Found | None = None


class ReserveRequest(Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="op", tag="reserve"):
    """Takes all nodes of the ensemble or none, and holds them while the watch is open. The answers are ReserveEvents.

    `pins` has the peer that must take a node, by node id. Commitments last `ttl` seconds and are renewed. With
    `allocate` they become allocations at once.
    """

    ensemble: EnsembleRequest
    strategy: str = "cheapest"
    currency: str = ""
    different_peers: bool = False
    pins: dict[str, str] = {}
    ttl: Seconds = 60.0
    wait: bool = False
    allocate: bool = False
    token: bytes | None = None


class ReservationFailure(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Why nothing is held, or no longer: a ReservationError; with `node_ids`, a ReservationLostError."""

    code: str
    message: str
    hint: str = ""
    reasons: tuple[NodeReasons, ...] = ()
    node_ids: tuple[str, ...] = ()


class ReserveEvent(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A step of a reservation: its `progress`, what is held (`reserved`), or its end (`failure`)."""

    progress: SearchProgress | None = None
    reserved: Reserved | None = None
    failure: ReservationFailure | None = None
