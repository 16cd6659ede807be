"""Leases: holds, commitments and allocations, each with one holder and a fencing number."""

from __future__ import annotations

from decimal import Decimal
from enum import Enum
from typing import Annotated, Final, TypeAlias

from msgspec import Meta, Struct

from ..components import Amount, Port, Resources
from ..demands import Demand, PortDemand
from .accounts import Account, HolderShare

__all__ = [
    "LONGEST_NAME",
    "EndReason",
    "EndedLease",
    "Lease",
    "LeaseJob",
    "LeaseRequest",
    "LeaseState",
    "Limit",
    "Notice",
    "Price",
    "ResourceAllocation",
]

LONGEST_NAME: Final = 128
"""The largest number of characters in the name of an ensemble or of a node."""

LeaseName: TypeAlias = Annotated[str, Meta(max_length=LONGEST_NAME)]


class LeaseState(Enum):
    """`HELD` for a bid (seconds), `COMMITTED` until a deadline, `ALLOCATED` to a job, `ENDING` after a lease ended for
    its holder and until its job is gone: its capacity still counts."""

    HELD = "held"
    COMMITTED = "committed"
    ALLOCATED = "allocated"
    ENDING = "ending"

    # The book's totals are kept by state, and Enum's own hash is a Python call each time.
    __hash__ = object.__hash__


class Price(Struct, frozen=True, kw_only=True):
    """A price: millionths of a unit of `currency` for an hour."""

    micros_per_hour: Amount
    currency: Annotated[str, Meta(max_length=128)]

    def describe(self) -> str:
        """The exact amount for people: "0.25 EUR per hour"."""
        return f"{Decimal(self.micros_per_hour).scaleb(-6).normalize():f} {self.currency} per hour"


class LeaseRequest(Struct, frozen=True, kw_only=True):
    """One requested commitment, for `ttl` seconds. `holder` is a peer id or a local name.

    `price` is the agreed price, kept with the lease. The lease is charged to all `accounts`, does not outlast `until`
    (Unix seconds), and has to stay within `share`. `ensemble_id` and `node_id` are the requester's names for what the
    lease is for. Price, charges and these names are not part of the contents of the request.
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
    ensemble_id: LeaseName = ""
    node_id: LeaseName = ""


class Limit(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A deadline that no renewal moves: Unix time in seconds, and how many seconds away it was when it was set."""

    deadline: float
    seconds: float


class Notice(Limit, frozen=True, kw_only=True, omit_defaults=True):
    """The owner's notice: the lease ends at this deadline, for this reason. `drain` is set if the whole
    machine drains.
    """

    reason: str = ""
    drain: bool = False


class EndReason(Enum):
    """Why a lease ended: `RELEASED` by its holder, `EXPIRED` at its deadline, `LOST` because the holder of an
    allocation did not renew it, `EVICTED` by the owner, `REPAIRED` by an audit.
    """

    RELEASED = "released"
    EXPIRED = "expired"
    LOST = "lost"
    EVICTED = "evicted"
    REPAIRED = "repaired"


class EndedLease(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What the ledger remembers of an ended lease, so that a repeated release gets the same answer.

    `ended` is Unix time in seconds. `state` is the state in which it ended. `detail` says more for people, for example
    why the owner evicted it.
    """

    lease_id: str
    holder: str
    state: LeaseState
    fence: Amount
    reason: EndReason
    ended: float
    detail: str = ""


class LeaseJob(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The job of an allocation: the `digest` of its document in hexadecimal, and whether it is `gone`.

    A job is gone when no process of it runs any more.
    """

    digest: str
    gone: bool = False


class Lease(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Capacity that is promised to one holder.

    `demand` and `asked_ports` are what was requested, `resources` and `ports` what was granted: GPUs are named devices
    with the bytes taken on each. `deadline` is Unix time in seconds, None for an allocation that lasts until it is
    released; `ttl` is the number of seconds by which each renewal moves it. `fence` is greater than that of every
    earlier lease of this ledger. Leases that were committed together have the same `group`. `ensemble_id` and `node_id`
    are the names by which the holder requested the lease; both are empty if the ledger does not know them, for example
    for a lease that an earlier version made. `price` is what was agreed when the lease was made; later prices do not
    change it. The lease is charged to `accounts`; a commitment is not renewed beyond `until` (Unix seconds), the end of
    these grants. `longest` ends an allocation regardless of renewals. `notice` is set when the owner evicts with
    notice. `grace` is set from the time when an allocation gets another keep-alive, because its provider was down,
    until it is renewed.

    `job` is the job that is attached to the allocation. `processes` are the ids of its processes, each with its start
    in seconds after boot, and `cgroup` is the name of their group as in `/proc/PID/cgroup`. `ended` is set in the state
    `ENDING`: how the lease ended for its holder.
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
    ensemble_id: LeaseName = ""
    node_id: LeaseName = ""
    processes: tuple[tuple[int, float], ...] = ()
    price: Price | None = None
    accounts: tuple[str, ...] = ()
    until: float | None = None
    longest: Limit | None = None
    notice: Notice | None = None
    grace: bool = False
    job: LeaseJob | None = None
    cgroup: str = ""
    ended: EndedLease | None = None

    @property
    def runs_job(self) -> bool:
        """Whether a job is attached that is not gone."""
        return self.job is not None and not self.job.gone


class ResourceAllocation(Struct, frozen=True, kw_only=True):
    """A requested allocation (the seed's type).

    If a commitment of this id exists, the allocation replaces it, and `resources` may be None. Otherwise `resources`
    and `ports` are allocated directly. `processes` are the ids of the job's processes, if known.
    """

    lease_id: str
    holder: str
    resources: Demand | None = None
    ports: PortDemand = PortDemand()
    fence: Amount | None = None
    processes: tuple[int, ...] = ()
