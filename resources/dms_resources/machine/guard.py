"""Checks a demand against what is physically free now, regardless of the ledger."""

from __future__ import annotations

from ..components import GPU, GPUs, MachineResources
from ..demands import CPUDemand, CPUShortage, Demand, DiskShortage, GPUDemand, GPUShortage, RAMShortage, Shortage
from ..placement import DeviceState, place
from .sampling import UsageSample

__all__ = ["physical_shortages"]


def physical_shortages(demand: Demand, sample: UsageSample, machine: MachineResources) -> tuple[Shortage, ...]:
    """Every dimension in which `demand` exceeds what is physically free in `sample`; empty if it fits.

    Pure: it compares amounts and makes no system call.
    """
    free = sample.free
    found: list[Shortage] = []
    if demand.cpu.cores > free.cpu.cores:
        cores = (CPUDemand(cores=free.cpu.cores), CPUDemand(cores=machine.cpu.cores))
        found.append(CPUShortage(asked=CPUDemand(cores=demand.cpu.cores), free=cores[0], total=cores[1]))
    if demand.ram.size > free.ram.size:
        found.append(RAMShortage(asked=demand.ram.size, free=free.ram.size, total=machine.ram.size))
    if demand.disk.size > free.disk.size:
        found.append(DiskShortage(asked=demand.disk.size, free=free.disk.size, total=machine.disk.size))
    if not _gpus_fit(demand.gpus, free.gpus):
        found.append(GPUShortage(asked=demand.gpus, free=_as_demands(free.gpus), total=_as_demands(machine.gpus)))
    return tuple(found)


def _gpus_fit(demands: tuple[GPUDemand, ...], free: GPUs) -> bool:
    # Even of an exclusive device only the requested bytes must be free: the driver itself uses some of the memory.
    return place(demands, [DeviceState(device=gpu, total=gpu.vram) for gpu in free]) is not None


def _as_demands(gpus: tuple[GPU, ...]) -> tuple[GPUDemand, ...]:
    return tuple(GPUDemand(vram=gpu.vram, vendor=gpu.vendor, model=gpu.model, uuid=gpu.uuid) for gpu in gpus)
