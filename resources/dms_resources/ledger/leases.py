"""What is promised: commitments, holds and allocations, each a lease with one holder and a fencing number."""

from __future__ import annotations

from decimal import Decimal
from enum import Enum
from typing import Annotated

from msgspec import Meta, Struct

from ..components import Amount, Port, Resources
from ..demands import Demand, PortDemand
from .accounts import Account, HolderShare

__all__ = [
    "EndReason",
    "EndedLease",
    "Lease",
    "LeaseRequest",
    "LeaseState",
    "Limit",
    "Notice",
    "Price",
    "ResourceAllocation",
]


class LeaseState(Enum):
    """`HELD` for a bid (seconds), `COMMITTED` until a deadline, `ALLOCATED` to a running job."""

    HELD = "held"
    COMMITTED = "committed"
    ALLOCATED = "allocated"

    # The book's totals are kept by state: Enum's own hash is a call of Python each time.
    __hash__ = object.__hash__


class Price(Struct, frozen=True, kw_only=True):
    """What the owner asks: millionths of a unit of `currency` for an hour."""

    micros_per_hour: Amount
    currency: Annotated[str, Meta(max_length=128)]

    def describe(self) -> str:
        """The exact amount for people: "0.25 EUR per hour"."""
        return f"{Decimal(self.micros_per_hour).scaleb(-6).normalize():f} {self.currency} per hour"


class LeaseRequest(Struct, frozen=True, kw_only=True):
    """One commitment to make, for `ttl` seconds; `holder` is a peer id or a local name.

    `price` is what was agreed, kept with the lease; it is no part of what is asked for. Nor is on what it counts:
    the lease is charged to all `accounts`, does not outlast `until` (Unix seconds), and has to keep within `share`.
    """

    lease_id: str
    holder: str
    demand: Demand
    ports: PortDemand = PortDemand()
    ttl: float
    price: Price | None = None
    accounts: tuple[Account, ...] = ()
    until: float | None = None
    share: HolderShare | None = None


class Limit(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A deadline that no renewal moves: Unix time in seconds, and how many seconds it was away when it was set."""

    deadline: float
    seconds: float


class Notice(Limit, frozen=True, kw_only=True, omit_defaults=True):
    """The owner ends the lease at this deadline, for this reason; `drain` when the whole machine is drained."""

    reason: str = ""
    drain: bool = False


class Lease(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Capacity promised to one holder.

    `demand` and `asked_ports` are what was requested, `resources` and `ports` what was granted: GPUs are named devices
    with the bytes taken on each. `deadline` is Unix time in seconds, None for an allocation that lasts until it is
    released; `ttl` is for how many seconds each renewal moves it. `fence` is greater than that of every earlier lease
    of this ledger. Leases that were committed together share `group`. `price` is what was agreed when the lease was
    made; later prices do not change it. The lease is charged to `accounts`; a commitment is not renewed beyond `until`
    (Unix seconds), the end of these grants. `longest` ends an allocation however often it is renewed. `notice` is set
    when the owner evicts with notice. `grace` is set when an allocation was given another keep-alive because its
    provider was away, until it is renewed.
    """

    lease_id: str
    holder: str
    state: LeaseState
    demand: Demand
    asked_ports: PortDemand = PortDemand()
    resources: Resources
    ports: tuple[Port, ...] = ()
    fence: Amount
    created: float
    ttl: float = 0.0
    deadline: float | None = None
    group: str = ""
    processes: tuple[tuple[int, float], ...] = ()
    price: Price | None = None
    accounts: tuple[str, ...] = ()
    until: float | None = None
    longest: Limit | None = None
    notice: Notice | None = None
    grace: bool = False


class EndReason(Enum):
    """Why a lease ended: `RELEASED` by its holder, `EXPIRED` at its deadline, `LOST` because the holder of an
    allocation did not renew it, `EVICTED` by the owner, `REPAIRED` by an audit."""

    RELEASED = "released"
    EXPIRED = "expired"
    LOST = "lost"
    EVICTED = "evicted"
    REPAIRED = "repaired"


class EndedLease(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What is remembered of a lease that ended, so that a repeated release answers the same.

    `ended` is Unix time in seconds; `state` is what the lease was in when it ended; `detail` says more for people, for
    example why the owner evicted it.
    """

    lease_id: str
    holder: str
    state: LeaseState
    fence: Amount
    reason: EndReason
    ended: float
    detail: str = ""


class ResourceAllocation(Struct, frozen=True, kw_only=True):
    """An allocation to make (the seed's type).

    Where a commitment of this id stands, the allocation takes its place; `resources` may then be None. Where none
    stands, `resources` and `ports` are allocated directly. `processes` are ids of the job's processes where known.
    """

    lease_id: str
    holder: str
    resources: Demand | None = None
    ports: PortDemand = PortDemand()
    fence: Amount | None = None
    processes: tuple[int, ...] = ()
