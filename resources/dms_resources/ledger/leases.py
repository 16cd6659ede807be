"""What is promised: commitments, holds and allocations, each a lease with one holder and a fencing number."""

from __future__ import annotations

from decimal import Decimal
from enum import Enum
from typing import Annotated

from msgspec import Meta, Struct

from ..components import Amount, Port, Resources
from ..demands import Demand, PortDemand
from .accounts import Account, HolderShare

__all__ = ["EndReason", "EndedLease", "Lease", "LeaseRequest", "LeaseState", "Price", "ResourceAllocation"]


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
    """One commitment to make: who asks (`holder`, a peer id or a local name), for what, for `ttl` seconds.

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


class Lease(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Capacity promised to one holder.

    `demand` and `asked_ports` are what was asked, `resources` and `ports` what was granted: GPUs are named devices with
    the bytes taken on each. `deadline` is Unix time in seconds, None for an allocation. `fence` is greater than that of
    every earlier lease of this ledger. `group` is shared by leases that were committed together. `price` is what was
    agreed when the lease was made, and stands whatever the owner asks of others since. `accounts` are those that it is
    charged to, and `until` (Unix seconds) is the end of these grants, beyond which it is not renewed.
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


class EndReason(Enum):
    """Why a lease ended: given back by its holder, past its deadline, or mended by an audit."""

    RELEASED = "released"
    EXPIRED = "expired"
    REPAIRED = "repaired"


class EndedLease(Struct, frozen=True, kw_only=True):
    """What is remembered of a lease that ended, so that a repeated release answers the same.

    `ended` is Unix time in seconds; `state` is what the lease was in when it ended.
    """

    lease_id: str
    holder: str
    state: LeaseState
    fence: Amount
    reason: EndReason
    ended: float


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
