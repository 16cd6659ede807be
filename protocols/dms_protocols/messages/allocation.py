"""`/dms/allocation/1.1.0` and 1.0.0: committing bids, renewing, allocating and releasing leases.

A lease has a fencing number (`fence`). A caller that sends it with a later request gets an error if the lease has been
replaced by another one since. The messages of both versions are the same; the module `allocations` says what differs.
"""

from __future__ import annotations

from typing import Annotated, TypeAlias

from msgspec import Meta, Struct

from dms_resources.components import Amount
from dms_resources.ledger.leases import EndedLease, Lease

from .bid import MAX_NODES

__all__ = [
    "AllocateRequest",
    "CommitAnswer",
    "CommitRequest",
    "LeaseAnswer",
    "ListAnswer",
    "ListRequest",
    "ReleaseAnswer",
    "ReleaseRequest",
    "RenewRequest",
]

LeaseID: TypeAlias = Annotated[str, Meta(min_length=1, max_length=256)]
Seconds: TypeAlias = Annotated[float, Meta(gt=0)]


class CommitRequest(Struct, frozen=True, kw_only=True, tag_field="op", tag="commit"):
    """Commits bids (signed envelopes) for `ttl` seconds, all or none. The answer is CommitAnswer."""

    bids: Annotated[tuple[bytes, ...], Meta(min_length=1, max_length=MAX_NODES)]
    ttl: Seconds


class RenewRequest(Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="op", tag="renew"):
    """Moves the deadline of a commitment to `ttl` seconds from now. The answer is LeaseAnswer.

    In 1.1.0 it also restarts the keep-alive of an allocation. The owner sets its length, not `ttl`.
    """

    lease_id: LeaseID
    ttl: Seconds
    fence: Amount | None = None


class AllocateRequest(Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="op", tag="allocate"):
    """Turns a commitment into an allocation. The answer is LeaseAnswer.

    The lease has the `deadline` of the allocation, and its keep-alive as `ttl`: 0 if it needs no renewal.
    """

    lease_id: LeaseID
    fence: Amount | None = None


class ReleaseRequest(Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="op", tag="release"):
    """Releases a lease in any state. The answer is ReleaseAnswer."""

    lease_id: LeaseID
    fence: Amount | None = None


class ListRequest(Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="op", tag="list"):
    """Requests the caller's own leases, ordered by id: at most `limit`, beginning after `after`. The answer is
    ListAnswer.
    """

    after: Annotated[str, Meta(max_length=256)] = ""
    limit: Annotated[int, Meta(ge=1, le=500)] = 100


class CommitAnswer(Struct, frozen=True, kw_only=True):
    """The leases, in the order of the bids."""

    leases: tuple[Lease, ...]


class LeaseAnswer(Struct, frozen=True, kw_only=True):
    """The current state of the lease."""

    lease: Lease


class ReleaseAnswer(Struct, frozen=True, kw_only=True):
    """What the ledger remembers of the lease."""

    lease: EndedLease


class ListAnswer(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A page of leases, and whether there are more after it.

    In 1.1.0 the first page also has `evicted`: the leases of this holder that the owner ended, with the reasons.
    """

    leases: tuple[Lease, ...]
    more: bool
    evicted: tuple[EndedLease, ...] = ()
