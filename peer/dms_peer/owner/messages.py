"""The messages on the owner's socket: requests of the owner of a machine, and the answers of the peer."""

from __future__ import annotations

from typing import Annotated, TypeAlias

from msgspec import Meta, Struct

from dms_protocols.messages.job import JobExit
from dms_resources.components import Amount, FreeResources, MachineResources, OnboardedResources, Resources
from dms_resources.ledger.history import Finding, HistoryEntry
from dms_resources.ledger.leases import EndedLease, Lease
from dms_resources.units import Cores

from .offers import Offer

__all__ = [
    "AuditAnswer",
    "AuditRequest",
    "CancelDrainAnswer",
    "CancelDrainRequest",
    "DrainAnswer",
    "DrainEvent",
    "DrainRequest",
    "EvictAnswer",
    "EvictRequest",
    "ExecutorStatus",
    "HistoryAnswer",
    "HistoryRequest",
    "HistoryRow",
    "LeaseJobStatus",
    "LeaseUse",
    "OffboardRequest",
    "OnboardAnswer",
    "OnboardRequest",
    "PeerRow",
    "PeersAnswer",
    "PeersRequest",
    "ReleaseLeaseRequest",
    "Revocation",
    "RevocationsAnswer",
    "RevocationsRequest",
    "RevokeAnswer",
    "RevokeRequest",
    "StartDrainRequest",
    "StatusAnswer",
    "StatusRequest",
    "TermsSummary",
]

GrantID: TypeAlias = Annotated[str, Meta(pattern=r"\A[0-9a-f]{32}\Z")]


class StatusRequest(Struct, frozen=True, tag_field="op", tag="status"):
    """Requests what is onboarded, promised and free, and the holders."""


class TermsSummary(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The terms on which a running peer bids.

    `micros_per_hour` has each price that is not 0 (core, ram_gib, disk_gib, gpu, vram_gib, bid), in millionths of a
    unit of `currency`. The peer bids only on nodes that need no executor but
    these `executors`. `location` goes from the continent to the city.
    """

    currency: str = ""
    micros_per_hour: dict[str, int] = {}
    location: tuple[str, ...] = ()
    executors: tuple[str, ...]
    privileged_docker: bool = False
    valid_seconds: float = 300.0
    allowed_peers: tuple[str, ...] = ()
    denied_peers: tuple[str, ...] = ()
    policies: tuple[str, ...] = ()


class LeaseUse(Struct, frozen=True, kw_only=True):
    """What the job of one lease uses now: CPU cores, and bytes of RAM.

    `vram` has the bytes used on each GPU, by uuid, that no other lease is on: of a shared GPU they are not known.
    """

    lease_id: str
    cores: Cores
    ram: Amount
    vram: dict[str, Amount] = {}


class LeaseJobStatus(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The job of one lease: its executor, its state and since when (Unix seconds), and how it exited.

    `reason` explains the state to people. `output` is how many bytes the job has written.
    """

    lease_id: str
    executor: str
    state: str
    since: float
    exit: JobExit | None = None
    reason: str = ""
    output: Amount = 0


class ExecutorStatus(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One executor: whether it works, or why not (`problem`), and what the owner should know of it (`notes`)."""

    name: str
    works: bool
    problem: str = ""
    version: str = ""
    notes: tuple[str, ...] = ()


class StatusAnswer(Struct, frozen=True, kw_only=True):
    """The state of one peer. `running` is false if the ledger was read without a peer.

    `addrs` end in `/p2p/PEER_ID`. `leases` are the newest ones; `lease_count` counts all. `limits` and `problems` are
    sentences on the machine, `missing` on what is onboarded but no longer present, `short_now` on what is free in the
    ledger but not on the machine. `storage_error` says why nothing can be promised now. `findings` are those of the
    last audit, at `audited` (Unix seconds). `usage` is what the whole machine used `usage_age` seconds ago, None if
    nothing watches it. `terms` are those of the running peer, None if it has none. Since the peer started, `refusals`
    counts the nodes on which it did not bid and `failures` the requests that it answered with an error, by code;
    `limits_hit` counts what its host refused, by limit. `lease_use` has the leases whose processes are known and have a
    cgroup of their own. `jobs` has the jobs of `leases`, `executors` what runs jobs here. `other_peers` are sentences
    on the other running peers of this machine. `version` is the release of dms-peer that answers. `drain_deadline`
    (Unix seconds) is the time by which a drain is to end.
    """

    peer_id: str
    addrs: tuple[str, ...]
    running: bool
    simulated: bool
    draining: bool
    onboarded: OnboardedResources | None
    free: FreeResources
    committed: Resources
    allocated: Resources
    leases: tuple[Lease, ...]
    lease_count: int
    limits: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    usage: Resources | None = None
    usage_age: float | None = None
    missing: tuple[str, ...] = ()
    short_now: tuple[str, ...] = ()
    storage_error: str | None = None
    findings: tuple[Finding, ...] = ()
    audited: float | None = None
    terms: TermsSummary | None = None
    refusals: dict[str, int] = {}
    failures: dict[str, int] = {}
    limits_hit: dict[str, int] = {}
    lease_use: tuple[LeaseUse, ...] = ()
    jobs: tuple[LeaseJobStatus, ...] = ()
    executors: tuple[ExecutorStatus, ...] = ()
    other_peers: tuple[str, ...] = ()
    version: str = ""
    drain_deadline: float | None = None


class OnboardRequest(Struct, frozen=True, kw_only=True, tag_field="op", tag="onboard"):
    """Offers these resources from now on, which ends a drain. `machine` is the machine that the owner expects.

    A `dry_run` only checks whether this is possible.
    """

    offer: Offer
    machine: MachineResources | None = None
    dry_run: bool = False


class OffboardRequest(Struct, frozen=True, kw_only=True, tag_field="op", tag="offboard"):
    """Offers nothing any more. Refused while leases exist."""


class OnboardAnswer(Struct, frozen=True, kw_only=True):
    """What is offered now, and what of it is free. `warnings` are sentences on unusual parts of the offer."""

    onboarded: OnboardedResources | None
    free: FreeResources
    simulated: bool
    warnings: tuple[str, ...] = ()


Reason: TypeAlias = Annotated[str, Meta(max_length=200, pattern=r"\A[^\x00-\x1f\x7f\x85\u2028\u2029]*\Z")]
LeaseName: TypeAlias = Annotated[str, Meta(min_length=1, max_length=128)]
"""A lease id, or the beginning of one that no other lease has."""


class EvictRequest(Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="op", tag="evict"):
    """Ends the named leases, those of `holder`, or `everything`: at once, or `notice` seconds from now."""

    leases: Annotated[tuple[LeaseName, ...], Meta(max_length=1024)] = ()
    holder: LeaseName | None = None
    everything: bool = False
    reason: Reason = ""
    notice: Annotated[float, Meta(ge=0)] = 0.0


class EvictAnswer(Struct, frozen=True, kw_only=True):
    """The leases that have `ended`, and those that were `noticed`, with their deadlines.

    `ending` has the ids of ended leases whose jobs still run: their capacity is free when the jobs are gone.
    """

    ended: tuple[EndedLease, ...]
    noticed: tuple[Lease, ...]
    ending: tuple[str, ...] = ()


class ReleaseLeaseRequest(Struct, frozen=True, kw_only=True, tag_field="op", tag="release_lease"):
    """Ends a lease of this peer's ledger as its holder would. The answer is the EndedLease."""

    lease: LeaseName


class StartDrainRequest(Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="op", tag="start_drain"):
    """Accepts no new commitments from now on. With `evict` all leases end, at once or `notice` seconds from now."""

    evict: bool = False
    notice: Annotated[float, Meta(ge=0)] = 0.0


class DrainAnswer(Struct, frozen=True, kw_only=True):
    """How many `leases` have not ended yet, and how many were `evicted`. `running` is set if a running peer answers.

    `ending` counts those of the leases that ended for their holders, and whose jobs still run.
    `deadline` (Unix seconds) is the time by which the drain is to end, None if it has none.
    """

    leases: int
    evicted: int
    running: bool
    ending: int = 0
    deadline: float | None = None


class CancelDrainRequest(Struct, frozen=True, kw_only=True, tag_field="op", tag="cancel_drain"):
    """Accepts new commitments again, and withdraws the notices of the drain. The notices of `evict` stay."""


class CancelDrainAnswer(Struct, frozen=True, kw_only=True):
    """Whether there was a drain, and how many of its notices were withdrawn."""

    drained: bool
    withdrawn: int


class DrainRequest(Struct, frozen=True, kw_only=True, tag_field="op", tag="drain"):
    """Accepts no new commitments. Reports the number of leases left, after every change until there are none."""


class DrainEvent(Struct, frozen=True, kw_only=True):
    """How many leases have not ended yet."""

    leases: int


class HistoryRequest(Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="op", tag="history"):
    """Requests entries, the newest first. `before` continues from an entry's number."""

    limit: Annotated[int, Meta(ge=1, le=1000)] = 100
    before: Amount | None = None


class HistoryRow(HistoryEntry, frozen=True, kw_only=True):
    """One entry of the history and its number."""

    number: int


class HistoryAnswer(Struct, frozen=True, kw_only=True):
    """Entries of the history, newest first."""

    entries: tuple[HistoryRow, ...]


class AuditRequest(Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="op", tag="audit"):
    """Compares the ledger with itself, with its file and with the operating system. `repair` repairs what
    is possible.
    """

    repair: bool = False


class AuditAnswer(Struct, frozen=True, kw_only=True):
    """The mismatches: their number, and each with its code."""

    findings: tuple[Finding, ...]
    repaired: bool


class PeersRequest(Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="op", tag="peers"):
    """Requests the peers that this one knows: first those that are connected, then those last seen."""

    limit: Annotated[int, Meta(ge=1, le=1000)] = 100


class PeerRow(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What is known about one peer. `sources` name the sources that know it ("known", "mdns", …). Ages are in seconds.

    `free` is what it had free `free_age` seconds ago. `failures` counts the failed attempts to reach it since it was
    last seen, `seen_age` seconds ago.
    """

    peer_id: str
    addrs: tuple[str, ...]
    sources: tuple[str, ...] = ()
    connected: bool = False
    seen_age: float | None = None
    free: FreeResources | None = None
    free_age: float | None = None
    failures: int = 0


class PeersAnswer(Struct, frozen=True, kw_only=True):
    """Some of `peer_count` peers. `running` is false if they were read from the file because no peer runs."""

    peers: tuple[PeerRow, ...]
    peer_count: int
    running: bool


class RevokeRequest(Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="op", tag="revoke"):
    """Revokes grants by the ids of their blocks, and with them all grants derived from them."""

    grants: Annotated[tuple[GrantID, ...], Meta(min_length=1, max_length=64)]
    reason: Annotated[str, Meta(max_length=200, pattern=r"\A[^\x00-\x1f\x7f\x85\u2028\u2029]*\Z")] = ""


class RevokeAnswer(Struct, frozen=True, kw_only=True):
    """How many of them were not revoked before."""

    added: int
    grants: tuple[str, ...]


class RevocationsRequest(Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="op", tag="revocations"):
    """Requests the revoked grants, the last ones first."""

    limit: Annotated[int, Meta(ge=1, le=1000)] = 100


class Revocation(Struct, frozen=True, kw_only=True):
    """One grant that is revoked since `at` (Unix seconds)."""

    id: str
    at: int
    reason: str = ""


class RevocationsAnswer(Struct, frozen=True, kw_only=True):
    """Some of `count` revocations."""

    revocations: tuple[Revocation, ...]
    count: int
