from __future__ import annotations

from typing import Any

import pytest

from dms_resources.components import CPU, GPU, RAM, Disk, FreeResources
from dms_resources.demands import CPUDemand, Demand, DiskDemand, GPUDemand, RAMDemand
from dms_resources.estimates import would_fit
from dms_resources.units import GIB, Cores


def free(**changes: Any) -> FreeResources:
    fields: dict[str, Any] = {
        "cpu": CPU(cores=Cores.of(4), architecture="x86_64", clock_speed=3_000_000_000),
        "ram": RAM(size=8 * GIB),
        "disk": Disk(size=100 * GIB),
        "gpus": (
            GPU(uuid="a", vram=24 * GIB),
            GPU(uuid="b", vram=10 * GIB),
            GPU(uuid="c", vram=48 * GIB, exclusive=True),
        ),
        "ports": 10,
        "onboarded": True,
        "draining": False,
        "simulated": False,
    }
    return FreeResources(**(fields | changes))


@pytest.mark.parametrize(
    "demand",
    [
        Demand(),
        Demand(cpu=CPUDemand(cores=Cores.of(4)), ram=RAMDemand(size=8 * GIB), disk=DiskDemand(size=100 * GIB)),
        Demand(cpu=CPUDemand(architecture="amd64", clock_speed=3_000_000_000)),
        Demand(gpus=(GPUDemand(vram=8 * GIB), GPUDemand(vram=20 * GIB))),
    ],
)
def test_what_fits(demand: Demand) -> None:
    assert would_fit(free(), demand)


@pytest.mark.parametrize(
    "demand",
    [
        Demand(cpu=CPUDemand(cores=Cores.of("4.001"))),
        Demand(cpu=CPUDemand(clock_speed=3_000_000_001)),
        Demand(cpu=CPUDemand(architecture="arm64")),
        Demand(ram=RAMDemand(size=8 * GIB + 1)),
        Demand(disk=DiskDemand(size=100 * GIB + 1)),
        # A device that belongs to another lease does not count, and one device is not two.
        Demand(gpus=(GPUDemand(vram=40 * GIB),)),
        Demand(gpus=(GPUDemand(vram=20 * GIB), GPUDemand(vram=20 * GIB))),
    ],
)
def test_what_does_not(demand: Demand) -> None:
    assert not would_fit(free(), demand)


def test_who_takes_nothing() -> None:
    assert not would_fit(free(onboarded=False), Demand())
    assert not would_fit(free(draining=True), Demand())


@pytest.mark.parametrize("has", ["aarch64", "ARM64", "armv8"])
@pytest.mark.parametrize("asked", ["aarch64", "arm64"])
def test_architectures_are_compared_by_meaning_on_both_sides(has: str, asked: str) -> None:
    here = free(cpu=CPU(cores=Cores.of(4), architecture=has))
    assert would_fit(here, Demand(cpu=CPUDemand(architecture=asked)))
    assert not would_fit(here, Demand(cpu=CPUDemand(architecture="x86_64")))
