"""Checks a demand against what is physically free now, regardless of the ledger."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final, Literal, TypeAlias

from ..components import GPU, GPUs, MachineResources
from ..demands import (
    CPUDemand,
    CPUShortage,
    Demand,
    DiskShortage,
    GPUDemand,
    GPUShortage,
    RAMShortage,
    Shortage,
    describe_shortage,
)
from ..placement import DeviceState, place
from .sampling import UsageSample

__all__ = ["Guard", "PhysicalGuard", "physical_shortages"]

Guard: TypeAlias = Literal["off", "warn", "enforce"]
"""What to do when the ledger has free capacity but the machine itself does not.

`enforce` refuses what memory, disk or VRAM lacks now, and logs a warning about a busy CPU. `warn` refuses only what the
disk lacks, and logs a warning about the rest. `off` does neither.
"""

_log = logging.getLogger("dms_resources.manager")

_WARN_SECONDS: Final = 60.0


class PhysicalGuard:
    """Says which shortages of the machine itself refuse a demand. It warns of the others in the log, at most once a
    minute. `steady` returns seconds that nobody can set.
    """

    def __init__(
        self,
        guard: Guard,
        sample: Callable[[], UsageSample | None],
        machine: Callable[[], MachineResources],
        steady: Callable[[], float],
    ) -> None:
        self._guard = guard
        self._sample = sample
        self._machine = machine
        self._steady = steady
        self._warned = float("-inf")

    def __call__(self, demand: Demand) -> tuple[Shortage, ...]:
        sample = self._sample()
        shortages = physical_shortages(demand, sample, self._machine()) if sample else ()
        # CPU time is shared and may be free in a second, so a busy CPU never leads to a refusal. Other programs may
        # free memory, and `warn` takes that risk. A full disk stays full.
        tolerated = (CPUShortage,) if self._guard == "enforce" else (CPUShortage, RAMShortage, GPUShortage)
        passed = [shortage for shortage in shortages if isinstance(shortage, tolerated)]
        # Anybody may request bids at any rate, and must not fill the log.
        if passed and self._steady() >= self._warned + _WARN_SECONDS:
            self._warned = self._steady()
            _log.warning("promised beyond what is free now: %s", "; ".join(map(describe_shortage, passed)))
        return tuple(shortage for shortage in shortages if not isinstance(shortage, tolerated))


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
