"""The reports of commands that query other peers, for people or as JSON."""

from __future__ import annotations

from msgspec import Struct

from dms_protocols.messages.bid import Bid, Refusal
from dms_protocols.messages.job import JobStatus
from dms_resources.components import FreeResources, MachineResources, Resources
from dms_resources.ledger.leases import EndedLease, Lease, Price

__all__ = [
    "BidReport",
    "EnsembleBidReport",
    "Found",
    "FoundRow",
    "HomeJob",
    "HomeJobs",
    "HomeLease",
    "HomeLeases",
    "OfferedBid",
    "PeerEndedLease",
    "PeerFree",
    "PeerLease",
    "PeerLeases",
    "PeerMachine",
    "PeerUsage",
    "Pong",
    "ReleasedLeases",
    "Reserved",
    "ReservedNode",
    "SearchProgress",
    "UnansweredPeer",
]


class PeerFree(FreeResources, frozen=True, kw_only=True):
    """What a peer has free."""

    peer_id: str

    def plain(self) -> FreeResources:
        """The figures alone."""
        return FreeResources(**{name: getattr(self, name) for name in FreeResources.__struct_fields__})


class PeerUsage(Resources, frozen=True, kw_only=True):
    """What the machine of a peer uses now."""

    peer_id: str


class PeerMachine(Struct, frozen=True, kw_only=True):
    """The hardware of a peer."""

    peer_id: str
    machine: MachineResources


class Pong(Struct, frozen=True, kw_only=True):
    """One answer to a ping: its round trip in seconds, and whether the connection goes through a relay.

    `relayed` is None where the peer was not reached over a connection: the peer itself.
    """

    peer_id: str
    round_trip: float
    relayed: bool | None = None


class BidReport(Struct, frozen=True, kw_only=True):
    """A bid or, for a dry run, what it would be. `envelope` is what to commit it with, and `file` is where it was
    written.
    """

    peer_id: str
    dry_run: bool
    bid: Bid
    envelope: bytes | None = None
    file: str | None = None


class OfferedBid(Struct, frozen=True, kw_only=True):
    """One bid, and the envelope to commit it with."""

    bid: Bid
    envelope: bytes | None = None


class EnsembleBidReport(Struct, frozen=True, kw_only=True):
    """The answer of one peer to the nodes of an ensemble. `not_asked` are the nodes for other peers, `file` has its
    bids.
    """

    peer_id: str
    dry_run: bool
    bids: tuple[OfferedBid, ...]
    refusals: tuple[Refusal, ...]
    not_asked: tuple[str, ...] = ()
    file: str | None = None


class PeerLease(Lease, frozen=True, kw_only=True):
    """A lease at a peer."""

    peer_id: str

    def plain(self) -> Lease:
        """The lease alone."""
        return Lease(**{name: getattr(self, name) for name in Lease.__struct_fields__})


class PeerLeases(Struct, frozen=True, kw_only=True):
    """Leases at a peer that were committed together."""

    peer_id: str
    leases: tuple[Lease, ...]


class HomeLease(Struct, frozen=True, kw_only=True):
    """A lease of this home at a peer, as that peer last reported it, `age` seconds ago."""

    peer_id: str
    lease: Lease
    age: float


class UnansweredPeer(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A provider that could not be queried, or one of its leases that was not released, and the reason."""

    peer_id: str
    code: str
    message: str
    lease_id: str = ""


class HomeJob(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A job of this home, on a lease at a peer. `ensemble_id` and `node_id` are its requester's names."""

    ensemble_id: str
    node_id: str
    peer_id: str
    lease_id: str
    job: JobStatus


class HomeJobs(Struct, frozen=True, kw_only=True):
    """The jobs that this home runs, and the leases whose providers did not answer."""

    jobs: tuple[HomeJob, ...]
    unanswered: tuple[UnansweredPeer, ...]


class HomeLeases(Struct, frozen=True, kw_only=True):
    """All leases that this home holds, and the providers that did not answer."""

    leases: tuple[HomeLease, ...]
    unanswered: tuple[UnansweredPeer, ...]


class PeerEndedLease(EndedLease, frozen=True, kw_only=True):
    """A lease at a peer that has ended."""

    peer_id: str


class ReleasedLeases(Struct, frozen=True, kw_only=True):
    """What was released, and what was not."""

    released: tuple[PeerEndedLease, ...]
    failed: tuple[UnansweredPeer, ...]


class SearchProgress(Struct, frozen=True, kw_only=True):
    """The state of a search at one moment.

    Peers that were `asked`, that `answered`, that are `in_flight`, and that were `skipped` because they are known to be
    full; the number of `bids`; the numbers of `refused` nodes and `failed` peers, by code. `source` is where peers are
    being searched, `stage` is searching, committing or reserved. `attempts` counts the attempts to commit; `elapsed` is
    in seconds.
    """

    stage: str
    source: str
    asked: int
    answered: int
    in_flight: int
    skipped: int
    bids: int
    attempts: int
    refused: dict[str, int]
    failed: dict[str, int]
    elapsed: float


class FoundRow(Struct, frozen=True, kw_only=True):
    """One peer that answered. `able` is set if it would take a node; `age` (seconds) is the age of `free`."""

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
    """The end of a search: how many peers were able, and how many were queried."""

    event: str = "done"
    able: int
    progress: SearchProgress


class ReservedNode(Struct, frozen=True, kw_only=True):
    """The peer and the lease of one node."""

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
