"""`/dms/allocation/1.1.0` and 1.0.0: committing bids, renewing, allocating and releasing leases.

A lease has a fencing number (`fence`). A caller who sends it with a later request is told when the lease is no longer
the one that it was. The messages of both versions are the same; `allocations` says what differs.
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
    """Takes bids (signed envelopes) for `ttl` seconds, all or none; answered with CommitAnswer."""

    bids: Annotated[tuple[bytes, ...], Meta(min_length=1, max_length=MAX_NODES)]
    ttl: Seconds


class RenewRequest(Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="op", tag="renew"):
    """Moves the deadline of a commitment to `ttl` seconds from now; answered with LeaseAnswer.

    In 1.1.0 it also starts the keep-alive of an allocation anew, which is as long as the owner says, not `ttl`.
    """

    lease_id: LeaseID
    ttl: Seconds
    fence: Amount | None = None


class AllocateRequest(Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="op", tag="allocate"):
    """Turns a commitment into an allocation; answered with LeaseAnswer.

    The lease has the `deadline` of the allocation, and its keep-alive as `ttl`: 0 where it needs no renewal.
    """

    lease_id: LeaseID
    fence: Amount | None = None


class ReleaseRequest(Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="op", tag="release"):
    """Releases a lease of any state; answered with ReleaseAnswer."""

    lease_id: LeaseID
    fence: Amount | None = None


class ListRequest(Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="op", tag="list"):
    """The caller's own leases, ordered by id, `limit` of those behind `after`; answered with ListAnswer."""

    after: Annotated[str, Meta(max_length=256)] = ""
    limit: Annotated[int, Meta(ge=1, le=500)] = 100


class CommitAnswer(Struct, frozen=True, kw_only=True):
    """The leases, in the order of the bids."""

    leases: tuple[Lease, ...]


class LeaseAnswer(Struct, frozen=True, kw_only=True):
    """The lease as it is now."""

    lease: Lease


class ReleaseAnswer(Struct, frozen=True, kw_only=True):
    """What is remembered of the lease."""

    lease: EndedLease


class ListAnswer(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Leases, and whether there are more behind the last of them.

    In 1.1.0 the first page also has `evicted`: the leases of this holder that the owner ended, with the reasons.
    """

    leases: tuple[Lease, ...]
    more: bool
    evicted: tuple[EndedLease, ...] = ()
