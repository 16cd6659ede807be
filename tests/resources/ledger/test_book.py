"""The running state of the book equals what would be computed from the start."""

from __future__ import annotations

import hypothesis.strategies as st
from hypothesis import given
from msgspec.structs import replace

from dms_resources.components import CPU, GPU, RAM, Disk, Headroom, MachineResources, OnboardedResources, PortRange
from dms_resources.demands import CPUDemand, Demand, GPUDemand, PortDemand, RAMDemand
from dms_resources.ledger import decisions, endings
from dms_resources.ledger.book import Book, Change, OfferState
from dms_resources.ledger.leases import LeaseRequest, LeaseState, ResourceAllocation
from dms_resources.ledger.moment import Moment
from dms_resources.refusals import RequestError
from dms_resources.units import Cores

NOW = Moment(wall=1000.0, steady=10.0)
MACHINE = MachineResources(
    cpu=CPU(cores=Cores(8000), architecture="x86_64"),
    ram=RAM(size=16),
    disk=Disk(size=16),
    gpus=(GPU(uuid="gpu-a", vram=8), GPU(uuid="gpu-b", vram=4)),
)
OFFER = OnboardedResources(
    cpu=MACHINE.cpu, ram=MACHINE.ram, disk=MACHINE.disk, gpus=MACHINE.gpus, port_range=PortRange(first=10, last=14)
)
OFFERS = (
    OfferState(onboarded=OFFER),
    OfferState(onboarded=replace(OFFER, ram=RAM(size=9), headroom=Headroom(share=100))),
    OfferState(onboarded=replace(OFFER, gpus=MACHINE.gpus[:1], port_range=PortRange(first=12, last=20)), draining=True),
    OfferState(),
)
MACHINES = (MACHINE, replace(MACHINE, cpu=CPU(cores=Cores(3000)), gpus=MACHINE.gpus[1:]))
DEMANDS = st.builds(
    Demand,
    cpu=st.integers(0, 3000).map(lambda millicores: CPUDemand(cores=Cores(millicores))),
    ram=st.integers(0, 5).map(lambda size: RAMDemand(size=size)),
    gpus=st.lists(st.builds(GPUDemand, vram=st.integers(0, 5), exclusive=st.booleans()), max_size=2).map(tuple),
)


@given(st.data())
def test_the_room_is_the_one_that_is_measured_now_whatever_happened(data: st.DataObject) -> None:
    book, done = Book(MACHINE, OFFERS[0]), []
    for number in range(data.draw(st.integers(1, 8))):
        ids = sorted(book.leases)
        action = data.draw(st.sampled_from(["commit", "allocate", "end", "undo", "offer", "machine"]))
        change = Change()
        if action == "commit":
            ports = PortDemand(dynamic=data.draw(st.integers(0, 2)))
            wanted = LeaseRequest(
                lease_id=f"lease-{number}", holder="peer", demand=data.draw(DEMANDS), ports=ports, ttl=60.0
            )
            try:
                change, _ = decisions.commit(book, [wanted], NOW)
            except RequestError:
                continue
        elif action == "allocate" and ids:
            chosen = ResourceAllocation(lease_id=data.draw(st.sampled_from(ids)), holder="peer")
            change, _ = decisions.allocate(book, chosen, NOW)
        elif action == "end" and ids:
            lease_id = data.draw(st.sampled_from(ids))
            change, _ = endings.end(book, lease_id, NOW, states=tuple(LeaseState), holder=None, fence=None)
        elif action == "offer":
            change = Change(offer=(book.offer, data.draw(st.sampled_from(OFFERS))))
        elif action == "machine":
            book.set_machine(data.draw(st.sampled_from(MACHINES)))
        if action == "undo" and done:
            book.undo(done.pop())
        else:
            book.apply(change)
            done.append(change)
        assert book.capacity() == book._measure_capacity()


def test_nothing_is_measured_twice_between_two_changes() -> None:
    book = Book(MACHINE, OFFERS[0])
    assert book.capacity() is book.capacity()
