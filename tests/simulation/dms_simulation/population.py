"""A population of machines over time: when each is there, and which jobs it runs. Everything follows from the seed.

Modelled: sessions and absences are exponential, on average an hour and half an hour; each machine is idle for an hour
and works for forty minutes on average, on a job that takes a part of it. The ledger's own code computes what is free
and what would fit, on a ledger in memory.
"""

from __future__ import annotations

import random
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import accumulate
from typing import Any, Final

from msgspec.structs import replace

from dms_resources.components import HoldLimits, MachineResources, OnboardedResources, PortRange
from dms_resources.demands import Demand
from dms_resources.estimates import would_fit
from dms_resources.ledger import decisions
from dms_resources.ledger.book import NOTHING_OFFERED
from dms_resources.ledger.clock import Clock
from dms_resources.ledger.deadlines import AllocationTerms
from dms_resources.ledger.leases import LeaseRequest
from dms_resources.ledger.ledger import Ledger
from dms_resources.ledger.storage import Contents
from dms_resources.manager import ResourceManager

from .providers import in_place, simulated_demand, simulated_machine
from .scheduling import EPOCH

__all__ = ["REQUESTS", "Member", "Population", "Request", "opened_manager"]

SESSION: Final = 3600.0
ABSENCE: Final = 1800.0
IDLE: Final = 3600.0
JOB: Final = 2400.0


@dataclass(frozen=True, slots=True)
class Request:
    """A request, and the share of the present peers that could take it."""

    name: str
    able: float
    demand: Demand


REQUESTS: Final = (
    Request("rare", 0.001, simulated_demand(cores=8, ram=64, disk=100, gpus=(70,))),
    Request("usual", 0.05, simulated_demand(cores=4, ram=16, disk=20, gpus=(20,))),
    Request("common", 0.5, simulated_demand(cores=2, ram=6, disk=10)),
)
"""From rare to common. None of them requests a power of two, so that peers that are found may fall short."""


@dataclass(frozen=True, slots=True)
class _Job:
    """What a job takes of the machine: a part of cores, RAM and disk, and all GPUs or none."""

    share: float
    part: float
    gpus: bool


_IDLE_SHARE: Final = IDLE / (IDLE + JOB)
_JOBS: Final = (_Job(0.5, 0.25, True), _Job(0.25, 0.5, False), _Job(0.25, 0.75, True))
_STATES: Final = (None, *_JOBS)

_MACHINES: Final = (
    simulated_machine(cores=32, ram=256, disk=2000, gpus=(80, 80)),
    simulated_machine(cores=16, ram=64, disk=500, gpus=(24,)),
    simulated_machine(cores=8, ram=32, disk=500, gpus=(16,)),
    simulated_machine(cores=8, ram=16, disk=250),
    simulated_machine(cores=2, ram=4, disk=100),
)


class _NoStorage:
    """A storage to which nothing is written."""

    def write(self, changes: list[Any]) -> None:
        raise AssertionError("a machine of the population is only asked")


def opened_manager(machine: MachineResources, demands: Sequence[Demand], clock: Clock) -> ResourceManager:
    """A manager of a book in memory, in which these demands are committed."""
    onboarded = OnboardedResources(
        cpu=machine.cpu, ram=machine.ram, disk=machine.disk, gpus=machine.gpus,
        port_range=PortRange(first=16384, last=16447), holds=HoldLimits(max_seconds=60, share=1000),
    )  # fmt: skip
    contents = Contents(offer=replace(NOTHING_OFFERED, onboarded=onboarded), fence=0, leases=[], ended=[])
    ledger = Ledger(_NoStorage(), contents, machine, clock, in_place)  # type: ignore[arg-type]  # never used
    for number, demand in enumerate(demands):
        taken = LeaseRequest(lease_id=f"job-{number}", holder="others", demand=demand, ttl=30 * 86400.0)
        change, _ = decisions.commit(ledger.book, [taken], ledger.now())
        ledger.book.apply(change)
    return ResourceManager(ledger, None, "off", AllocationTerms())


class _Still:
    """A clock that stands still."""

    boot_id = "virtual"

    def steady(self) -> float:
        return 0.0

    def wall(self) -> float:
        return EPOCH


def _demand(machine: MachineResources, job: _Job) -> Demand:
    return simulated_demand(
        cores=machine.cpu.cores.millicores / 1000 * job.part,
        ram=int((machine.ram.size >> 30) * job.part),
        disk=int((machine.disk.size >> 30) * job.part),
        gpus=[gpu.vram >> 30 for gpu in machine.gpus] if job.gpus else (),
    )


@cache
def _manager(kind: int, state: int) -> ResourceManager:
    """The manager that answers for all machines of one kind in one state: no request changes it."""
    job = _STATES[state]
    demands = [] if job is None else [_demand(_MACHINES[kind], job)]
    return opened_manager(_MACHINES[kind], demands, _Still())


@cache
def _able(kind: int, state: int, demand: Demand) -> bool:
    return would_fit(_manager(kind, state).get_free_resources(), demand)


def _able_share(kind: int, demand: Demand) -> float:
    shares = (_IDLE_SHARE, *(job.share * (1 - _IDLE_SHARE) for job in _JOBS))
    return sum(share for state, share in enumerate(shares) if _able(kind, state, demand))


def _mix() -> list[float]:
    """The shares of the kinds of machines that make as many peers able, on average, as REQUESTS say."""
    rare, usual, common = REQUESTS
    large = rare.able / _able_share(0, rare.demand)
    middle = (usual.able - large * _able_share(0, usual.demand)) / _able_share(1, usual.demand)
    small = 0.03
    others = sum(share * _able_share(kind, common.demand) for kind, share in enumerate((large, middle, small)))
    plain = (common.able - others) / _able_share(3, common.demand)
    return [large, middle, small, plain, 1 - large - middle - small - plain]


@dataclass(slots=True, eq=False)
class Member:
    """One machine. `toggles` are the times at which it joins and leaves, `changes` those at which a job begins or ends
    (both in seconds of virtual time); `states` are the running jobs from each change on.
    """

    number: int
    kind: int
    toggles: list[float]
    changes: list[float]
    states: list[int]

    def session(self, now: float) -> float | None:
        """When the current session began; None if it is away."""
        count = bisect_right(self.toggles, now)
        return self.toggles[count - 1] if count % 2 else None

    def stays_until(self, now: float) -> float:
        """When it next leaves or joins."""
        count = bisect_right(self.toggles, now)
        return self.toggles[count] if count < len(self.toggles) else float("inf")

    def manager(self, now: float) -> ResourceManager:
        """The manager that answers for it now."""
        return _manager(self.kind, self.states[bisect_right(self.changes, now) - 1])

    def would_take(self, demand: Demand, now: float) -> bool:
        """Whether a demand would fit now."""
        return _able(self.kind, self.states[bisect_right(self.changes, now) - 1], demand)

    def next_change(self, now: float) -> float:
        """The next time at which something else is free."""
        count = bisect_right(self.changes, now)
        return self.changes[count] if count < len(self.changes) else float("inf")


class Population:
    """As many machines as needed for `online` of them to be there at a time, from `begin` to `end` (seconds of virtual
    time).
    """

    def __init__(self, online: int, *, begin: float, end: float, seed: int) -> None:
        rng = random.Random(f"population {seed}")
        size = round(online * (SESSION + ABSENCE) / SESSION)
        kinds = _quotas(size)
        rng.shuffle(kinds)
        self.online = online
        self.members = [_member(number, kind, begin, end, rng) for number, kind in enumerate(kinds)]
        self._counts = [_count_able(self.members, request.demand) for request in REQUESTS]

    def able(self, request: int, now: float) -> int:
        """How many are there now and could take a request."""
        times, counts = self._counts[request]
        steps = bisect_right(times, now)
        return counts[steps - 1] if steps else 0


def _quotas(size: int) -> list[int]:
    bounds = [0, *(round(size * bound) for bound in accumulate(_mix()))]
    return [kind for kind in range(len(_MACHINES)) for _ in range(bounds[kind], bounds[kind + 1])]


def _member(number: int, kind: int, begin: float, end: float, rng: random.Random) -> Member:
    # Both processes are memoryless, so that they can begin in any state.
    toggles = list(_alternating(rng, begin, end, SESSION, ABSENCE, rng.random() < SESSION / (SESSION + ABSENCE)))
    busy = rng.random() >= _IDLE_SHARE
    starts = list(_alternating(rng, begin, end, JOB, IDLE, busy))
    changes, states = [begin], [0]
    for place, start in enumerate(starts):
        changes.append(start)
        states.append(rng.choices(range(1, len(_STATES)), [job.share for job in _JOBS])[0] if place % 2 == 0 else 0)
    return Member(number, kind, toggles, changes, states)


def _alternating(
    rng: random.Random, begin: float, end: float, mean_on: float, mean_off: float, begins_on: bool
) -> Iterator[float]:
    """The times at which something begins and ends, alternately."""
    now, on = begin, begins_on
    if on:
        yield begin
    while True:
        now += rng.expovariate(1 / (mean_on if on else mean_off))
        if now >= end:
            return
        yield now
        on = not on


def _count_able(members: Sequence[Member], demand: Demand) -> tuple[list[float], list[int]]:
    able = {
        (kind, state): _able(kind, state, demand) for kind in range(len(_MACHINES)) for state in range(len(_STATES))
    }
    steps: list[tuple[float, int]] = []
    for member in members:
        before = False
        for now in sorted({*member.toggles, *member.changes}):
            state = member.states[bisect_right(member.changes, now) - 1]
            after = member.session(now) is not None and able[member.kind, state]
            if after != before:
                steps.append((now, 1 if after else -1))
            before = after
    steps.sort()
    return [now for now, _ in steps], list(accumulate(step for _, step in steps))
