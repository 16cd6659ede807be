"""A refusal is a contract: every dimension that falls short, with requested, free and total amounts; a request for the
free amounts is granted.
"""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import given
from msgspec.structs import replace

from dms_resources.components import CPU, GPU, GPUVendor, PortRange
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
    Shortage,
    describe_shortage,
)
from dms_resources.ledger.capacity import FreeCapacity
from dms_resources.ledger.ports import PortPool
from dms_resources.placement import DeviceState
from dms_resources.units import GIB, Cores

MODELS = ("NVIDIA A100-SXM4-80GB", "NVIDIA T4", "")


@st.composite
def capacities(draw: st.DrawFn) -> FreeCapacity:
    devices = []
    for number in range(draw(st.integers(0, 3))):
        total, users = draw(st.integers(1, 10)), draw(st.integers(0, 2))
        exclusive = users == 1 and draw(st.booleans())
        device = GPU(
            uuid=f"gpu-{number}",
            vram=total,
            vendor=draw(st.sampled_from((GPUVendor.NVIDIA, GPUVendor.AMD, GPUVendor.UNKNOWN))),
            model=draw(st.sampled_from(MODELS)),
        )
        used = total if exclusive else draw(st.integers(0, total)) if users else 0
        devices.append(DeviceState(device=device, total=total, used=used, users=users, exclusive=exclusive))
    free = [draw(st.integers(0, 10)) for _ in range(3)]
    return FreeCapacity(
        millicores=free[0],
        ram=free[1],
        disk=free[2],
        total_millicores=free[0] + draw(st.integers(0, 5)),
        total_ram=free[1] + draw(st.integers(0, 5)),
        total_disk=free[2] + draw(st.integers(0, 5)),
        cpu=CPU(cores=Cores(100), architecture=draw(st.sampled_from(("x86_64", ""))), clock_speed=3),
        devices=tuple(devices),
        ports=PortPool(PortRange(first=10, last=14), draw(st.sets(st.integers(10, 14), max_size=5))),
        spoken_for=frozenset(draw(st.sets(st.integers(10, 14), max_size=1))),
    )


gpu_demands = st.builds(
    GPUDemand,
    vram=st.integers(0, 12),
    exclusive=st.booleans(),
    vendor=st.sampled_from((GPUVendor.UNKNOWN, GPUVendor.NVIDIA, GPUVendor.INTEL)),
    model=st.sampled_from(("", "", "T4", "a100")),
    uuid=st.sampled_from(("", "", "gpu-1", "gpu-9")),
)
demands = st.builds(
    Demand,
    cpu=st.builds(
        CPUDemand,
        cores=st.integers(0, 12).map(Cores),
        architecture=st.sampled_from(("", "", "x86_64", "arm64")),
        clock_speed=st.sampled_from((0, 0, 2, 4)),
    ),
    ram=st.builds(RAMDemand, size=st.integers(0, 12)),
    disk=st.builds(DiskDemand, size=st.integers(0, 12)),
    gpus=st.lists(gpu_demands, max_size=3).map(tuple),
)
port_demands = st.builds(
    PortDemand,
    static=st.lists(st.integers(9, 15), max_size=3).map(tuple),
    dynamic=st.integers(0, 6),
)


def as_free(demand: Demand, ports: PortDemand, shortages: tuple[Shortage, ...]) -> tuple[Demand, PortDemand]:
    """The demand, with the free amounts in place of those that fall short."""
    cpu, ram, disk, gpus = demand.cpu, demand.ram, demand.disk, demand.gpus
    for shortage in shortages:
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
    return Demand(cpu=cpu, ram=ram, disk=disk, gpus=gpus), ports


@given(capacities(), demands, port_demands)
def test_what_a_refusal_says_is_free_is_granted(capacity: FreeCapacity, demand: Demand, ports: PortDemand) -> None:
    shortages = capacity.shortages(demand, ports)
    smaller, fewer = as_free(demand, ports, shortages)
    assert capacity.shortages(smaller, fewer) == ()
    capacity.grant(smaller, fewer)


@given(capacities(), demands, port_demands)
def test_a_refusal_names_every_short_dimension_and_no_other(
    capacity: FreeCapacity, demand: Demand, ports: PortDemand
) -> None:
    shortages = capacity.shortages(demand, ports)
    for shortage in shortages:
        # Reducing all the others is not enough.
        others = tuple(one for one in shortages if one is not shortage)
        assert capacity.shortages(*as_free(demand, ports, others)) == (shortage,)
        assert describe_shortage(shortage)


@given(capacities(), demands, port_demands)
def test_what_fits_is_granted_exactly_and_leaves_the_rest(
    capacity: FreeCapacity, demand: Demand, ports: PortDemand
) -> None:
    if capacity.shortages(demand, ports):
        return
    granted = capacity.grant(demand, ports)
    assert granted.resources.cpu.cores == demand.cpu.cores
    assert (granted.resources.ram.size, granted.resources.disk.size) == (demand.ram.size, demand.disk.size)
    assert len(granted.ports) == len(set(granted.ports)) == len(ports.static) + ports.dynamic
    assert not capacity.spoken_for.intersection(granted.ports)
    left = capacity.less(demand, granted)
    assert left.millicores == capacity.millicores - demand.cpu.cores.millicores
    assert (left.ram, left.disk) == (capacity.ram - demand.ram.size, capacity.disk - demand.disk.size)
    assert min(left.millicores, left.ram, left.disk) >= 0
    assert left.spoken_for == capacity.spoken_for | set(granted.ports)
    taken = {gpu.uuid: gpu.vram for gpu in granted.resources.gpus}
    for before, after in zip(capacity.devices, left.devices, strict=True):
        assert after.used == before.used + taken.get(before.device.uuid, 0)
        assert after.used <= after.total


@given(capacities(), demands, port_demands)
def test_placements_that_are_known_change_nothing(capacity: FreeCapacity, demand: Demand, ports: PortDemand) -> None:
    shortages = capacity.shortages(demand, ports)
    placed = capacity.place(demand)
    assert (placed is None) == any(isinstance(shortage, GPUShortage) for shortage in shortages)
    if placed is not None:
        assert capacity.shortages(demand, ports, placed) == shortages
    if not shortages:
        assert capacity.grant(demand, ports, placed) == capacity.grant(demand, ports)


def _capacity() -> FreeCapacity:
    devices = (
        DeviceState(device=GPU(uuid="a", vram=24, model="NVIDIA A100"), total=24, used=10, users=1),
        DeviceState(device=GPU(uuid="b", vram=10, model="NVIDIA T4"), total=10, used=10, users=1, exclusive=True),
        DeviceState(device=GPU(uuid="c", vram=16, model="Radeon", vendor=GPUVendor.AMD), total=16),
    )
    return FreeCapacity(
        millicores=1500,
        ram=2 * GIB,
        disk=0,
        total_millicores=4000,
        total_ram=8 * GIB,
        total_disk=GIB,
        cpu=CPU(cores=Cores(4000), architecture="x86_64", clock_speed=3_000_000_000),
        devices=devices,
        ports=PortPool(PortRange(first=10, last=14), {10}),
    )


def test_a_refusal_shows_asked_free_and_total_of_each() -> None:
    demand = Demand(
        cpu=CPUDemand(cores=Cores(2000), architecture="arm64"),
        ram=RAMDemand(size=8 * GIB),
        disk=DiskDemand(size=1),
        gpus=(GPUDemand(vram=20, exclusive=True),),
    )
    ports = PortDemand(static=(10, 11), dynamic=9)
    gpus = (GPUDemand(vram=14, uuid="a", model="NVIDIA A100"), GPUDemand(vram=16, uuid="c", model="Radeon"))
    alone = GPUDemand(vram=16, vendor=GPUVendor.AMD, model="Radeon", uuid="c", exclusive=True)
    cpu, ram, disk, gpu, port = _capacity().shortages(demand, ports)
    assert cpu == CPUShortage(
        asked=demand.cpu,
        free=CPUDemand(cores=Cores(1500), architecture="x86_64"),
        total=CPUDemand(cores=Cores(4000), architecture="x86_64"),
    )
    assert ram == RAMShortage(asked=8 * GIB, free=2 * GIB, total=8 * GIB)
    assert disk == DiskShortage(asked=1, free=0, total=GIB)
    assert isinstance(gpu, GPUShortage)
    assert gpu.asked == demand.gpus
    assert gpu.free == (gpus[0], alone)
    assert [one.vram for one in gpu.total] == [24, 10, 16]
    assert port == PortShortage(asked=ports, free=PortDemand(static=(11,), dynamic=3), total=PortDemand(dynamic=5))


def test_a_refusal_speaks_only_of_devices_that_were_asked_for() -> None:
    (shortage,) = _capacity().shortages(Demand(gpus=(GPUDemand(vram=20, vendor=GPUVendor.AMD),)), PortDemand())
    assert isinstance(shortage, GPUShortage)
    assert [one.uuid for one in shortage.free] == ["c"]


def test_a_request_equal_to_all_that_is_free_is_granted() -> None:
    capacity = replace(_capacity(), disk=7)
    demand = Demand(
        cpu=CPUDemand(cores=Cores(1500), architecture="x86_64", clock_speed=3_000_000_000),
        ram=RAMDemand(size=2 * GIB),
        disk=DiskDemand(size=7),
        gpus=(GPUDemand(vram=14), GPUDemand(vram=16)),
    )
    ports = PortDemand(dynamic=4)
    assert capacity.shortages(demand, ports) == ()
    left = capacity.less(demand, capacity.grant(demand, ports))
    assert (left.millicores, left.ram, left.disk) == (0, 0, 0)
    assert [state.free for state in left.devices] == [0, 0, 0]


def test_one_unit_more_than_is_free_is_short() -> None:
    capacity = replace(_capacity(), disk=7)
    for demand, ports, short in (
        (Demand(cpu=CPUDemand(cores=Cores(1501))), PortDemand(), CPUShortage),
        (Demand(cpu=CPUDemand(clock_speed=3_000_000_001)), PortDemand(), CPUShortage),
        (Demand(ram=RAMDemand(size=2 * GIB + 1)), PortDemand(), RAMShortage),
        (Demand(disk=DiskDemand(size=8)), PortDemand(), DiskShortage),
        (Demand(gpus=(GPUDemand(vram=17),)), PortDemand(), GPUShortage),
        (Demand(gpus=(GPUDemand(vram=14), GPUDemand(vram=15), GPUDemand())), PortDemand(), GPUShortage),
        (Demand(), PortDemand(dynamic=5), PortShortage),
    ):
        assert [type(shortage) for shortage in capacity.shortages(demand, ports)] == [short]


def test_a_check_changes_nothing() -> None:
    capacity = _capacity()
    before = replace(capacity)
    demand = Demand(gpus=(GPUDemand(vram=3), GPUDemand(vram=4)))
    for _ in range(3):
        assert capacity.shortages(demand, PortDemand(dynamic=2)) == ()
        assert capacity.grant(demand, PortDemand(dynamic=2)).ports == (11, 12)
    assert capacity == before


@pytest.mark.parametrize(("has", "asked"), [("aarch64", "arm64"), ("amd64", "x86_64"), ("x86_64", "AMD64")])
def test_a_machine_file_may_spell_the_architecture_its_own_way(has: str, asked: str) -> None:
    capacity = replace(_capacity(), cpu=CPU(cores=Cores(4000), architecture=has))
    assert capacity.shortages(Demand(cpu=CPUDemand(architecture=asked)), NO_PORTS) == ()
