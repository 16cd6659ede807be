"""What is granted and why not: pure decisions on a book, without disk or time."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest
from msgspec.structs import replace

from dms_resources.components import CPU, GPU, RAM, Disk, GPUVendor, MachineResources, OnboardedResources
from dms_resources.demands import CPUDemand, Demand, GPUDemand, PortDemand, RAMDemand, RAMShortage
from dms_resources.errors import (
    AmountError,
    ConflictError,
    EndedError,
    ExpiredError,
    NotAllocatedError,
    NotCommittedError,
    NotHolderError,
    StaleFenceError,
)
from dms_resources.ledger import decisions, endings
from dms_resources.ledger.book import Book, Change, OfferState
from dms_resources.ledger.leases import EndReason, Lease, LeaseRequest, LeaseState, Price, ResourceAllocation
from dms_resources.ledger.moment import Moment
from dms_resources.ledger.windows import Opening
from dms_resources.refusals import DrainingError, InsufficientError, NotOnboardedError, WindowError
from dms_resources.units import GIB, Cores

NOW = Moment(wall=1000.0, steady=10.0)
NewDemand = Callable[..., Demand]


@pytest.fixture
def book(machine: MachineResources, new_offer: Callable[..., OnboardedResources]) -> Book:
    return Book(machine, OfferState(onboarded=new_offer(machine)))


def request(lease_id: str, demand: Demand, *, holder: str = "peer", ttl: float = 60.0, **ports: Any) -> LeaseRequest:
    return LeaseRequest(lease_id=lease_id, holder=holder, demand=demand, ports=PortDemand(**ports), ttl=ttl)


def take(book: Book, *requests: LeaseRequest, now: Moment = NOW) -> list[Lease]:
    change, leases = decisions.commit(book, requests, now)
    book.apply(change)
    return leases


def allocate(book: Book, lease_id: str, **options: Any) -> Lease:
    change, lease = decisions.allocate(
        book, ResourceAllocation(**{"lease_id": lease_id, "holder": "peer", **options}), NOW
    )
    book.apply(change)
    return lease


def finish(book: Book, lease_id: str, *states: LeaseState, **options: Any) -> Change:
    options = {"holder": None, "fence": None, **options}
    change, _ = endings.end(book, lease_id, NOW, states=states or tuple(LeaseState), **options)
    book.apply(change)
    return change


def test_the_same_commit_answers_the_same_whatever_its_time_to_live(book: Book, new_demand: NewDemand) -> None:
    wanted = request("lease", new_demand(1, 1, 1, [8]), dynamic=1)
    first = take(book, wanted)
    change, again = decisions.commit(book, [request("lease", wanted.demand, ttl=5.0, dynamic=1)], NOW)
    assert change.empty
    assert again == first


@pytest.mark.parametrize(
    "other",
    [
        lambda demand: request("lease", demand(2)),
        lambda demand: request("lease", demand(1), holder="other"),
        lambda demand: request("lease", demand(1), dynamic=1),
        lambda demand: request("lease", demand(1, gpus=[1])),
    ],
)
def test_the_same_id_with_other_contents_is_a_conflict(book: Book, new_demand: NewDemand, other: Any) -> None:
    take(book, request("lease", new_demand(1)))
    with pytest.raises(ConflictError):
        take(book, other(new_demand))
    assert book.totals[LeaseState.COMMITTED].millicores == 1000


def test_one_id_twice_in_a_group_is_a_conflict(book: Book, new_demand: NewDemand) -> None:
    with pytest.raises(ConflictError):
        take(book, request("lease", new_demand(1)), request("lease", new_demand(1)))


def test_a_group_is_all_or_none(book: Book, new_demand: NewDemand) -> None:
    with pytest.raises(InsufficientError) as caught:
        take(book, request("one", new_demand(5)), request("two", new_demand(1)), request("three", new_demand(3)))
    assert caught.value.index == 2
    assert not book.leases
    assert book.capacity().millicores == 8000
    leases = take(book, request("one", new_demand(5)), request("two", new_demand(3)))
    assert [lease.fence for lease in leases] == [1, 2]
    assert book.capacity().millicores == 0


def test_a_group_that_is_partly_known_gets_the_rest(book: Book, new_demand: NewDemand) -> None:
    (first,) = take(book, request("one", new_demand(5)))
    assert take(book, request("one", new_demand(5)), request("two", new_demand(3)))[0] == first
    assert len(book.leases) == 2


def test_a_groups_gpus_are_placed_together(book: Book, new_demand: NewDemand) -> None:
    # One after the other, 8 would take the card of 10 and leave nothing for 10.
    leases = take(book, request("one", new_demand(gpus=[8])), request("two", new_demand(gpus=[10])))
    assert [lease.resources.gpus[0].uuid for lease in leases] == ["gpu-a", "gpu-b"]


def test_a_groups_any_ports_leave_its_named_ones(book: Book, new_demand: NewDemand) -> None:
    leases = take(
        book, request("one", new_demand(), dynamic=2), request("two", new_demand(), static=(20_000,), dynamic=1)
    )
    assert [lease.ports for lease in leases] == [(20_001, 20_002), (20_000, 20_003)]
    with pytest.raises(InsufficientError):
        take(book, request("3", new_demand(), static=(20_050,)), request("4", new_demand(), static=(20_050,)))


def test_a_failed_request_touches_nobody_elses_ports(book: Book, new_demand: NewDemand) -> None:
    take(book, request("one", new_demand(), static=(20_000, 20_001)))
    for ports in ({"static": (20_001, 20_002)}, {"dynamic": 99}):
        with pytest.raises(InsufficientError):
            take(book, request("two", new_demand(), **ports))
    assert book.ports.taken == {20_000, 20_001}


def test_a_commitment_keeps_devices_ports_and_fence_when_it_is_allocated(book: Book, new_demand: NewDemand) -> None:
    (lease,) = take(book, request("lease", new_demand(1, 1, 1, [8]), static=(20_005,), dynamic=1))
    allocated = allocate(book, "lease", fence=lease.fence)
    assert (allocated.resources, allocated.ports, allocated.fence) == (lease.resources, lease.ports, lease.fence)
    assert (allocated.state, allocated.deadline) == (LeaseState.ALLOCATED, None)
    assert book.next_due() is None
    with pytest.raises(NotCommittedError):
        finish(book, "lease", LeaseState.HELD, LeaseState.COMMITTED)
    assert book.ports.taken == set(lease.ports)
    finish(book, "lease", LeaseState.ALLOCATED)
    assert not book.ports.taken
    assert book.capacity().devices[0].used == book.capacity().devices[1].used == 0


def test_an_allocation_twice_answers_the_same(book: Book, new_demand: NewDemand) -> None:
    take(book, request("lease", new_demand(1)))
    first = allocate(book, "lease")
    assert allocate(book, "lease") == first
    assert allocate(book, "lease", resources=new_demand(1)) == first
    with pytest.raises(ConflictError):
        allocate(book, "lease", resources=new_demand(2))
    direct = allocate(book, "direct", resources=new_demand(2))
    assert allocate(book, "direct", resources=new_demand(2)) == direct


def test_who_shows_a_fencing_number_had_a_commitment(book: Book, new_demand: NewDemand) -> None:
    # It ended so long ago that it is forgotten: the job must not start as if nothing had happened.
    with pytest.raises(NotCommittedError):
        allocate(book, "forgotten", fence=7, resources=new_demand(1))
    assert not book.leases


def test_a_hold_is_not_allocated(book: Book, new_demand: NewDemand) -> None:
    change, _ = decisions.hold(book, [request("lease", new_demand(1), ttl=5.0)], NOW)
    book.apply(change)
    with pytest.raises(NotCommittedError, match="commit it first"):
        allocate(book, "lease")


def test_a_second_release_answers_the_same_and_an_unknown_one_is_seen(book: Book, new_demand: NewDemand) -> None:
    take(book, request("lease", new_demand(1)))
    assert not finish(book, "lease").empty
    assert finish(book, "lease", holder="peer", fence=1).empty
    assert book.capacity().millicores == 8000
    with pytest.raises(NotHolderError):
        finish(book, "lease", holder="other")
    with pytest.raises(StaleFenceError):
        finish(book, "lease", fence=2)
    with pytest.raises(NotAllocatedError):
        finish(book, "lease", LeaseState.ALLOCATED)
    with pytest.raises(NotAllocatedError):
        finish(book, "unknown")
    with pytest.raises(NotCommittedError):
        finish(book, "unknown", LeaseState.COMMITTED)


def test_an_id_that_ended_is_not_given_out_again(book: Book, new_demand: NewDemand) -> None:
    take(book, request("lease", new_demand(1)))
    finish(book, "lease")
    with pytest.raises(EndedError):
        take(book, request("lease", new_demand(1)))
    with pytest.raises(EndedError):
        allocate(book, "lease", resources=new_demand(1))
    with pytest.raises(NotHolderError):
        take(book, request("lease", new_demand(1), holder="other"))


def test_a_holder_that_slept_is_told_so(book: Book, new_demand: NewDemand) -> None:
    (old,) = take(book, request("lease", new_demand(8)))
    late = Moment(wall=1060.0, steady=70.0)
    change = endings.expire(book, late)
    book.apply(change)
    assert [(end.lease_id, end.reason) for end in change.ended] == [("lease", EndReason.EXPIRED)]
    for call in (
        lambda: decisions.renew(book, "lease", late, ttl=60.0, holder="peer", fence=1),
        lambda: decisions.allocate(book, ResourceAllocation(lease_id="lease", holder="peer", fence=1), late),
        lambda: decisions.commit(book, [request("lease", new_demand(8))], late),
        lambda: finish(book, "lease", holder="peer"),
    ):
        with pytest.raises(ExpiredError):
            call()
    (new,) = take(book, request("next", new_demand(8)), now=late)
    assert new.fence > old.fence


def test_nothing_ends_before_its_deadline(book: Book, new_demand: NewDemand) -> None:
    take(book, request("lease", new_demand(1)))
    assert endings.expire(book, Moment(wall=9e9, steady=69.999)).empty


def test_a_renewal_needs_its_holder_its_fence_and_a_commitment(book: Book, new_demand: NewDemand) -> None:
    take(book, request("lease", new_demand(1)), request("job", new_demand(1)))
    allocate(book, "job")

    def renew(lease_id: str, **options: Any) -> Lease:
        options = {"ttl": 600.0, "holder": "peer", "fence": 1, **options}
        change, lease = decisions.renew(book, lease_id, NOW, **options)
        book.apply(change)
        return lease

    assert renew("lease").deadline == 1600.0
    assert book.next_due() == (610.0, book.leases["lease"])
    with pytest.raises(NotHolderError):
        renew("lease", holder="other")
    with pytest.raises(StaleFenceError):
        renew("lease", fence=2)
    # An allocation without a keep-alive needs no renewal.
    assert renew("job", fence=None) == book.leases["job"].lease
    assert book.leases["job"].due is None
    with pytest.raises(NotCommittedError):
        renew("unknown")
    for ttl in (0.0, -1.0, float("nan"), float("inf"), 31 * 86400.0):
        with pytest.raises(AmountError):
            renew("lease", ttl=ttl)


@pytest.mark.parametrize("ttl", [0.0, -1.0, float("nan"), float("inf"), 31 * 86400.0])
def test_a_commitment_ends_some_day(book: Book, new_demand: NewDemand, ttl: float) -> None:
    with pytest.raises(AmountError):
        take(book, request("lease", new_demand(1), ttl=ttl))


@pytest.mark.parametrize(
    "wanted",
    [
        request("", Demand()),
        request("x" * 257, Demand()),
        request("half a pair: \ud800", Demand()),
        request("line\nbreak", Demand()),
        request("lease", Demand(), holder="\udfff"),
        request("lease", Demand(ram=RAMDemand(size=-1))),
        request("lease", Demand(gpus=(GPUDemand(vram=-1),))),
        request("lease", Demand(ram=RAMDemand(size=2**63))),
        request("lease", Demand(), dynamic=-1),
    ],
)
def test_what_cannot_be_promised_is_no_amount(book: Book, wanted: LeaseRequest) -> None:
    with pytest.raises(AmountError):
        take(book, wanted)
    with pytest.raises(AmountError):
        allocate(book, wanted.lease_id, holder=wanted.holder, resources=wanted.demand, ports=wanted.ports)
    assert not book.leases


def test_nothing_is_taken_without_an_offer_or_while_draining(
    book: Book, machine: MachineResources, new_demand: NewDemand
) -> None:
    with pytest.raises(NotOnboardedError):
        take(Book(machine), request("lease", new_demand(0)))
    (lease,) = take(book, request("lease", new_demand(1)))
    book.apply(
        decisions.change_offer(book, OfferState(onboarded=book.offer.onboarded, draining=True), NOW, action="drain")
    )
    with pytest.raises(DrainingError):
        take(book, request("next", new_demand(0)))
    with pytest.raises(DrainingError):
        allocate(book, "next", resources=new_demand(0))
    # Running jobs continue.
    assert take(book, request("lease", new_demand(1))) == [lease]
    assert allocate(book, "lease").state is LeaseState.ALLOCATED


def test_what_would_outlive_the_window_is_refused(book: Book, new_demand: NewDemand) -> None:
    closing = Moment(wall=1000.0, steady=10.0, opening=Opening(open=True, until=1060.0))
    take(book, request("lease", new_demand(1), ttl=60.0), now=closing)
    with pytest.raises(WindowError, match="closes in 60 s"):
        take(book, request("next", new_demand(1), ttl=60.5), now=closing)
    with pytest.raises(WindowError):
        decisions.renew(book, "lease", closing, ttl=61.0, holder=None, fence=None)
    closed = Moment(wall=1000.0, steady=10.0, opening=Opening(open=False, until=1300.0))
    with pytest.raises(WindowError) as caught:
        take(book, request("next", new_demand(1), ttl=1.0), now=closed)
    assert caught.value.retry_after == 300.0
    gone = Moment(wall=1000.0, steady=10.0, opening=Opening(open=False, until=None))
    with pytest.raises(WindowError) as caught:
        take(book, request("next", new_demand(1), ttl=1.0), now=gone)
    assert caught.value.retry_after is None


def test_a_refusal_says_when_the_next_commitment_ends(book: Book, new_demand: NewDemand) -> None:
    allocate(book, "job", resources=new_demand(4))
    with pytest.raises(InsufficientError) as caught:
        take(book, request("lease", new_demand(8)))
    assert caught.value.retry_after is None
    take(book, request("later", new_demand(1), ttl=90.0), request("sooner", new_demand(1), ttl=30.0))
    with pytest.raises(InsufficientError) as caught:
        take(book, request("lease", new_demand(8)))
    assert caught.value.retry_after == 30.0


def test_what_would_fit_is_what_is_granted_and_nothing_is_changed(book: Book, new_demand: NewDemand) -> None:
    wanted = [request("one", new_demand(5, gpus=[20])), request("two", new_demand(4)), request("three", new_demand(3))]
    version = book.version
    first, second, third = decisions.fit(book, wanted, NOW)
    assert isinstance(second, InsufficientError)
    assert book.version == version
    assert not book.leases
    leases = take(book, wanted[0], wanted[2])
    assert [lease.resources for lease in leases] == [first.resources, third.resources]  # type: ignore[union-attr]


def test_what_a_machine_is_comes_from_the_machine(machine: MachineResources, new_demand: NewDemand) -> None:
    # The owner named amounts and devices, not their properties.
    onboarded = OnboardedResources(
        cpu=CPU(cores=Cores(8000)),
        ram=machine.ram,
        disk=machine.disk,
        gpus=(GPU(uuid="gpu-a", vram=24 * GIB),),
    )
    book = Book(machine, OfferState(onboarded=onboarded))
    wish = GPUDemand(vram=24 * GIB, vendor=GPUVendor.NVIDIA, model="A100")
    demand = Demand(cpu=CPUDemand(cores=Cores(8000), architecture="x86_64"), gpus=(wish,))
    (lease,) = take(book, request("lease", demand))
    assert lease.resources.gpus[0].model == "NVIDIA A100-SXM4-40GB"


def test_a_request_equal_to_the_machine_is_granted(book: Book, new_demand: NewDemand) -> None:
    (lease,) = take(book, request("lease", new_demand(8, 32, 500, [24, 10])))
    capacity = book.capacity()
    assert (capacity.millicores, capacity.ram, capacity.disk) == (0, 0, 0)
    assert sum(gpu.vram for gpu in lease.resources.gpus) == 34 * GIB
    with pytest.raises(InsufficientError) as caught:
        take(book, request("next", new_demand(0, 1)))
    assert caught.value.shortages == (RAMShortage(asked=GIB, free=0, total=32 * GIB),)


def test_tenths_of_a_core_free_what_they_took(book: Book, new_demand: NewDemand) -> None:
    for number in range(80):
        take(book, request(f"lease-{number}", new_demand(0.1)))
    assert book.capacity().millicores == 0
    for number in range(80):
        finish(book, f"lease-{number}")
    assert book.capacity().millicores == 8000


def test_what_does_not_become_durable_is_taken_back_exactly(book: Book, new_demand: NewDemand) -> None:
    take(book, request("kept", new_demand(1, 1, 1, [8]), dynamic=1))
    before = (book.capacity(), dict(book.leases), book.ports.taken, book.promised(), book.next_due())
    whole_gpu = new_demand(1, gpus=[GPUDemand(exclusive=True)])
    changes = []
    for make in (
        lambda: decisions.commit(book, [request("new", whole_gpu, static=(20_009,))], NOW),
        lambda: decisions.allocate(book, ResourceAllocation(lease_id="kept", holder="peer"), NOW),
        lambda: endings.end(book, "kept", NOW, states=tuple(LeaseState), holder=None, fence=None),
        lambda: endings.end(book, "new", NOW, states=tuple(LeaseState), holder=None, fence=None),
        lambda: (decisions.offboard(book, NOW), None),
    ):
        change, _ = make()
        book.apply(change)
        changes.append(change)
    for change in reversed(changes):
        book.undo(change)
    capacity = book.capacity()
    assert {state.device.uuid: state for state in capacity.devices} == {s.device.uuid: s for s in before[0].devices}
    assert (capacity.millicores, capacity.ram, capacity.disk) == (before[0].millicores, before[0].ram, before[0].disk)
    assert (dict(book.leases), book.ports.taken, book.promised(), book.next_due()) == before[1:]
    assert not book.ended


def test_an_entry_of_the_history_is_short_whatever_was_asked_for() -> None:
    cards = [GPU(uuid=f"gpu-{number}", vram=2**40) for number in range(64)]
    largest = MachineResources(cpu=CPU(cores=Cores(8000)), ram=RAM(size=1), disk=Disk(size=1), gpus=tuple(cards))
    onboarded = OnboardedResources(cpu=largest.cpu, ram=largest.ram, disk=largest.disk, gpus=largest.gpus)
    book = Book(largest, OfferState(onboarded=onboarded))
    gpus = tuple(GPUDemand(vram=2**30 + number) for number in range(64))
    price = Price(micros_per_hour=1, currency="x" * 128)
    request = LeaseRequest(lease_id="lease", holder="peer", demand=Demand(gpus=gpus), ttl=60.0, price=price)
    change, _ = decisions.commit(book, [request], Moment(wall=0.0, steady=0.0))
    (entry,) = change.entries
    assert len(entry.detail) == 400
    assert entry.detail.endswith("...")


def test_nothing_is_clamped(book: Book, new_demand: NewDemand) -> None:
    take(book, request("lease", new_demand(1, gpus=[8]), dynamic=1))
    record = book.leases["lease"]
    book.apply(Change(leases=((record, None),)))
    with pytest.raises(KeyError):
        book.apply(Change(leases=((record, None),)))
    book.apply(Change(leases=((None, record),)))
    with pytest.raises(ValueError, match="promised twice"):
        book.apply(Change(leases=((None, record),)))
    totals = book.totals[LeaseState.ALLOCATED]
    with pytest.raises(ValueError, match="more than was taken"):
        totals.plus(record.lease, -1)


def test_a_decision_does_not_look_at_every_lease(machine: MachineResources, new_demand: NewDemand) -> None:
    """Counted in steps of the interpreter, so that a slow machine changes nothing."""

    def steps(live: int) -> int:
        onboarded = OnboardedResources(cpu=machine.cpu, ram=machine.ram, disk=machine.disk, gpus=machine.gpus)
        book = Book(machine, OfferState(onboarded=onboarded))
        for number in range(live):
            change, _ = decisions.commit(book, [request(f"lease-{number}", new_demand(0.001), dynamic=1)], NOW)
            book.apply(change)
        count = 0

        def trace(frame: Any, event: str, argument: Any) -> Any:
            nonlocal count
            count += 1
            return trace

        before = sys.gettrace()
        sys.settrace(trace)
        try:
            take(book, request("next", new_demand(1, 1, 1, [8]), dynamic=1))
            allocate(book, "next")
            finish(book, "next")
        finally:
            sys.settrace(before)
        return count

    assert steps(3000) < 1.2 * steps(10)


def test_a_lease_keeps_the_names_that_its_requester_gave_it(book: Book, new_demand: NewDemand) -> None:
    asked = replace(request("lease", new_demand(1), ttl=20), ensemble_id="nightly", node_id="trainer")
    change, _ = decisions.hold(book, [asked], NOW)
    book.apply(change)
    (lease,) = take(book, asked)
    assert (lease.state, lease.ensemble_id, lease.node_id) == (LeaseState.COMMITTED, "nightly", "trainer")
    allocated = allocate(book, "lease")
    assert (allocated.ensemble_id, allocated.node_id) == ("nightly", "trainer")
    # The names are no part of the request: asked again under others, the lease is the same.
    (again,) = take(book, replace(request("other", new_demand(1)), ensemble_id="a"))
    (same,) = take(book, replace(request("other", new_demand(1)), ensemble_id="b"))
    assert same == again


@pytest.mark.parametrize("name", ["x" * 129, "\udc80"])
@pytest.mark.parametrize("field", ["ensemble_id", "node_id"])
def test_a_name_that_cannot_be_stored_is_refused(book: Book, new_demand: NewDemand, field: str, name: str) -> None:
    with pytest.raises(AmountError):
        take(book, replace(request("lease", new_demand(1)), **{field: name}))
    assert take(book, replace(request("lease", new_demand(1)), **{field: "x" * 128}))
