"""What the commands that go to the network report, to a person or as JSON."""

from __future__ import annotations

from msgspec import Struct

from dms_protocols.messages.bid import Bid, Refusal
from dms_resources.components import FreeResources, Resources
from dms_resources.ledger.leases import EndedLease, Lease, Price

from ..requesting.progress import SearchProgress

__all__ = [
    "BidReport",
    "EnsembleBidReport",
    "Found",
    "FoundRow",
    "OfferedBid",
    "PeerEndedLease",
    "PeerFree",
    "PeerLease",
    "PeerLeases",
    "Reserved",
    "ReservedNode",
]


class PeerFree(FreeResources, frozen=True, kw_only=True):
    """What a peer has free."""

    peer_id: str


class BidReport(Struct, frozen=True, kw_only=True):
    """A bid, or for a dry run what it would say; `envelope` is what to commit it with, and `file` where it was put."""

    peer_id: str
    dry_run: bool
    bid: Bid
    envelope: bytes | None = None
    file: str | None = None


class OfferedBid(Struct, frozen=True, kw_only=True):
    """One bid, and what to commit it with."""

    bid: Bid
    envelope: bytes | None = None


class EnsembleBidReport(Struct, frozen=True, kw_only=True):
    """What one peer says to the nodes of an ensemble; `not_asked` are those for other peers, `file` has its bids."""

    peer_id: str
    dry_run: bool
    bids: tuple[OfferedBid, ...]
    refusals: tuple[Refusal, ...]
    not_asked: tuple[str, ...] = ()
    file: str | None = None


class PeerLease(Lease, frozen=True, kw_only=True):
    """A lease at a peer."""

    peer_id: str


class PeerLeases(Struct, frozen=True, kw_only=True):
    """Leases at a peer that were taken together."""

    peer_id: str
    leases: tuple[Lease, ...]


class PeerEndedLease(EndedLease, frozen=True, kw_only=True):
    """A lease at a peer that has ended."""

    peer_id: str


class FoundRow(Struct, frozen=True, kw_only=True):
    """One peer that answered. `able` when it would take a node; `age` (seconds) is how old `free` is."""

    event: str = "peer"
    peer_id: str
    addrs: tuple[str, ...]
    source: str
    able: bool
    offers: tuple[Bid, ...]
    refusals: tuple[Refusal, ...]
    free: FreeResources | None
    age: float | None
    round_trip: float | None


class Found(Struct, frozen=True, kw_only=True):
    """How a search ended: how many peers were able, and what it took to find them."""

    event: str = "done"
    able: int
    progress: SearchProgress


class ReservedNode(Struct, frozen=True, kw_only=True):
    """Where one node is, and under which lease."""

    node_id: str
    peer_id: str
    addrs: tuple[str, ...]
    lease_id: str
    fence: int
    resources: Resources
    ports: tuple[int, ...]
    price: Price | None


class Reserved(Struct, frozen=True, kw_only=True):
    """An ensemble that is held."""

    event: str = "reserved"
    ensemble_id: str
    allocated: bool
    nodes: tuple[ReservedNode, ...]
    progress: SearchProgress
