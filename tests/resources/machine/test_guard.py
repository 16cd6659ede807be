"""A demand is compared with what is physically free."""

from __future__ import annotations

import pytest

from dms_resources.components import CPU, GPU, RAM, Disk, GPUs, MachineResources, Resources
from dms_resources.demands import (
    CPUDemand,
    CPUShortage,
    Demand,
    DiskDemand,
    DiskShortage,
    GPUDemand,
    GPUShortage,
    RAMDemand,
    RAMShortage,
)
from dms_resources.machine.guard import physical_shortages
from dms_resources.machine.sampling import UsageSample
from dms_resources.units import GIB, Cores


def _gpus(*sizes: int) -> GPUs:
    return tuple(GPU(uuid=f"GPU-{n}", index=n, vram=size * GIB) for n, size in enumerate(sizes))


_MACHINE = MachineResources(
    cpu=CPU(cores=Cores(8000)), ram=RAM(size=32 * GIB), disk=Disk(size=100 * GIB), gpus=_gpus(40, 24)
)

_FREE_GPUS = _gpus(24, 10)


def _sample(cores: int = 2000, ram: int = 8, disk: int = 10, gpus: GPUs = _FREE_GPUS) -> UsageSample:
    free = Resources(cpu=CPU(cores=Cores(cores)), ram=RAM(size=ram * GIB), disk=Disk(size=disk * GIB), gpus=gpus)
    return UsageSample(usage=free, free=free, rest=free, taken_at=0.0, gpus_taken_at=0.0)


def _vram(*sizes: int) -> tuple[GPUDemand, ...]:
    return tuple(GPUDemand(vram=size * GIB) for size in sizes)


def test_what_is_free_can_be_had() -> None:
    demand = Demand(
        cpu=CPUDemand(cores=Cores(2000)),
        ram=RAMDemand(size=8 * GIB),
        disk=DiskDemand(size=10 * GIB),
        gpus=_vram(10, 24),
    )
    assert physical_shortages(demand, _sample(), _MACHINE) == ()


def test_every_dimension_that_falls_short_is_told_with_asked_free_and_total() -> None:
    demand = Demand(
        cpu=CPUDemand(cores=Cores(2001)),
        ram=RAMDemand(size=8 * GIB + 1),
        disk=DiskDemand(size=10 * GIB + 1),
        gpus=_vram(25),
    )
    cpu, ram, disk, gpus = physical_shortages(demand, _sample(), _MACHINE)
    assert cpu == CPUShortage(
        asked=CPUDemand(cores=Cores(2001)), free=CPUDemand(cores=Cores(2000)), total=CPUDemand(cores=Cores(8000))
    )
    assert ram == RAMShortage(asked=8 * GIB + 1, free=8 * GIB, total=32 * GIB)
    assert disk == DiskShortage(asked=10 * GIB + 1, free=10 * GIB, total=100 * GIB)
    assert isinstance(gpus, GPUShortage)
    assert [gpu.vram for gpu in gpus.free] == [24 * GIB, 10 * GIB]
    assert [gpu.vram for gpu in gpus.total] == [40 * GIB, 24 * GIB]


@pytest.mark.parametrize(
    ("free", "asked", "fits"),
    [
        ((24, 10), (8, 20), True),
        ((10, 24), (20, 8), True),
        ((16,), (8, 8), False),
        ((), (0,), False),
        ((), (), True),
        ((24, 10), (11, 11), False),
    ],
)
def test_gpus_asked_for_are_devices(free: tuple[int, ...], asked: tuple[int, ...], fits: bool) -> None:
    shortages = physical_shortages(Demand(gpus=_vram(*asked)), _sample(gpus=_gpus(*free)), _MACHINE)
    assert (shortages == ()) is fits


def test_an_exclusive_device_need_not_be_empty_to_the_last_byte() -> None:
    # The driver itself uses some memory on each device.
    demand = Demand(gpus=(GPUDemand(vram=20 * GIB, exclusive=True),))
    assert physical_shortages(demand, _sample(), _MACHINE) == ()
