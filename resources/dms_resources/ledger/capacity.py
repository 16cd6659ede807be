"""The free capacity at one instant, and whether a demand fits. Values are immutable.

What remains after a demand is another value, so that several demands can be tried together.
"""

from __future__ import annotations

from collections.abc import Iterable

from msgspec import Struct
from msgspec.structs import replace

from ..components import CPU, GPU, RAM, Disk, Resources
from ..demands import (
    CPUDemand,
    CPUShortage,
    Demand,
    DiskShortage,
    GPUDemand,
    GPUShortage,
    PortDemand,
    RAMShortage,
    Shortage,
)
from ..machine.architectures import same_architecture
from ..placement import DeviceState, Placement, place
from ..units import Cores
from .ports import PortPool

__all__ = ["FreeCapacity", "Granted"]


class Granted(Struct, frozen=True, kw_only=True):
    """What a demand would get: named GPUs and the requested ports."""

    resources: Resources
    ports: tuple[int, ...] = ()


class FreeCapacity(Struct, frozen=True, kw_only=True):
    """Free and offered amounts (millicores, bytes), the devices, and the ports."""

    millicores: int
    ram: int
    disk: int
    total_millicores: int
    total_ram: int
    total_disk: int
    cpu: CPU
    devices: tuple[DeviceState, ...]
    ports: PortPool
    spoken_for: frozenset[int] = frozenset()

    def place(self, demand: Demand) -> tuple[Placement, ...] | None:
        """The devices for the GPUs of a demand; None if no placement exists."""
        return place(demand.gpus, self.devices)

    def shortages(
        self, demand: Demand, ports: PortDemand, placements: tuple[Placement, ...] | None = None
    ) -> tuple[Shortage, ...]:
        """Every dimension that falls short; empty if the demand fits.

        `placements` are the devices for its GPUs, if they are known already.
        """
        found = (
            self._cpu(demand.cpu),
            RAMShortage(asked=demand.ram.size, free=self.ram, total=self.total_ram)
            if demand.ram.size > self.ram
            else None,
            DiskShortage(asked=demand.disk.size, free=self.disk, total=self.total_disk)
            if demand.disk.size > self.disk
            else None,
            self._gpus(demand.gpus) if placements is None and self.place(demand) is None else None,
            self.ports.shortage(ports, self.spoken_for),
        )
        return tuple(filter(None, found))

    def grant(self, demand: Demand, ports: PortDemand, placements: tuple[Placement, ...] | None = None) -> Granted:
        """What the demand gets. Call it only if `shortages` is empty."""
        placed = self.place(demand) if placements is None else placements
        if placed is None:
            raise ValueError("the demand does not fit")
        devices = {state.device.uuid: state.device for state in self.devices}
        return Granted(
            resources=Resources(
                cpu=_replace_cores(self.cpu, demand.cpu.cores),
                ram=RAM(size=demand.ram.size),
                disk=Disk(size=demand.disk.size),
                gpus=tuple(_part_of(devices[one.uuid], one) for one in placed),
            ),
            ports=self.ports.choose(ports, self.spoken_for),
        )

    def keeping(self, ports: Iterable[int]) -> FreeCapacity:
        """The capacity without these ports."""
        spoken_for = self.spoken_for.union(ports)
        return self if spoken_for == self.spoken_for else replace(self, spoken_for=spoken_for)

    def less(self, demand: Demand, granted: Granted) -> FreeCapacity:
        """The capacity that remains after this grant."""
        taken = {gpu.uuid: gpu for gpu in granted.resources.gpus}
        return replace(
            self,
            millicores=self.millicores - demand.cpu.cores.millicores,
            ram=self.ram - demand.ram.size,
            disk=self.disk - demand.disk.size,
            devices=tuple(
                state.take(GPUDemand(vram=taken[state.device.uuid].vram, exclusive=taken[state.device.uuid].exclusive))
                if state.device.uuid in taken
                else state
                for state in self.devices
            ),
            spoken_for=self.spoken_for | frozenset(granted.ports),
        )

    def _cpu(self, asked: CPUDemand) -> CPUShortage | None:
        if (
            asked.cores.millicores <= self.millicores
            and (not asked.architecture or same_architecture(asked.architecture, self.cpu.architecture))
            and asked.clock_speed <= self.cpu.clock_speed
        ):
            return None
        # Properties that were not requested are left out of the refusal.
        architecture = self.cpu.architecture if asked.architecture else ""
        clock_speed = self.cpu.clock_speed if asked.clock_speed else 0

        def as_asked(millicores: int) -> CPUDemand:
            return CPUDemand(cores=Cores(max(0, millicores)), architecture=architecture, clock_speed=clock_speed)

        return CPUShortage(asked=asked, free=as_asked(self.millicores), total=as_asked(self.total_millicores))

    def _gpus(self, asked: tuple[GPUDemand, ...]) -> GPUShortage:
        exclusive = any(demand.exclusive for demand in asked)
        fitting = [state for state in self.devices if any(demand.accepts(state.device) for demand in asked)]
        return GPUShortage(
            asked=asked,
            free=tuple(
                _as_demand(state, state.free, exclusive=exclusive and state.users == 0)
                for state in fitting
                if state.free > 0
            ),
            total=tuple(_as_demand(state, state.total, exclusive=False) for state in fitting),
        )


def _as_demand(state: DeviceState, vram: int, *, exclusive: bool) -> GPUDemand:
    device = state.device
    return GPUDemand(vram=vram, vendor=device.vendor, model=device.model, uuid=device.uuid, exclusive=exclusive)


def _part_of(device: GPU, placement: Placement) -> GPU:
    return GPU(
        uuid=device.uuid,
        index=device.index,
        vendor=device.vendor,
        model=device.model,
        pci_address=device.pci_address,
        vram=placement.vram,
        exclusive=placement.exclusive,
    )


def _replace_cores(cpu: CPU, cores: Cores) -> CPU:
    return CPU(
        cores=cores,
        clock_speed=cpu.clock_speed,
        architecture=cpu.architecture,
        vendor=cpu.vendor,
        model=cpu.model,
    )
