"""What a job requests, and what a machine lacks for it.

A demand decodes from the DMS's resource maps: `cpu{cores, architecture, clock_speed}`, `ram{size}`, `disk{size}`,
`gpus[{vram, vendor, model, uuid, exclusive}]`. Each requested GPU is one device. The order of the list has no meaning.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TypeAlias

from msgspec import Struct

from .components import GPU, Amount, GPUVendor, Port
from .units import Cores, format_cores, format_size

__all__ = [
    "NO_PORTS",
    "CPUDemand",
    "CPUShortage",
    "Demand",
    "DiskDemand",
    "DiskShortage",
    "GPUDemand",
    "GPUShortage",
    "PortDemand",
    "PortShortage",
    "RAMDemand",
    "RAMShortage",
    "Shortage",
    "describe_shortage",
]

_ANY_VENDOR = (GPUVendor.UNKNOWN, GPUVendor.NONE)


class CPUDemand(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Requested cores, optionally of one architecture ("x86_64", "arm64") and of at least `clock_speed` hertz."""

    cores: Cores = Cores(0)
    architecture: str = ""
    clock_speed: Amount = 0


class RAMDemand(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Requested main memory, in bytes."""

    size: Amount = 0


class DiskDemand(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Requested disk space, in bytes."""

    size: Amount = 0


class GPUDemand(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One requested GPU with at least `vram` free bytes; optionally of a vendor or a model, or a certain device.

    `model` has words, in any order and case: the GPU's name has to contain all of them. "NVIDIA A100-SXM4-80GB" matches
    "A100"; "T400" does not match "T4". `exclusive` requests a device that no other job uses.
    """

    vram: Amount = 0
    vendor: GPUVendor = GPUVendor.UNKNOWN
    model: str = ""
    uuid: str = ""
    exclusive: bool = False

    def accepts(self, device: GPU) -> bool:
        """Whether this device is of the requested kind, regardless of its free memory."""
        return (
            (self.vendor in _ANY_VENDOR or self.vendor is device.vendor)
            and (not self.uuid or self.uuid == device.uuid)
            and (not self.model or _words(self.model) <= _words(device.model))
        )


@lru_cache(maxsize=1024)
def _words(model: str) -> frozenset[str]:
    return frozenset(re.findall(r"\w+", model.casefold()))


class Demand(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Everything that one job requests."""

    cpu: CPUDemand = CPUDemand()
    ram: RAMDemand = RAMDemand()
    disk: DiskDemand = DiskDemand()
    gpus: tuple[GPUDemand, ...] = ()

    def describe(self) -> str:
        """One line for people: "2 cores, 4 GiB RAM, 10 GiB disk, 1 GPU with 8 GiB"."""
        return _describe(self)


@lru_cache(maxsize=1024)
def _describe(demand: Demand) -> str:
    # Cached, because a demand is described at each step of the job's life.
    parts = [
        format_cores(demand.cpu.cores),
        f"{format_size(demand.ram.size)} RAM",
        f"{format_size(demand.disk.size)} disk",
    ]
    parts += [f"1 GPU with {format_size(gpu.vram)}" for gpu in demand.gpus]
    return ", ".join(parts)


class PortDemand(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Requested public ports: the numbers in `static`, and `dynamic` more of any number."""

    static: tuple[Port, ...] = ()
    dynamic: Amount = 0


NO_PORTS = PortDemand()


class CPUShortage(Struct, frozen=True, kw_only=True, tag_field="dimension", tag="cpu"):
    """Too few cores are free, or the CPU does not have the requested architecture or clock."""

    asked: CPUDemand
    free: CPUDemand
    total: CPUDemand


class RAMShortage(Struct, frozen=True, kw_only=True, tag_field="dimension", tag="ram"):
    """Too little main memory is free; in bytes."""

    asked: Amount
    free: Amount
    total: Amount


class DiskShortage(Struct, frozen=True, kw_only=True, tag_field="dimension", tag="disk"):
    """Too little disk space is free; in bytes."""

    asked: Amount
    free: Amount
    total: Amount


class GPUShortage(Struct, frozen=True, kw_only=True, tag_field="dimension", tag="gpus"):
    """No set of free devices matches the requested GPUs.

    `free` and `total` name devices with their free and their offered bytes. A request for `free` would be granted.
    """

    asked: tuple[GPUDemand, ...]
    free: tuple[GPUDemand, ...]
    total: tuple[GPUDemand, ...]


class PortShortage(Struct, frozen=True, kw_only=True, tag_field="dimension", tag="ports"):
    """Requested ports are taken, in use or outside the range. A request for `free` would be granted."""

    asked: PortDemand
    free: PortDemand
    total: PortDemand


Shortage: TypeAlias = CPUShortage | RAMShortage | DiskShortage | GPUShortage | PortShortage
"""One dimension that falls short, with the requested, the free and the total amount."""


def describe_shortage(shortage: Shortage) -> str:
    """One clause for people: "ram: 8 GiB asked, 2 GiB free of 4 GiB"."""
    match shortage:
        case CPUShortage(asked=asked, free=free, total=total):
            return f"cpu: {_cpu(asked)} asked, {_cpu(free)} free of {_cpu(total)}"
        case RAMShortage() | DiskShortage():
            name = "ram" if isinstance(shortage, RAMShortage) else "disk"
            sizes = [format_size(size) for size in (shortage.asked, shortage.free, shortage.total)]
            return f"{name}: {sizes[0]} asked, {sizes[1]} free of {sizes[2]}"
        case GPUShortage(asked=asked_gpus, free=free_gpus, total=total_gpus):
            return f"gpus: {_gpus(asked_gpus)} asked, {_gpus(free_gpus)} free of {_gpus(total_gpus)}"
        case PortShortage(asked=ports, free=free_ports, total=all_ports):
            return f"ports: {_ports(ports)} asked, {_ports(free_ports)} free of {all_ports.dynamic}"


def _cpu(cpu: CPUDemand) -> str:
    words = [format_cores(cpu.cores)]
    if cpu.architecture:
        words.append(cpu.architecture)
    if cpu.clock_speed:
        words.append(f"{cpu.clock_speed / 1e9:g} GHz")
    return " ".join(words)


def _gpus(gpus: tuple[GPUDemand, ...]) -> str:
    if not gpus:
        return "none"
    return " + ".join(
        format_size(gpu.vram) + (f" {gpu.model}" if gpu.model else "") + (" exclusive" if gpu.exclusive else "")
        for gpu in gpus
    )


def _ports(ports: PortDemand) -> str:
    static = [str(port) for port in ports.static]
    return " ".join([*static, *([f"any {ports.dynamic}"] if ports.dynamic else [])]) or "none"
