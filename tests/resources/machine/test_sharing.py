"""The offers of two peers on one machine are compared with every limit that applies to both."""

from __future__ import annotations

import hypothesis.strategies as st
from hypothesis import given
from msgspec.structs import replace

from dms_resources.components import CPU, GPU, RAM, Disk, Headroom, MachineResources, OnboardedResources, PortRange
from dms_resources.machine.sharing import (
    Bound,
    OtherPeer,
    PublishedOffer,
    offers_beyond,
    published_offer,
    shared_ports,
)
from dms_resources.units import GIB, Cores

_MACHINE = MachineResources(
    cpu=CPU(cores=Cores(4000)),
    ram=RAM(size=8 * GIB),
    disk=Disk(size=100 * GIB),
    gpus=(GPU(uuid="GPU-a", index=0, vram=24 * GIB), GPU(uuid="GPU-b", index=1, vram=24 * GIB, exclusive=True)),
)
_BOUND = Bound(id="boot", name="this machine has", cores=4000, ram=8 * GIB, disk=100 * GIB)


def _offer(cores: int = 2000, ram: int = 4, disk: int = 50, **others: object) -> OnboardedResources:
    offer = OnboardedResources(
        cpu=CPU(cores=Cores(cores)), ram=RAM(size=ram * GIB), disk=Disk(size=disk * GIB), gpus=()
    )
    return replace(offer, **others) if others else offer


def _published(offer: OnboardedResources | None, *bounds: Bound, in_memory: bool = False) -> PublishedOffer:
    return published_offer(offer, _MACHINE, bounds or (_BOUND,), in_memory=in_memory)


def _beyond(own: OnboardedResources, other: OnboardedResources | None) -> tuple[str, ...]:
    return offers_beyond(_published(own), [OtherPeer(process="7", offer=_published(other))])


def test_two_halves_fit_and_more_does_not() -> None:
    assert _beyond(_offer(), _offer()) == ()
    assert _beyond(_offer(cores=2001), _offer()) == (
        "CPU: 2.001 cores here and 2 cores of process 7, but this machine has 4 cores",
    )
    assert _beyond(_offer(ram=5), _offer()) == ("RAM: 5 GiB here and 4 GiB of process 7, but this machine has 8 GiB",)
    assert _beyond(_offer(disk=51), _offer()) == (
        "disk: 51 GiB here and 50 GiB of process 7, but this machine has 100 GiB",
    )
    assert _beyond(_offer(cores=4000, ram=8, disk=100), None) == ()


def test_what_is_kept_back_is_not_offered() -> None:
    half = Headroom(share=500)
    assert _beyond(_offer(4000, 8, 100, headroom=half), _offer(4000, 8, 100, headroom=half)) == ()


def test_a_gpu_may_be_parted_unless_one_process_at_a_time_may_use_it() -> None:
    part, whole = replace(_MACHINE.gpus[0], vram=12 * GIB), _MACHINE.gpus[0]
    assert _beyond(_offer(gpus=(part,)), _offer(gpus=(part,))) == ()
    assert _beyond(_offer(gpus=(part,)), _offer(gpus=(whole,))) == (
        "GPU GPU-a: 12 GiB here and 24 GiB of process 7, but it has 24 GiB",
    )
    one_at_a_time = replace(_MACHINE.gpus[1], vram=GIB)
    assert _beyond(_offer(gpus=(one_at_a_time,)), _offer(gpus=(one_at_a_time,))) == (
        "GPU GPU-b: process 7 offers it too, but one process at a time may use it",
    )
    assert _beyond(_offer(gpus=(whole,)), _offer(gpus=(_MACHINE.gpus[1],))) == ()


def test_two_services_with_a_quota_each_do_not_take_from_each_other() -> None:
    ours = Bound(id="group 1", name="the cgroup /a allows", cores=2000, ram=4 * GIB)
    theirs = Bound(id="group 2", name="the cgroup /b allows", cores=2000, ram=4 * GIB)
    own, other = _published(_offer(), _BOUND, ours), _published(_offer(), _BOUND, theirs)
    assert offers_beyond(own, [OtherPeer(process="7", offer=other)]) == ()
    same = _published(_offer(ram=1), _BOUND, ours)
    assert offers_beyond(own, [OtherPeer(process="7", offer=same)]) == (
        "CPU: 2 cores here and 2 cores of process 7, but the cgroup /a allows 2 cores",
        "RAM: 4 GiB here and 1 GiB of process 7, but the cgroup /a allows 4 GiB",
    )


def test_a_disk_in_memory_is_memory() -> None:
    own = _published(_offer(ram=3, disk=2), in_memory=True)
    assert (own.ram, own.disk) == (5 * GIB, 0)
    assert len(offers_beyond(own, [OtherPeer(process="7", offer=_published(_offer()))])) == 1


def test_three_peers_are_added_up() -> None:
    others = [OtherPeer(process=str(n), offer=_published(_offer(cores=1500, ram=1, disk=0))) for n in (7, 8)]
    assert offers_beyond(_published(_offer(cores=1001, ram=1)), others) == (
        "CPU: 1.001 cores here and 3 cores of processes 7, 8, but this machine has 4 cores",
    )
    assert offers_beyond(_published(_offer(cores=1000, ram=1)), [*others, OtherPeer(process="unknown")]) == ()


def test_ports_of_two_peers() -> None:
    low, high = (_published(_offer(port_range=PortRange(first=a, last=b))) for a, b in ((20000, 20009), (20010, 20019)))
    assert shared_ports(low, [OtherPeer(process="7", offer=high)]) == ()
    (sentence,) = shared_ports(low, [OtherPeer(process="7", offer=low)])
    assert sentence.startswith("ports 20000-20009 are promised by process 7 too")


_AMOUNTS = st.integers(0, 5000)


@given(_AMOUNTS, st.lists(_AMOUNTS, max_size=4), st.integers(1, 8000))
def test_no_sum_beyond_a_bound_passes(own: int, others: list[int], most: int) -> None:
    bound = Bound(id="x", name="there is", cores=most)
    found = offers_beyond(
        PublishedOffer(bounds=(bound,), cores=own),
        [OtherPeer(process=str(n), offer=PublishedOffer(bounds=(bound,), cores=size)) for n, size in enumerate(others)],
    )
    assert bool(found) == (own > 0 and sum(others) > 0 and own + sum(others) > most)
