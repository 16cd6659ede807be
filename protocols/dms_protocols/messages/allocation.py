"""`/dms/allocation/1.0.0`: taking what was bid, keeping it, using it, giving it back.

A commitment has a deadline and a fencing number (`fence`); who gives the number with a later request is told when the
lease is no longer the one that it was.
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
    """Moves the deadline of a commitment to `ttl` seconds from now; answered with LeaseAnswer."""

    lease_id: LeaseID
    ttl: Seconds
    fence: Amount | None = None


class AllocateRequest(Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="op", tag="allocate"):
    """Turns a commitment into an allocation, which lasts until it is released; answered with LeaseAnswer."""

    lease_id: LeaseID
    fence: Amount | None = None


class ReleaseRequest(Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="op", tag="release"):
    """Gives a lease back, whatever its state; answered with ReleaseAnswer."""

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


class ListAnswer(Struct, frozen=True, kw_only=True):
    """Leases, and whether there are more behind the last of them."""

    leases: tuple[Lease, ...]
    more: bool
