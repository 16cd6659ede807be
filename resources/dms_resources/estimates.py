"""Whether a job would find room in what a peer said, some time ago, that it has free.

An estimate for choosing whom to ask: the peer alone decides, by its ledger.
"""

from __future__ import annotations

from .architectures import architecture_name
from .components import FreeResources
from .demands import Demand
from .placement import DeviceState, place

__all__ = ["would_fit"]


def would_fit(free: FreeResources, demand: Demand) -> bool:
    """Whether the demand fits into these free amounts and devices, as far as they tell."""
    return (
        free.onboarded
        and not free.draining
        and demand.cpu.cores <= free.cpu.cores
        and demand.cpu.clock_speed <= free.cpu.clock_speed
        and (not demand.cpu.architecture or architecture_name(demand.cpu.architecture) == free.cpu.architecture)
        and demand.ram.size <= free.ram.size
        and demand.disk.size <= free.disk.size
        and _has_gpus(free, demand)
    )


def _has_gpus(free: FreeResources, demand: Demand) -> bool:
    devices = (DeviceState(device=gpu, total=gpu.vram, exclusive=gpu.exclusive) for gpu in free.gpus)
    return not demand.gpus or place(demand.gpus, devices) is not None
