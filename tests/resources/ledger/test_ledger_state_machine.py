"""Every operation of the ledger, in any order, compared with a model of its rules.

The operations fail, run concurrently, and are cancelled at every step, across failures of the disk, restarts, reboots
and changes of the clocks.

The model is written from the rules and does not use the code. It does not predict which GPU or port a lease gets; it
checks that what was granted was available, and that what was refused could not have been granted.

`DMS_TEST_PROFILE=long` runs it for about an hour.
"""

from __future__ import annotations

import itertools
import os
import queue
import shutil
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import hypothesis.strategies as st
import outcome
import pytest
import trio
import trio.testing
from hypothesis import Phase, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import dms_resources.ledger.auditor as auditor_module
import dms_resources.ledger.book as book_module
import dms_resources.manager as manager_module
from dms_resources.components import (
    CPU,
    GPU,
    RAM,
    Disk,
    FreeResources,
    GPUVendor,
    Headroom,
    HoldLimits,
    MachineResources,
    OnboardedResources,
    PortRange,
    Resources,
)
from dms_resources.demands import (
    NO_PORTS,
    CPUDemand,
    CPUShortage,
    Demand,
    DiskDemand,
    DiskShortage,
    GPUDemand,
    GPUShortage,
    PortDemand,
    PortShortage,
    RAMDemand,
    RAMShortage,
)
from dms_resources.errors import (
    ConflictError,
    EndedError,
    EvictedError,
    ExpiredError,
    NotAllocatedError,
    NotCommittedError,
    NotHolderError,
    OnboardingError,
    StaleFenceError,
    StillPromisedError,
    StorageError,
)
from dms_resources.ledger.book import Change
from dms_resources.ledger.capacity import Granted
from dms_resources.ledger.events import EventKind, LeaseEvent
from dms_resources.ledger.leases import EndedLease, EndReason, Lease, LeaseRequest, LeaseState, ResourceAllocation
from dms_resources.ledger.storage import Contents, SQLiteStorage
from dms_resources.manager import AllocationTerms, Eviction, ResourceManager, open_manager
from dms_resources.refusals import DrainingError, HoldLimitError, InsufficientError, NotOnboardedError
from dms_resources.units import Cores

LONG = os.environ.get("DMS_TEST_PROFILE") == "long"

HELD, COMMITTED, ALLOCATED = LeaseState.HELD, LeaseState.COMMITTED, LeaseState.ALLOCATED
ENDING = LeaseState.ENDING

MACHINE = MachineResources(
    cpu=CPU(cores=Cores(4000), architecture="x86_64", clock_speed=3_000_000_000),
    ram=RAM(size=16),
    disk=Disk(size=100),
    gpus=(
        GPU(uuid="big", vram=24, vendor=GPUVendor.NVIDIA, model="NVIDIA A100", index=0),
        GPU(uuid="small", vram=10, vendor=GPUVendor.NVIDIA, model="NVIDIA T4", index=1),
        GPU(uuid="other", vram=16, vendor=GPUVendor.AMD, model="Radeon Pro", index=2),
    ),
)
DEVICES = {gpu.uuid: gpu for gpu in MACHINE.gpus}


def _terms(
    millicores: int = 4000,
    ram: int = 16,
    disk: int = 100,
    gpus: dict[str, int] | None = None,
    ports: tuple[int, int] = (30_000, 30_005),
    headroom: Headroom = Headroom(),  # noqa: B008 - immutable
    holds: HoldLimits = HoldLimits(max_seconds=60.0, per_holder=3, total=4, share=1000),  # noqa: B008 - immutable
) -> OnboardedResources:
    gpus = {"big": 24, "small": 10, "other": 16} if gpus is None else gpus
    return OnboardedResources(
        cpu=CPU(cores=Cores(millicores)),
        ram=RAM(size=ram),
        disk=Disk(size=disk),
        gpus=tuple(GPU(uuid=uuid, vram=vram) for uuid, vram in gpus.items()),
        port_range=PortRange(first=ports[0], last=ports[1]),
        headroom=headroom,
        holds=holds,
    )


OFFERS = (
    _terms(),
    _terms(2000, 8, 50, {"big": 24, "other": 8}),
    _terms(3500, 12, 100, headroom=Headroom(share=100, cpu=Cores(250), ram=1, disk=3)),
    _terms(ports=(30_003, 30_008)),
    _terms(holds=HoldLimits(max_seconds=0.0)),
    _terms(holds=HoldLimits(max_seconds=60.0, per_holder=1, total=2, share=500)),
    _terms(1, 1, 1, {}),
    _terms(4001),
    _terms(ram=17),
    _terms(gpus={"big": 25}),
    _terms(gpus={"stranger": 1}),
)


def _demand(
    millicores: int = 0, ram: int = 0, disk: int = 0, gpus: Sequence[GPUDemand] = (), architecture: str = ""
) -> Demand:
    return Demand(
        cpu=CPUDemand(cores=Cores(millicores), architecture=architecture),
        ram=RAMDemand(size=ram),
        disk=DiskDemand(size=disk),
        gpus=tuple(gpus),
    )


@dataclass(frozen=True)
class Wanted:
    """The request of one job."""

    demand: Demand
    ports: PortDemand = NO_PORTS


WANTED = (
    Wanted(_demand(1000, 2, 10)),
    Wanted(_demand(100, 1, 1), PortDemand(static=(30_004,))),
    Wanted(_demand(3500, 1, 1)),
    Wanted(_demand(1, 12, 1), PortDemand(dynamic=2)),
    Wanted(_demand(1, 1, 90)),
    Wanted(_demand(500, 1, 1, [GPUDemand(vram=8)])),
    Wanted(_demand(0, 0, 0, [GPUDemand(vram=8), GPUDemand(vram=20)]), PortDemand(dynamic=1)),
    Wanted(_demand(500, 1, 1, [GPUDemand(vram=1, exclusive=True)])),
    Wanted(_demand(1, 1, 1, [GPUDemand(vram=12, vendor=GPUVendor.AMD)])),
    Wanted(_demand(1, 1, 1, [GPUDemand(uuid="big", exclusive=True), GPUDemand(vram=5, model="T4")])),
    Wanted(_demand(1, 1, 1, [GPUDemand(vram=4)] * 3), PortDemand(static=(30_003, 30_005), dynamic=1)),
    Wanted(_demand(1, 1, 1, [GPUDemand(vram=4)] * 4)),
    Wanted(_demand(100, 1, 1, architecture="arm64")),
    Wanted(_demand(4000, 16, 100)),
    Wanted(_demand(100), PortDemand(dynamic=5)),
    Wanted(_demand(), PortDemand(static=(29_999,))),
)
KEEP_ALIVE, LONGEST, NOTICE = 40.0, 400.0, 50.0
TERMS = AllocationTerms(keep_alive=KEEP_ALIVE, longest=LONGEST)
WITHOUT_RENEWAL = TERMS.without_renewal()
FOR_EVER = AllocationTerms(keep_alive=None)
IDS = tuple("abcdefghijkl")
HOLDERS = ("alice", "bob")
DIGESTS = ("a1", "b2")


# The model


@dataclass(frozen=True)
class Promise:
    """A lease in the model: `due` on the steady clock, `deadline` on the wall clock."""

    holder: str
    wanted: Wanted
    state: LeaseState
    gpus: tuple[tuple[str, int, bool], ...]
    ports: tuple[int, ...]
    fence: int | None
    due: float | None
    deadline: float | None
    ttl: float
    # The owner's notice and the owner's longest time on the steady clock; None without one.
    notice: float | None = None
    longest: float | None = None
    grace: bool = False
    # Whether the notice belongs to a drain.
    drained: bool = False
    # The digest of its job, and whether the job is gone.
    job: tuple[str, bool] | None = None


@dataclass(frozen=True)
class Past:
    """A lease that ended. If it began and ended while the disk failed, its `fence` is unknown."""

    holder: str
    state: LeaseState
    fence: int | None
    why: EndReason


@dataclass
class Model:
    """The rules of the ledger."""

    steady: float = 1000.0
    wall: float = 1_800_000_000.0
    offer: OnboardedResources | None = None
    draining: bool = False
    live: dict[str, Promise] = field(default_factory=dict)
    past: dict[str, Past] = field(default_factory=dict)
    # Those that ended for their holders and whose jobs are not gone.
    ending: dict[str, Promise] = field(default_factory=dict)
    fence: int = 0

    def copy(self) -> Model:
        return replace(self, live=dict(self.live), past=dict(self.past), ending=dict(self.ending))

    def counted(self) -> list[Promise]:
        """All whose capacity is taken."""
        return [*self.live.values(), *self.ending.values()]

    # Amounts

    def offered(self) -> dict[str, int]:
        if self.offer is None:
            return {"cpu": 0, "ram": 0, "disk": 0}
        keep = self.offer.headroom
        return {
            "cpu": _less_headroom(self.offer.cpu.cores.millicores, keep, keep.cpu.millicores),
            "ram": _less_headroom(self.offer.ram.size, keep, keep.ram),
            "disk": _less_headroom(self.offer.disk.size, keep, keep.disk),
        }

    def promised(self, *states: LeaseState) -> dict[str, int]:
        demands = [one.wanted.demand for one in self.counted() if not states or one.state in states]
        return {
            "cpu": sum(demand.cpu.cores.millicores for demand in demands),
            "ram": sum(demand.ram.size for demand in demands),
            "disk": sum(demand.disk.size for demand in demands),
        }

    def free(self) -> dict[str, int]:
        promised = self.promised()
        return {name: amount - promised[name] for name, amount in self.offered().items()}

    def offered_vram(self) -> dict[str, int]:
        if self.offer is None:
            return {}
        return {gpu.uuid: _less_headroom(gpu.vram, self.offer.headroom, 0) for gpu in self.offer.gpus}

    def users(self, uuid: str) -> list[tuple[int, bool]]:
        return [(vram, alone) for one in self.counted() for name, vram, alone in one.gpus if name == uuid]

    def free_vram(self) -> dict[str, int]:
        left = {}
        for uuid, total in self.offered_vram().items():
            users = self.users(uuid)
            left[uuid] = 0 if any(alone for _, alone in users) else total - sum(vram for vram, _ in users)
        return left

    def taken_ports(self) -> list[int]:
        return [port for one in self.counted() for port in one.ports]

    def free_ports(self) -> set[int]:
        if self.offer is None:
            return set()
        all_ports = self.offer.port_range
        return set(range(all_ports.first, all_ports.last + 1)) - set(self.taken_ports())

    # Time

    def sweep(self) -> None:
        for lease_id, one in list(self.live.items()):
            if one.due is not None and one.due <= self.steady:
                self.end(lease_id, _why_ended(one))

    def reboot(self, steady: float) -> None:
        self.steady = steady
        for lease_id, one in self.live.items():
            if one.due is not None and one.deadline is not None:
                # No lease may last longer than it did when its deadline was set.
                bounds = [one.ttl or 1e12, *([NOTICE] if one.notice else []), *([LONGEST] if one.longest else [])]
                shift = steady + min(*bounds, 1e12, one.deadline - self.wall) - one.due
                self.live[lease_id] = replace(
                    one,
                    due=one.due + shift,
                    notice=None if one.notice is None else one.notice + shift,
                    longest=None if one.longest is None else one.longest + shift,
                )

    def start(self) -> None:
        """What could not be renewed while the ledger was closed gets one more keep-alive, once."""
        for lease_id, one in self.live.items():
            if one.due is not None and one.due <= self.steady and _why_ended(one) is EndReason.LOST and not one.grace:
                self.live[lease_id] = self.lasting(replace(one, grace=True), one.ttl)

    def lasting(self, one: Promise, ttl: float) -> Promise:
        """The lease for `ttl` seconds from now, or up to its limits."""
        ends = [self.steady + ttl] if ttl else []
        ends += [limit for limit in (one.notice, one.longest) if limit is not None]
        due = min(ends, default=None)
        return replace(one, due=due, deadline=None if due is None else self.wall + due - self.steady, ttl=ttl)

    def next_end(self) -> float | None:
        ends = [one.due - self.steady for one in self.live.values() if one.due is not None]
        return min(ends) if ends else None

    # What may be refused

    def short_dimensions(self, wanted: Wanted) -> set[type]:
        free, demand = self.free(), wanted.demand
        short: set[type] = set()
        if demand.cpu.cores.millicores > free["cpu"] or demand.cpu.architecture not in ("", "x86_64"):
            short.add(CPUShortage)
        if demand.ram.size > free["ram"]:
            short.add(RAMShortage)
        if demand.disk.size > free["disk"]:
            short.add(DiskShortage)
        if not self.gpus_fit([demand]):
            short.add(GPUShortage)
        if not self.ports_fit([wanted.ports]):
            short.add(PortShortage)
        return short

    def fits(self, together: Sequence[Wanted]) -> bool:
        free, demands = self.free(), [one.demand for one in together]
        return (
            sum(demand.cpu.cores.millicores for demand in demands) <= free["cpu"]
            and all(demand.cpu.architecture in ("", "x86_64") for demand in demands)
            and sum(demand.ram.size for demand in demands) <= free["ram"]
            and sum(demand.disk.size for demand in demands) <= free["disk"]
            and self.gpus_fit(demands)
            and self.ports_fit([one.ports for one in together])
        )

    def ports_fit(self, asked: Sequence[PortDemand]) -> bool:
        static, free = [port for one in asked for port in one.static], self.free_ports()
        count = len(static) + sum(one.dynamic for one in asked)
        return len(static) == len(set(static)) and set(static) <= free and count <= len(free)

    def gpus_fit(self, demands: Sequence[Demand]) -> bool:
        """Exhaustive search."""
        slots = [(job, wish) for job, demand in enumerate(demands) for wish in demand.gpus]
        state = {
            uuid: (self.free_vram()[uuid], bool(self.users(uuid)), total) for uuid, total in self.offered_vram().items()
        }

        def descend(depth: int, own: frozenset[tuple[int, str]]) -> bool:
            if depth == len(slots):
                return True
            job, wish = slots[depth]
            for uuid, (left, used, total) in list(state.items()):
                if (job, uuid) in own or not _is_asked_for(wish, uuid) or left < wish.vram:
                    continue
                if (wish.exclusive and used) or (
                    not wish.exclusive and left == 0 and self._is_taken_whole(uuid, state)
                ):
                    continue
                state[uuid] = (0 if wish.exclusive else left - wish.vram, True, -1 if wish.exclusive else total)
                if descend(depth + 1, own | {(job, uuid)}):
                    return True
                state[uuid] = (left, used, total)
            return False

        return descend(0, frozenset())

    def _is_taken_whole(self, uuid: str, state: dict[str, tuple[int, bool, int]]) -> bool:
        return state[uuid][2] == -1 or any(alone for _, alone in self.users(uuid))

    def refusals_of_id(self, lease_id: str, holder: str | None) -> set[type[Exception]]:
        past = self.past[lease_id]
        if holder is not None and past.holder != holder:
            return {NotHolderError}
        return {_TOLD[past.why]}

    def refusals(self, requests: Sequence[LeaseRequest], state: LeaseState) -> set[type[Exception]]:
        if len({request.lease_id for request in requests}) < len(requests):
            return {ConflictError, HoldLimitError} if state is HELD else {ConflictError}
        errors: set[type[Exception]] = set()
        fresh = []
        for request in requests:
            lease_id, wanted = request.lease_id, Wanted(request.demand, request.ports)
            if lease_id in self.live:
                known = self.live[lease_id]
                if (known.holder, known.wanted) != (request.holder, wanted):
                    errors.add(ConflictError)
            elif lease_id in self.past:
                errors |= self.refusals_of_id(lease_id, request.holder)
            else:
                fresh.append(request)
        if fresh:
            errors |= self.refusals_of_fresh(fresh)
        if state is HELD:
            errors |= self.refusals_of_hold([request for request in requests if request.lease_id not in self.live])
        return errors

    def refusals_of_fresh(self, fresh: Sequence[LeaseRequest]) -> set[type[Exception]]:
        if self.offer is None:
            return {NotOnboardedError}
        if self.draining:
            return {DrainingError}
        return set() if self.fits([Wanted(one.demand, one.ports) for one in fresh]) else {InsufficientError}

    def refusals_of_hold(self, fresh: Sequence[LeaseRequest]) -> set[type[Exception]]:
        if self.offer is None or not fresh:
            return set()
        limits = self.offer.holds
        held = [one for one in self.live.values() if one.state is HELD]
        asked = [request.holder for request in fresh]
        too_many = len(held) + len(fresh) > limits.total or any(
            asked.count(holder) + sum(one.holder == holder for one in held) > limits.per_holder for holder in asked
        )
        return {HoldLimitError} if too_many or max(one.ttl for one in fresh) > limits.max_seconds else set()

    def held_too_much(self) -> bool:
        """Whether holds take more than their share, with what was granted included."""
        assert self.offer is not None
        share, offered, held = self.offer.holds.share, self.offered(), self.promised(HELD)
        held["vram"] = sum(vram for one in self.live.values() if one.state is HELD for _, vram, _ in one.gpus)
        offered["vram"] = sum(self.offered_vram().values())
        return any(amount * 1000 > offered[name] * share for name, amount in held.items())

    # What happens

    def promise(self, request: LeaseRequest, state: LeaseState, given: Lease | None) -> None:
        """Add a new lease, if what was granted was available. `given` is None if the answer was lost."""
        lease_id, wanted = request.lease_id, Wanted(request.demand, request.ports)
        if given is None:
            self.live[lease_id] = Promise(request.holder, wanted, state, (), (), None, None, None, 0.0)
            return
        free, demand, whole = self.free(), request.demand, given.resources
        assert demand.cpu.cores.millicores <= free["cpu"]
        assert demand.ram.size <= free["ram"]
        assert demand.disk.size <= free["disk"]
        assert whole.cpu.cores == demand.cpu.cores
        assert (whole.ram.size, whole.disk.size) == (demand.ram.size, demand.disk.size)
        self._check_gpus(demand.gpus, whole.gpus)
        self._check_ports(request.ports, given.ports)
        assert given.fence > self.fence
        self.fence = given.fence
        self.live[lease_id] = Promise(
            holder=request.holder,
            wanted=wanted,
            state=state,
            gpus=tuple((gpu.uuid, gpu.vram, gpu.exclusive) for gpu in whole.gpus),
            ports=given.ports,
            fence=given.fence,
            due=None if state is ALLOCATED else self.steady + request.ttl,
            deadline=None if state is ALLOCATED else self.wall + request.ttl,
            ttl=0.0 if state is ALLOCATED else request.ttl,
        )

    def _check_gpus(self, asked: Sequence[GPUDemand], given: Sequence[GPU]) -> None:
        assert len({gpu.uuid for gpu in given}) == len(given) == len(asked)
        left, total = self.free_vram(), self.offered_vram()
        for wish, gpu in zip(asked, given, strict=True):
            assert _is_asked_for(wish, gpu.uuid)
            assert gpu.exclusive == wish.exclusive
            assert not any(alone for _, alone in self.users(gpu.uuid))
            if wish.exclusive:
                assert not self.users(gpu.uuid)
                assert gpu.vram == total.get(gpu.uuid) >= wish.vram
            else:
                assert gpu.vram == wish.vram <= left.get(gpu.uuid, -1)

    def _check_ports(self, asked: PortDemand, given: Sequence[int]) -> None:
        assert len(set(given)) == len(given) == len(asked.static) + asked.dynamic
        assert set(asked.static) <= set(given) <= self.free_ports()

    def end(self, lease_id: str, why: EndReason = EndReason.RELEASED) -> None:
        one = self.live.pop(lease_id)
        self.past[lease_id] = Past(one.holder, one.state, one.fence, why)
        if one.job is not None and not one.job[1]:
            self.ending[lease_id] = replace(
                one, state=ENDING, due=None, deadline=None, notice=None, longest=None, grace=False, drained=False
            )


_TOLD = {
    EndReason.RELEASED: EndedError,
    EndReason.EXPIRED: ExpiredError,
    EndReason.LOST: ExpiredError,
    EndReason.EVICTED: EvictedError,
}


def _why_ended(one: Promise) -> EndReason:
    if one.notice is not None and one.due == one.notice:
        return EndReason.EVICTED
    if one.state is ALLOCATED and one.due != one.longest:
        return EndReason.LOST
    return EndReason.EXPIRED


def _less_headroom(amount: int, keep: Headroom, extra: int) -> int:
    return max(0, amount - (amount * keep.share + 999) // 1000 - extra)


def _is_asked_for(wish: GPUDemand, uuid: str) -> bool:
    device = DEVICES[uuid]
    return (
        (wish.vendor is GPUVendor.UNKNOWN or wish.vendor is device.vendor)
        and wish.uuid in ("", uuid)
        and all(word in device.model.lower().split() for word in wish.model.lower().split())
    )


# The operations


@dataclass(frozen=True)
class Operation:
    """One call of the manager: `run` makes it, `check` decides whether the model allows its answer and follows it."""

    def allowed(self, model: Model) -> set[type[Exception]]:
        """The errors with which the call may be refused; empty if it has to be granted."""
        raise NotImplementedError

    async def run(self, manager: ResourceManager) -> Any:
        raise NotImplementedError

    def happen(self, model: Model, answer: Any, after: dict[str, Lease]) -> None:
        """Apply it to the model. `answer` is None if the caller never got one."""
        raise NotImplementedError

    def check(self, model: Model, result: outcome.Outcome[Any], after: dict[str, Lease]) -> None:
        allowed = self.allowed(model)
        if isinstance(result, outcome.Error):
            error = result.error
            assert any(type(error) is kind for kind in allowed), f"{self} was refused: {error!r}, allowed: {allowed}"
            self.check_refusal(model, error)
        else:
            assert not allowed, f"{self} was granted {result}, allowed: {allowed}"
            self.happen(model, result.value, after)

    def check_refusal(self, model: Model, error: BaseException) -> None:
        """Check the details of a refusal."""


@dataclass(frozen=True)
class Take(Operation):
    """Commit or hold one or several."""

    requests: tuple[LeaseRequest, ...]
    state: LeaseState

    async def run(self, manager: ResourceManager) -> list[Lease]:
        if self.state is HELD:
            return await manager.hold(self.requests)
        if len(self.requests) == 1:
            (one,) = self.requests
            return [await manager.commit_resources(one.lease_id, one.demand, one.ports, holder=one.holder, ttl=one.ttl)]
        return await manager.commit_group(self.requests, group="group")

    def allowed(self, model: Model) -> set[type[Exception]]:
        return model.refusals(self.requests, self.state)

    def check(self, model: Model, result: outcome.Outcome[Any], after: dict[str, Lease]) -> None:
        if isinstance(result, outcome.Error) and type(result.error) is HoldLimitError and not self.allowed(model):
            # Whether holds take more than their share is decided only for what would otherwise be granted.
            assert self.state is HELD
            assert self.could_exceed_share(model)
            return
        super().check(model, result, after)

    def could_exceed_share(self, model: Model) -> bool:
        world = model.copy()
        for number, request in enumerate(self.requests):
            if request.lease_id in world.live:
                continue
            most = max([0, *model.offered_vram().values()])
            gpus = tuple(
                (f"some-{number}-{place}", most if wish.exclusive else wish.vram, wish.exclusive)
                for place, wish in enumerate(request.demand.gpus)
            )
            wanted = Wanted(request.demand, request.ports)
            world.live[request.lease_id] = Promise(request.holder, wanted, HELD, gpus, (), 0, 0.0, 0.0, 0.0)
        return world.held_too_much()

    def happen(self, model: Model, answer: list[Lease] | None, after: dict[str, Lease]) -> None:
        assert answer is None or [lease.lease_id for lease in answer] == [one.lease_id for one in self.requests]
        fresh = any(request.lease_id not in model.live for request in self.requests)
        for number, request in enumerate(self.requests):
            known = model.live.get(request.lease_id)
            if known is None:
                model.promise(request, self.state, answer[number] if answer else after.get(request.lease_id))
            elif known.state is HELD and self.state is COMMITTED:
                model.live[request.lease_id] = model.lasting(replace(known, state=COMMITTED), request.ttl)
            if answer is not None:
                _check_same(model.live[request.lease_id], answer[number])
        # The owner may have lowered the share since the others were held.
        if self.state is HELD and fresh:
            assert not model.held_too_much()

    def check_refusal(self, model: Model, error: BaseException) -> None:
        if not isinstance(error, InsufficientError) or len(self.requests) > 1:
            return
        (request,) = self.requests
        assert {type(one) for one in error.shortages} == model.short_dimensions(Wanted(request.demand, request.ports))
        soonest = model.next_end()
        assert error.retry_after == (None if soonest is None else pytest.approx(soonest))
        assert all(_free_of(one) == _model_free(model, one, request) for one in error.shortages)


def _check_same(known: Promise, answer: Lease) -> None:
    assert (known.holder, known.state, known.fence) == (answer.holder, answer.state, answer.fence)
    assert known.wanted == Wanted(answer.demand, answer.asked_ports)
    assert known.ports == answer.ports
    assert known.gpus == tuple((gpu.uuid, gpu.vram, gpu.exclusive) for gpu in answer.resources.gpus)
    assert known.deadline == answer.deadline
    assert (known.notice is None, known.longest is None) == (answer.notice is None, answer.longest is None)
    assert known.job == (None if answer.job is None else (answer.job.digest, answer.job.gone))
    assert (answer.ended is not None) == (known.state is ENDING)


def _free_of(shortage: Any) -> Any:
    match shortage:
        case CPUShortage():
            return shortage.free.cores.millicores
        case RAMShortage() | DiskShortage():
            return shortage.free
        case GPUShortage():
            return {one.uuid: one.vram for one in shortage.free}
        case PortShortage():
            return (set(shortage.free.static), shortage.free.dynamic)


def _model_free(model: Model, shortage: Any, request: LeaseRequest) -> Any:
    match shortage:
        case CPUShortage():
            return model.free()["cpu"]
        case RAMShortage():
            return model.free()["ram"]
        case DiskShortage():
            return model.free()["disk"]
        case GPUShortage():
            asked = {uuid for uuid in DEVICES for wish in request.demand.gpus if _is_asked_for(wish, uuid)}
            return {uuid: vram for uuid, vram in model.free_vram().items() if vram > 0 and uuid in asked}
        case PortShortage():
            free = model.free_ports()
            static = set(request.ports.static) & free
            return static, min(request.ports.dynamic, len(free) - len(static))


@dataclass(frozen=True)
class OnOne(Operation):
    """A call about one lease."""

    lease_id: str
    holder: str | None
    fence: int | None

    def allowed_at(self, model: Model, missing: type[Exception]) -> set[type[Exception]]:
        known = model.live.get(self.lease_id)
        if known is None:
            past = model.past.get(self.lease_id)
            return {missing} if past is None else model.refusals_of_id(self.lease_id, self.holder)
        errors: set[type[Exception]] = set()
        if self.holder not in (None, known.holder):
            errors.add(NotHolderError)
        if self.fence not in (None, known.fence):
            errors.add(StaleFenceError)
        return errors


@dataclass(frozen=True)
class Renew(OnOne):
    """Renews a commitment or the keep-alive of an allocation."""

    ttl: float = 30.0

    async def run(self, manager: ResourceManager) -> Lease:
        return await manager.renew(self.lease_id, ttl=self.ttl, holder=self.holder, fence=self.fence)

    def allowed(self, model: Model) -> set[type[Exception]]:
        errors = self.allowed_at(model, NotCommittedError)
        known = model.live.get(self.lease_id)
        return errors | ({NotCommittedError} if known and known.state is HELD else set())

    def happen(self, model: Model, answer: Lease | None, after: dict[str, Lease]) -> None:
        known = model.live[self.lease_id]
        if known.state is COMMITTED:
            model.live[self.lease_id] = model.lasting(known, self.ttl)
        elif known.ttl:
            model.live[self.lease_id] = model.lasting(replace(known, grace=False), KEEP_ALIVE)
        if answer is not None:
            _check_same(model.live[self.lease_id], answer)


@dataclass(frozen=True)
class Allocate(OnOne):
    """Allocate a commitment, or directly."""

    wanted: Wanted | None = None
    terms: AllocationTerms | None = None

    async def run(self, manager: ResourceManager) -> Lease:
        wanted = self.wanted
        return await manager.allocate_resources(
            ResourceAllocation(
                lease_id=self.lease_id,
                holder=self.holder or "",
                resources=wanted.demand if wanted else None,
                ports=wanted.ports if wanted else PortDemand(),
                fence=self.fence,
            ),
            terms=self.terms,
        )

    def request(self) -> LeaseRequest | None:
        if self.wanted is None or self.fence is not None:
            return None
        return LeaseRequest(
            lease_id=self.lease_id,
            holder=self.holder or "",
            demand=self.wanted.demand,
            ports=self.wanted.ports,
            ttl=0.0,
        )

    def allowed(self, model: Model) -> set[type[Exception]]:
        known, request = model.live.get(self.lease_id), self.request()
        if known is None and request is not None:
            return model.refusals([request], ALLOCATED)
        errors = self.allowed_at(model, NotCommittedError)
        if known is not None:
            errors |= {ConflictError} if self.wanted not in (None, known.wanted) else set()
            errors |= {NotCommittedError} if known.state is HELD else set()
        return errors

    def happen(self, model: Model, answer: Lease | None, after: dict[str, Lease]) -> None:
        known, request = model.live.get(self.lease_id), self.request()
        if known is None:
            assert request is not None
            model.promise(request, ALLOCATED, answer if answer is not None else after.get(self.lease_id))
            self.last(model, self.terms or FOR_EVER)
        elif known.state is COMMITTED:
            self.last(model, self.terms or TERMS)
        if answer is not None:
            _check_same(model.live[self.lease_id], answer)

    def last(self, model: Model, terms: AllocationTerms) -> None:
        longest = None if terms.longest is None else model.steady + terms.longest
        one = replace(model.live[self.lease_id], state=ALLOCATED, longest=longest)
        model.live[self.lease_id] = model.lasting(one, terms.keep_alive or 0.0)


@dataclass(frozen=True)
class Attach(OnOne):
    """Attaches a job."""

    digest: str = DIGESTS[0]

    async def run(self, manager: ResourceManager) -> Lease:
        return await manager.attach_job(self.lease_id, self.digest, holder=self.holder, fence=self.fence)

    def allowed(self, model: Model) -> set[type[Exception]]:
        errors = self.allowed_at(model, NotAllocatedError)
        known = model.live.get(self.lease_id)
        if known is not None:
            errors |= {NotAllocatedError} if known.state is not ALLOCATED else set()
            errors |= {ConflictError} if known.job is not None and known.job[0] != self.digest else set()
        return errors

    def happen(self, model: Model, answer: Lease | None, after: dict[str, Lease]) -> None:
        known = model.live[self.lease_id]
        if known.job is None:
            model.live[self.lease_id] = replace(known, job=(self.digest, False))
        if answer is not None:
            _check_same(model.live[self.lease_id], answer)


@dataclass(frozen=True)
class Gone(Operation):
    """Nothing of a job runs any more."""

    lease_id: str
    fence: int

    async def run(self, manager: ResourceManager) -> None:
        await manager.job_gone(self.lease_id, fence=self.fence)

    def allowed(self, model: Model) -> set[type[Exception]]:
        return set()

    def happen(self, model: Model, answer: None, after: dict[str, Lease]) -> None:
        ending, known = model.ending.get(self.lease_id), model.live.get(self.lease_id)
        if ending is not None and ending.fence == self.fence:
            del model.ending[self.lease_id]
        elif known is not None and known.fence == self.fence and known.job is not None:
            model.live[self.lease_id] = replace(known, job=(known.job[0], True))


@dataclass(frozen=True)
class End(OnOne):
    """Uncommit, deallocate or release."""

    states: tuple[LeaseState, ...] = tuple(LeaseState)

    async def run(self, manager: ResourceManager) -> EndedLease:
        call = {
            (HELD, COMMITTED): manager.uncommit_resources,
            (ALLOCATED,): manager.deallocate_resources,
        }.get(self.states, manager.release)
        return await call(self.lease_id, holder=self.holder, fence=self.fence)

    def allowed(self, model: Model) -> set[type[Exception]]:
        missing = NotAllocatedError if ALLOCATED in self.states else NotCommittedError
        past = model.past.get(self.lease_id)
        if past is not None and past.why is EndReason.RELEASED:
            errors: set[type[Exception]] = {NotHolderError} if self.holder not in (None, past.holder) else set()
            errors |= {StaleFenceError} if past.fence and self.fence not in (None, past.fence) else set()
            return errors | ({missing} if past.state not in self.states else set())
        known = model.live.get(self.lease_id)
        errors = self.allowed_at(model, missing)
        return errors | ({missing} if known and known.state not in self.states else set())

    def happen(self, model: Model, answer: EndedLease | None, after: dict[str, Lease]) -> None:
        if self.lease_id in model.live:
            model.end(self.lease_id)
        past = model.past[self.lease_id]
        if answer is not None:
            assert answer.reason is EndReason.RELEASED
            assert (answer.holder, answer.state) == (past.holder, past.state)
            assert past.fence in (None, answer.fence)


@dataclass(frozen=True)
class Evict(Operation):
    """The owner ends leases, at once or with notice."""

    lease_ids: tuple[str, ...] = ()
    holder: str | None = None
    everything: bool = False
    notice: float = 0.0

    async def run(self, manager: ResourceManager) -> Eviction:
        return await manager.evict(
            self.lease_ids, holder=self.holder, everything=self.everything, notice=self.notice, reason="mine"
        )

    def allowed(self, model: Model) -> set[type[Exception]]:
        known = model.live.keys() | model.past.keys()
        return set() if known.issuperset(self.lease_ids) else {NotAllocatedError}

    def chosen(self, model: Model) -> set[str]:
        return {
            lease_id
            for lease_id, one in model.live.items()
            if self.everything or lease_id in self.lease_ids or one.holder == self.holder
        }

    def happen(self, model: Model, answer: Eviction | None, after: dict[str, Lease]) -> None:
        chosen = self.chosen(model)
        for lease_id in chosen:
            one = model.live[lease_id]
            if not self.notice:
                model.end(lease_id, EndReason.EVICTED)
            elif one.notice is None or one.notice > model.steady + self.notice:
                one = replace(one, notice=model.steady + self.notice, drained=isinstance(self, DrainAway))
                # Its own deadline stays if it is earlier.
                left = self.notice if one.due is None else min(self.notice, one.due - model.steady)
                model.live[lease_id] = replace(one, due=model.steady + left, deadline=model.wall + left)
        if answer is None:
            return
        ended = {lease.lease_id for lease in answer.ended}
        assert {lease.lease_id for lease in answer.noticed} == (chosen if self.notice else set())
        assert ended == (set(self.lease_ids) - chosen) | (set() if self.notice else chosen)
        assert all(lease.reason is model.past[lease.lease_id].why for lease in answer.ended)
        for lease in answer.noticed:
            _check_same(model.live[lease.lease_id], lease)


@dataclass(frozen=True)
class DrainAway(Evict):
    """Drain, and end all leases, at once or with notice."""

    async def run(self, manager: ResourceManager) -> Eviction:
        return await manager.drain(evict=True, deadline=self.notice, reason="mine")

    def happen(self, model: Model, answer: Eviction | None, after: dict[str, Lease]) -> None:
        model.draining = True
        super().happen(model, answer, after)


@dataclass(frozen=True)
class Withdraw(Operation):
    """The owner withdraws all notices, or those of a drain together with the drain."""

    drain: bool = False

    async def run(self, manager: ResourceManager) -> tuple[Lease, ...]:
        return await (manager.cancel_drain() if self.drain else manager.withdraw_notices())

    def allowed(self, model: Model) -> set[type[Exception]]:
        return set()

    def happen(self, model: Model, answer: tuple[Lease, ...] | None, after: dict[str, Lease]) -> None:
        if self.drain:
            model.draining = False
        noticed = {
            lease_id
            for lease_id, one in model.live.items()
            if one.notice is not None and (one.drained or not self.drain)
        }
        for lease_id in noticed:
            one = model.live[lease_id]
            model.live[lease_id] = model.lasting(replace(one, notice=None, drained=False), one.ttl)
        assert answer is None or {lease.lease_id for lease in answer} == noticed


@dataclass(frozen=True)
class Onboard(Operation):
    """Offer more, less or something else."""

    offer: OnboardedResources

    async def run(self, manager: ResourceManager) -> None:
        await manager.update_onboarded_resources(self.offer)

    def allowed(self, model: Model) -> set[type[Exception]]:
        offer = self.offer
        world = replace(model, offer=offer)
        above = (
            offer.cpu.cores > MACHINE.cpu.cores
            or offer.ram.size > MACHINE.ram.size
            or offer.disk.size > MACHINE.disk.size
            or any(gpu.uuid not in DEVICES or gpu.vram > DEVICES[gpu.uuid].vram for gpu in offer.gpus)
        )
        below = min(world.free().values()) < 0 or any(
            sum(vram for vram, _ in model.users(uuid)) > world.offered_vram().get(uuid, 0)
            or (model.users(uuid) and uuid not in world.offered_vram() and any(v for v, _ in model.users(uuid)))
            for uuid in DEVICES
        )
        return {OnboardingError} if (above or below) and offer != model.offer else set()

    def happen(self, model: Model, answer: None, after: dict[str, Lease]) -> None:
        model.offer = self.offer


@dataclass(frozen=True)
class Drain(Operation):
    """Drain, or accept new commitments again."""

    draining: bool

    async def run(self, manager: ResourceManager) -> None:
        await manager.set_draining(self.draining)

    def allowed(self, model: Model) -> set[type[Exception]]:
        return set()

    def happen(self, model: Model, answer: None, after: dict[str, Lease]) -> None:
        model.draining = self.draining


@dataclass(frozen=True)
class Offboard(Operation):
    """Offer nothing any more."""

    async def run(self, manager: ResourceManager) -> None:
        await manager.offboard()

    def allowed(self, model: Model) -> set[type[Exception]]:
        return {StillPromisedError} if model.live or model.ending else set()

    def happen(self, model: Model, answer: None, after: dict[str, Lease]) -> None:
        model.offer, model.draining = None, False


_STATES = {
    EventKind.HELD: HELD,
    EventKind.GRANTED: COMMITTED,
    EventKind.ALLOCATED: ALLOCATED,
    EventKind.ENDING: ENDING,
}


# What the ledger stands on


class StubbornStorage(SQLiteStorage):
    """Fails as the test chooses: before anything is written, after it was, or when it is opened again."""

    writes: ClassVar[list[str]] = []
    reopens: ClassVar[int] = 0

    def write(self, changes: Sequence[Change]) -> None:
        how = self.writes.pop(0) if self.writes else ""
        if how == "before":
            raise StorageError("the disk is full")
        super().write(changes)
        if how == "after":
            raise StorageError("the disk went away")

    def reopen(self) -> Contents:
        if StubbornStorage.reopens:
            StubbornStorage.reopens -= 1
            raise StorageError("the disk is still full")
        return super().reopen()


class ModelClock:
    """The ledger's clock shows the model's time."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.boot_id = "boot-0"

    def steady(self) -> float:
        return self.model.steady

    def wall(self) -> float:
        return self.model.wall


# Far more than any call takes.
_MOST_TICKS = 20_000


class Loop:
    """A trio loop that runs only while it is called: it waits for nothing, needs no thread, and is the same
    each time.
    """

    def __init__(self) -> None:
        self.clock = trio.testing.MockClock()
        self._ticks: queue.SimpleQueue[Callable[[], object]] = queue.SimpleQueue()
        self._job: Callable[[trio.Nursery], Awaitable[Any]] | None = None
        self._result: outcome.Outcome[Any] | None = None
        self._ended: outcome.Outcome[None] | None = None
        self._cancel: Callable[[], None] = lambda: None
        trio.lowlevel.start_guest_run(
            self._main,
            run_sync_soon_threadsafe=self._ticks.put,
            done_callback=self._end,
            clock=self.clock,
            host_uses_signal_set_wakeup_fd=True,
        )

    def call(self, job: Callable[[trio.Nursery], Awaitable[Any]]) -> Any:
        self._job, self._result = job, None
        for _ in range(_MOST_TICKS):
            assert self._ended is None, self._ended
            self._tick()
            if self._result is not None:
                break
        assert self._result is not None, "the ledger never comes to rest"
        return self._result.unwrap()

    def close(self) -> None:
        if self._ended is None:
            self._cancel()
        while self._ended is None:
            self._tick()
        self._ended.unwrap()

    def _tick(self) -> None:
        try:
            tick = self._ticks.get(timeout=20)
        except queue.Empty:
            raise AssertionError("a call of the ledger never returns") from None
        tick()

    async def _main(self) -> None:
        async with trio.open_nursery() as nursery:
            token = trio.lowlevel.current_trio_token()
            self._cancel = lambda: token.run_sync_soon(nursery.cancel_scope.cancel)
            while True:
                await trio.lowlevel.checkpoint()
                if self._job is not None:
                    job, self._job = self._job, None
                    self._result = await outcome.acapture(job, nursery)

    def _end(self, result: outcome.Outcome[None]) -> None:
        self._ended = result


async def step_by_step(call: Callable[[], None]) -> None:
    """A slow disk, so that other tasks run while it writes."""
    await trio.lowlevel.checkpoint()
    call()
    await trio.lowlevel.checkpoint()


def _count_each_once(manager: ResourceManager) -> None:
    """Rule 1, at any moment: what is offered is either free, committed or allocated."""
    onboarded = manager.get_onboarded_resources()
    world = Model(offer=onboarded)
    free, parts = manager.get_free_resources(), [manager.get_total_allocation(), manager.get_total_commitment()]
    total = {
        "cpu": sum(one.cpu.cores.millicores for one in [free, *parts]),
        "ram": sum(one.ram.size for one in [free, *parts]),
        "disk": sum(one.disk.size for one in [free, *parts]),
    }
    assert total == world.offered()
    leases = manager.leases()
    promised = Model.promised(world)
    for lease in leases:
        promised["cpu"] += lease.resources.cpu.cores.millicores
        promised["ram"] += lease.resources.ram.size
    assert promised["cpu"] == total["cpu"] - free.cpu.cores.millicores
    assert promised["ram"] == total["ram"] - free.ram.size
    ports = [port for lease in leases for port in lease.ports]
    assert len(ports) == len(set(ports))


@dataclass(frozen=True)
class Draft:
    """The parts of an operation, before the existing leases are known."""

    kind: str
    aim: str
    id_number: int
    wanted: int
    holder: int
    ttl: float
    fence: str
    more: tuple[tuple[int, int], ...]


_KINDS = (
    *("commit",) * 4,
    *("group",) * 2,
    *("hold",) * 3,
    *("take_over",) * 2,
    *("renew",) * 2,
    *("allocate",) * 3,
    *("allocate_directly",) * 2,
    *("uncommit",) * 2,
    *("deallocate",) * 2,
    *("release",) * 2,
    *("attach",) * 3,
    *("gone",) * 3,
    *("evict",) * 2,
    "evict_holder",
    "evict_all",
    "withdraw",
    "drain_away",
    "cancel_drain",
    "drain",
    "undrain",
    "offboard",
    *("onboard",) * 2,
)
_AIMS = ("any", "live", "live", "live", "held", "past", "ending", "mixed_up")

drafts = st.builds(
    Draft,
    kind=st.sampled_from(_KINDS),
    aim=st.sampled_from(_AIMS),
    id_number=st.integers(0, len(IDS) - 1),
    wanted=st.integers(0, len(WANTED) - 1),
    holder=st.integers(0, 1),
    ttl=st.sampled_from((5.0, 30.0, 60.0, 500.0)),
    fence=st.sampled_from(("none", "none", "right", "stale")),
    more=st.lists(st.tuples(st.integers(0, len(IDS) - 1), st.integers(0, len(WANTED) - 1)), max_size=2).map(tuple),
)


def _operation(draft: Draft, model: Model) -> Operation:
    """Aim a draft at a lease that exists, is held or has ended, or at any other."""
    lease_id, wanted, holder = IDS[draft.id_number], WANTED[draft.wanted], HOLDERS[draft.holder]
    lists: dict[str, Iterable[str]] = {
        "past": model.past,
        "ending": model.ending,
        "held": (key for key, one in model.live.items() if one.state is HELD),
    }
    known = sorted(lists.get(draft.aim, model.live))
    fence = None
    if draft.aim != "any" and known:
        lease_id = known[draft.id_number % len(known)]
        one: Promise | Past = (
            model.past[lease_id]
            if draft.aim == "past"
            else model.ending[lease_id]
            if draft.aim == "ending"
            else model.live[lease_id]
        )
        fence = {"none": None, "right": one.fence, "stale": (one.fence or 0) + 1}[draft.fence]
        if draft.aim != "mixed_up":
            holder = one.holder
            wanted = one.wanted if isinstance(one, Promise) else wanted
    if draft.kind == "gone":
        jobs = sorted([*model.ending, *(key for key, one in model.live.items() if one.job is not None)])
        if draft.aim != "any" and jobs:
            lease_id = jobs[draft.id_number % len(jobs)]
        counted = model.ending.get(lease_id) or model.live.get(lease_id)
        right = counted.fence if counted is not None and counted.fence is not None else -1
        return Gone(lease_id, right + 1 if draft.fence != "none" and right > 0 else right)
    return _make(draft, lease_id, wanted, holder, fence)


def _make(draft: Draft, lease_id: str, wanted: Wanted, holder: str, fence: int | None) -> Operation:
    def request(lease_id: str, wanted: Wanted) -> LeaseRequest:
        return LeaseRequest(lease_id=lease_id, holder=holder, demand=wanted.demand, ports=wanted.ports, ttl=draft.ttl)

    first = request(lease_id, wanted)
    several = (first, *(request(IDS[number], WANTED[which]) for number, which in draft.more))
    anyone = None if draft.fence == "none" and draft.holder else holder
    match draft.kind:
        case "commit" | "take_over":
            return Take((first,), COMMITTED)
        case "group":
            return Take(several, COMMITTED)
        case "hold":
            return Take(several, HELD)
        case "renew":
            return Renew(lease_id, anyone, fence, ttl=draft.ttl)
        case "allocate":
            return Allocate(lease_id, holder, fence)
        case "allocate_directly":
            return Allocate(lease_id, holder, fence, wanted, {30.0: TERMS, 60.0: WITHOUT_RENEWAL}.get(draft.ttl))
        case "evict":
            more = tuple(IDS[number] for number, _ in draft.more)
            return Evict((lease_id, *more), notice=_notice(draft))
        case "evict_holder":
            return Evict(holder=holder, notice=_notice(draft))
        case "evict_all":
            return Evict(everything=True, notice=_notice(draft))
        case "withdraw" | "cancel_drain":
            return Withdraw(drain=draft.kind == "cancel_drain")
        case "drain_away":
            return DrainAway(everything=True, notice=_notice(draft))
        case "uncommit":
            return End(lease_id, anyone, fence, (HELD, COMMITTED))
        case "deallocate":
            return End(lease_id, anyone, fence, (ALLOCATED,))
        case "release":
            return End(lease_id, anyone, fence)
        case "attach":
            return Attach(lease_id, anyone, fence, DIGESTS[draft.wanted % 2])
        case "drain" | "undrain":
            return Drain(draft.kind == "drain")
        case "offboard":
            return Offboard()
    return Onboard(OFFERS[draft.wanted % len(OFFERS)])


def _notice(draft: Draft) -> float:
    return {"none": 0.0, "right": NOTICE, "stale": 10.0}[draft.fence]


def _first_that_matches(worlds: Iterator[Callable[[], Model]], matches: Callable[[Model], None]) -> Model:
    """Find a world that explains what was observed."""
    problems: list[AssertionError] = []
    for make in worlds:
        try:
            world = make()
            matches(world)
        except AssertionError as problem:
            problems.append(problem)
        else:
            return world
    reasons = "\n".join(str(problem).partition("\n")[0] for problem in problems[:6])
    raise AssertionError(f"no order of the calls explains what is there:\n{reasons}") from problems[0]


class LedgerMachine(RuleBasedStateMachine):
    """Drives one ledger and its model."""

    template: ClassVar[Path | None] = None

    def __init__(self) -> None:
        super().__init__()
        self.model = Model()
        self.clock = ModelClock(self.model)
        self.folder = tempfile.TemporaryDirectory(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None)
        self.path = Path(self.folder.name) / "ledger.db"
        self.files = 0
        self.loop = Loop()
        self.manager: ResourceManager
        self.scope: trio.CancelScope
        self.seen: FreeResources | None = None
        # What a reader of the events knows: the number of the last one, and the state of each lease.
        self.number = 0
        self.told: dict[str, LeaseState] = {}
        self.last: tuple[Operation, Any] | None = None
        # Whether everything was right when the last step ended.
        self.sound = False
        StubbornStorage.writes, StubbornStorage.reopens = [], 0
        if LedgerMachine.template is not None:
            shutil.copyfile(LedgerMachine.template, self.path)
        self._open()

    def teardown(self) -> None:
        try:
            if self.sound:
                self.restart(copied=False)
                self.same_as_model()
            self._close()
        finally:
            self.loop.close()
            self.folder.cleanup()

    # Rules

    @initialize(draft=st.sampled_from(range(len(OFFERS))))
    def begin(self, draft: int) -> None:
        if draft:
            self._do(Onboard(_terms()))
        else:
            self._do(Onboard(OFFERS[1]))

    @rule(draft=drafts)
    def one(self, draft: Draft) -> None:
        self._do(_operation(draft, self.model))

    @rule(draft=drafts, steps=st.sampled_from(("", "gone", "end", "gone end", "end gone")))
    def job_runs(self, draft: Draft, steps: str) -> None:
        """An allocation with a job on it, and how both end: without this few of the leases that end have one."""
        free = [lease_id for lease_id in IDS if lease_id not in self.model.live.keys() | self.model.past.keys()]
        if free:
            lease_id, holder = free[0], HOLDERS[draft.holder]
            self._do(Allocate(lease_id, holder, None, WANTED[draft.wanted % 2], TERMS))
            self._do(Attach(lease_id, holder, None, DIGESTS[0]))
            self._do(Attach(lease_id, holder, None, DIGESTS[draft.wanted % 2]))
            self._end_job(lease_id, steps)

    @precondition(lambda self: self.model.ending or any(one.job for one in self.model.live.values()))
    @rule(draft=drafts, steps=st.sampled_from(("gone", "end", "gone end", "end gone")))
    def job_ends(self, draft: Draft, steps: str) -> None:
        """A job is gone, or the lease under it ends, or one after the other."""
        live = [lease_id for lease_id, one in self.model.live.items() if one.job is not None]
        known = sorted([*live, *self.model.ending])
        self._end_job(known[draft.id_number % len(known)], steps)

    def _end_job(self, lease_id: str, steps: str) -> None:
        one = self.model.live.get(lease_id) or self.model.ending.get(lease_id)
        for step in steps.split() if one is not None else ():
            self._do(Gone(lease_id, one.fence or 0) if step == "gone" else End(lease_id, one.holder, one.fence))

    @rule(draft=drafts)
    def another(self, draft: Draft) -> None:
        self._do(_operation(draft, self.model))

    @rule(several=st.lists(drafts, min_size=2, max_size=3))
    def at_once(self, several: list[Draft]) -> None:
        """They take place in some order."""
        self._do_together([_operation(draft, self.model) for draft in several])

    @rule(draft=drafts, steps=st.integers(0, 6))
    def cancelled(self, draft: Draft, steps: int) -> None:
        """As a whole or not at all."""
        operation = _operation(draft, self.model)
        result = self.loop.call(lambda nursery: self._run_cancelled(operation, steps))
        after = self._settle()
        if result is not None:
            operation.check(self.model, result, after)
            return
        self._explain([operation], [None], after)

    @rule(
        several=st.lists(drafts, min_size=1, max_size=2),
        writes=st.sampled_from((["before"], ["after"], ["", "before"], ["before", "after"])),
        reopens=st.integers(0, 2),
    )
    def disk_fails(self, several: list[Draft], writes: list[str], reopens: int) -> None:
        """An acknowledged operation has to stay; a failed one may or may not have taken place; nothing is half done."""
        StubbornStorage.writes, StubbornStorage.reopens = list(writes), reopens
        self._do_together([_operation(draft, self.model) for draft in several])
        StubbornStorage.writes, StubbornStorage.reopens = [], 0

    @precondition(lambda self: self.last is not None)
    @rule()
    def again(self) -> None:
        """The same call gets the same answer, unless a deadline passed in between."""
        assert self.last is not None
        operation, answer = self.last
        if operation.allowed(self.model) or isinstance(operation, Renew):
            return
        result = self._do(operation)
        if isinstance(operation, (Take, Allocate)) and isinstance(result, outcome.Value):
            before = answer if isinstance(answer, list) else [answer]
            now = result.value if isinstance(result.value, list) else [result.value]
            assert [(one.lease_id, one.fence, one.ports, one.resources) for one in before] == [
                (one.lease_id, one.fence, one.ports, one.resources) for one in now
            ]

    @rule(seconds=st.sampled_from((1.0, 5.0, 29.0, 31.0, 60.0, 499.0)))
    def time_passes(self, seconds: float) -> None:
        self.model.steady += seconds
        self.model.wall += seconds
        self.loop.clock.jump(seconds)

    @rule(seconds=st.sampled_from((4.0, 61.0)))
    def machine_sleeps(self, seconds: float) -> None:
        """The loop's own clock stands still meanwhile."""
        self.model.steady += seconds
        self.model.wall += seconds

    @rule(seconds=st.sampled_from((-1e6, -40.0, 40.0, 1e6)))
    def wall_clock_is_set(self, seconds: float) -> None:
        """It must have no effect until a reboot."""
        self.model.wall += seconds

    @rule(copied=st.booleans(), away=st.sampled_from((0.0, 3.0, 45.0)))
    def restart(self, copied: bool, away: float = 0.0) -> None:
        """After an orderly end, or from the files as they were at one instant."""
        self._settle()
        if copied:
            self._copy_files()
        self._close()
        self.model.sweep()
        self.model.steady += away
        self.model.wall += away
        self.model.start()
        self._open()

    @rule(away=st.sampled_from((0.0, 3.0, 45.0)), steady=st.sampled_from((0.0, 20.0, 5000.0)))
    def reboot(self, away: float, steady: float) -> None:
        self._settle()
        self._close()
        self.model.sweep()
        self.model.wall += away
        self.model.reboot(steady)
        self.model.start()
        self.clock.boot_id += "+"
        self._open()

    # Checks

    @invariant()
    def same_as_model(self) -> None:
        self.sound = False
        self.model.sweep()
        after = self._settle()
        self._matches(self.model, after)
        self._check_totals()
        self.sound = True

    # Internal

    def _check_totals(self) -> None:
        model, free = self.model, self.manager.get_free_resources()
        left = model.free()
        assert min(left.values()) >= 0
        assert (free.cpu.cores.millicores, free.ram.size, free.disk.size) == (left["cpu"], left["ram"], left["disk"])
        assert {gpu.uuid: gpu.vram for gpu in free.gpus} == model.free_vram()
        assert all(vram >= 0 for vram in model.free_vram().values())
        assert free.ports == len(model.free_ports())
        assert (free.onboarded, free.draining) == (model.offer is not None, model.draining)
        assert _totals(self.manager.get_total_allocation()) == model.promised(ALLOCATED, ENDING)
        assert _totals(self.manager.get_total_commitment()) == model.promised(HELD, COMMITTED)
        assert self.seen == free
        assert self.told == {lease.lease_id: lease.state for lease in self.manager.leases()}

    def _matches(self, model: Model, after: dict[str, Lease]) -> None:
        assert not model.live.keys() & model.ending.keys()
        assert after.keys() == model.live.keys() | model.ending.keys()
        for lease_id, lease in after.items():
            _check_same(model.live.get(lease_id) or model.ending[lease_id], lease)
        for uuid in DEVICES:
            users = model.users(uuid)
            assert len(users) == 1 or not any(alone for _, alone in users)
        ports = model.taken_ports()
        assert len(ports) == len(set(ports))
        assert self.manager.get_onboarded_resources() == model.offer
        assert self.manager.draining == model.draining

    def _do(self, operation: Operation) -> outcome.Outcome[Any]:
        self.sound = False
        (result,) = self.loop.call(lambda nursery: self._run([operation]))
        after = self._settle()
        operation.check(self.model, result, after)
        if isinstance(result, outcome.Value):
            self.last = (operation, result.value)
        elif type(result.error) is InsufficientError and isinstance(operation, Take):
            self._try_what_is_free(operation, result.error)
        return result

    def _try_what_is_free(self, operation: Take, error: InsufficientError) -> None:
        """A refusal is a contract: a request for the free amounts would have been granted."""
        request = operation.requests[error.index]
        demand, ports = request.demand, request.ports
        if len(operation.requests) > 1:
            return
        gpus, cpu, ram, disk = demand.gpus, demand.cpu, demand.ram, demand.disk
        for shortage in error.shortages:
            match shortage:
                case CPUShortage():
                    cpu = shortage.free
                case RAMShortage():
                    ram = RAMDemand(size=shortage.free)
                case DiskShortage():
                    disk = DiskDemand(size=shortage.free)
                case GPUShortage():
                    gpus = shortage.free
                case PortShortage():
                    ports = shortage.free
        smaller = Demand(cpu=cpu, ram=ram, disk=disk, gpus=gpus)
        assert isinstance(self.manager.would_fit(smaller, ports), Granted)

    def _do_together(self, operations: list[Operation]) -> None:
        self.sound = False
        results = self.loop.call(lambda nursery: self._run(operations))
        after = self._settle()
        self._explain(operations, results, after)

    def _explain(
        self,
        operations: Sequence[Operation],
        results: Sequence[outcome.Outcome[Any] | None],
        after: dict[str, Lease],
    ) -> None:
        """Some order of the calls leads to this state. Calls with a lost answer took place or did not."""

        def world(order: Sequence[int], happened: Sequence[bool]) -> Model:
            model = self.model.copy()
            model.sweep()
            doubtful = False
            for number in order:
                result = results[number]
                if _is_unknown(result):
                    doubtful = True
                elif doubtful and isinstance(result, outcome.Error):
                    # Refused because of something that was undone when the disk failed.
                    continue
                if result is not None and not _is_unknown(result):
                    operations[number].check(model, result, after)
                elif happened[number]:
                    assert not operations[number].allowed(model)
                    operations[number].happen(model, None, after)
            return model

        count = len(operations)
        worlds = (
            (lambda order=order, happened=happened: world(order, happened))
            for order in itertools.permutations(range(count))
            for happened in itertools.product((False, True), repeat=count)
            if not any(happened[one] and not _is_unknown(results[one]) for one in range(count))
        )
        found = _first_that_matches(worlds, lambda model: self._matches(model, after))
        steady, wall = self.model.steady, self.model.wall
        self.model.__dict__.update(found.__dict__)
        self.model.steady, self.model.wall = steady, wall

    async def _run(self, operations: Sequence[Operation]) -> list[outcome.Outcome[Any]]:
        results: dict[int, outcome.Outcome[Any]] = {}

        async def one(number: int) -> None:
            results[number] = await outcome.acapture(operations[number].run, self.manager)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._look_on, nursery.cancel_scope)
            async with trio.open_nursery() as calls:
                for number in range(len(operations)):
                    calls.start_soon(one, number)
            nursery.cancel_scope.cancel()
        return [results[number] for number in range(len(operations))]

    async def _run_cancelled(self, operation: Operation, steps: int) -> outcome.Outcome[Any] | None:
        result: outcome.Outcome[Any] | None = None

        async def call() -> None:
            nonlocal result
            try:
                result = outcome.Value(await operation.run(self.manager))
            except Exception as error:
                result = outcome.Error(error)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(call)
            for _ in range(steps):
                await trio.lowlevel.checkpoint()
                _count_each_once(self.manager)
            nursery.cancel_scope.cancel()
        return result

    async def _look_on(self, scope: trio.CancelScope) -> None:
        while True:
            _count_each_once(self.manager)
            await trio.lowlevel.checkpoint()

    def _settle(self) -> dict[str, Lease]:
        """Let all operations finish, also on a disk that fails for a while."""

        async def rest(nursery: trio.Nursery) -> None:
            self.manager.leases()
            await trio.testing.wait_all_tasks_blocked()

        self.loop.call(rest)
        while self.manager.storage_error is not None:
            # Reads are answered meanwhile.
            _count_each_once(self.manager)
            StubbornStorage.writes = []
            self.loop.clock.jump(31.0)
            self.loop.call(rest)
        return {lease.lease_id: lease for lease in self.manager.leases()}

    def _open(self) -> None:
        async def keep(task_status: Any) -> None:
            with trio.CancelScope() as self.scope:
                async with (
                    open_manager(
                        self.path, MACHINE, clock=self.clock, worker=step_by_step, allocation_terms=TERMS
                    ) as manager,
                    manager.watch() as changes,
                    manager.events(self.number) as events,
                    trio.open_nursery() as nursery,
                ):
                    nursery.start_soon(self._follow_events, events)
                    task_status.started(manager)
                    async for self.seen in changes:
                        pass

        async def start(nursery: trio.Nursery) -> ResourceManager:
            manager: ResourceManager = await nursery.start(lambda task_status: keep(task_status))
            return manager

        self.manager = self.loop.call(start)

    async def _follow_events(self, events: AsyncIterator[LeaseEvent]) -> None:
        """Builds the states of all leases of nothing but their events, across restarts."""
        async for event in events:
            assert event.number > self.number
            self.number = event.number
            state = _STATES.get(event.kind)
            if event.kind is EventKind.ENDED:
                del self.told[event.lease_id]
            elif state is not None:
                self.told[event.lease_id] = state

    def _close(self) -> None:
        async def end(nursery: trio.Nursery) -> None:
            self.scope.cancel()
            await trio.testing.wait_all_tasks_blocked()

        self.loop.call(end)

    def _copy_files(self) -> None:
        self.files += 1
        new = self.path.with_name(f"ledger-{self.files}.db")
        for suffix in ("", "-wal"):
            old = self.path.with_name(self.path.name + suffix)
            if old.exists():
                shutil.copyfile(old, new.with_name(new.name + suffix))
        self.path = new


def _is_unknown(result: outcome.Outcome[Any] | None) -> bool:
    return result is None or (isinstance(result, outcome.Error) and isinstance(result.error, StorageError))


def _totals(resources: Resources) -> dict[str, int]:
    return {
        "cpu": resources.cpu.cores.millicores,
        "ram": resources.ram.size,
        "disk": resources.disk.size,
    }


@pytest.fixture(scope="module", autouse=True)
def _test_ledger(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(manager_module, "SQLiteStorage", StubbornStorage)
        # Nothing queries the operating system, which has tests of its own.
        patch.setattr(auditor_module, "AUDIT_SECONDS", 1e12)
        # A ledger that offers nothing yet has a pool of 49,152 ports, which takes a millisecond.
        patch.setattr(book_module, "DEFAULT_PORT_RANGE", OFFERS[0].port_range)
        path = tmp_path_factory.mktemp("template") / "ledger.db"
        StubbornStorage(path, boot_id="boot-0").close()
        patch.setattr(LedgerMachine, "template", path)
        yield


TestLedger = pytest.mark.computes(LedgerMachine.TestCase)
TestLedger.settings = settings(
    max_examples=50_000 if LONG else 2_000,
    stateful_step_count=40 if LONG else 10,
    deadline=None,
    database=None,
    derandomize=not LONG,
    print_blob=True,
    report_multiple_bugs=False,
    # Explaining a failure takes longer than finding it.
    phases=(Phase.generate, Phase.shrink),
)
