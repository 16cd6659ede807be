"""Estimates whether a job would fit into the free resources that a peer reported some time ago.

A requester uses this estimate to choose the peers to which it sends requests. Only the peer's ledger decides.
"""

from __future__ import annotations

from typing import Final

from .components import CPU, GPU, RAM, Disk, FreeResources
from .demands import Demand
from .machine.architectures import same_architecture
from .placement import DeviceState, place

__all__ = ["abridged", "would_fit"]

_MOST_GPUS: Final = 64
_LONGEST_NAME: Final = 128


def abridged(free: FreeResources) -> FreeResources:
    """The part that `would_fit` needs, small enough for a table of many peers."""
    return FreeResources(
        cpu=CPU(
            cores=free.cpu.cores,
            clock_speed=free.cpu.clock_speed,
            architecture=free.cpu.architecture[:_LONGEST_NAME],
        ),
        ram=RAM(size=free.ram.size),
        disk=Disk(size=free.disk.size),
        gpus=tuple(_gpu_in_short(gpu) for gpu in free.gpus[:_MOST_GPUS]),
        ports=free.ports,
        onboarded=free.onboarded,
        draining=free.draining,
        simulated=free.simulated,
    )


def _gpu_in_short(gpu: GPU) -> GPU:
    return GPU(
        uuid=gpu.uuid[:_LONGEST_NAME],
        vendor=gpu.vendor,
        model=gpu.model[:_LONGEST_NAME],
        vram=gpu.vram,
        exclusive=gpu.exclusive,
    )


def would_fit(free: FreeResources, demand: Demand) -> bool:
    """Whether the demand fits into these free amounts and devices, as far as they are known."""
    return (
        free.onboarded
        and not free.draining
        and demand.cpu.cores <= free.cpu.cores
        and demand.cpu.clock_speed <= free.cpu.clock_speed
        and (not demand.cpu.architecture or same_architecture(demand.cpu.architecture, free.cpu.architecture))
        and demand.ram.size <= free.ram.size
        and demand.disk.size <= free.disk.size
        and _has_gpus(free, demand)
    )


def _has_gpus(free: FreeResources, demand: Demand) -> bool:
    devices = (DeviceState(device=gpu, total=gpu.vram, exclusive=gpu.exclusive) for gpu in free.gpus)
    return not demand.gpus or place(demand.gpus, devices) is not None
