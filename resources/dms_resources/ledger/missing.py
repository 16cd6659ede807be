"""What is onboarded but no longer present: a removed GPU, a smaller cgroup, a smaller disk."""

from __future__ import annotations

from typing import TypeAlias

from msgspec import Struct
from msgspec.structs import replace

from ..components import GPU, Amount, MachineResources, OnboardedResources
from ..units import Cores, format_size

__all__ = [
    "CPUMissing",
    "DiskMissing",
    "GPUMissing",
    "Missing",
    "RAMMissing",
    "describe_missing",
    "missing_resources",
    "remaining_resources",
]


class CPUMissing(Struct, frozen=True, kw_only=True, tag_field="dimension", tag="cpu"):
    """More cores are onboarded than this process may still use."""

    onboarded: Cores
    present: Cores


class RAMMissing(Struct, frozen=True, kw_only=True, tag_field="dimension", tag="ram"):
    """More main memory is onboarded than is left; in bytes."""

    onboarded: Amount
    present: Amount


class DiskMissing(Struct, frozen=True, kw_only=True, tag_field="dimension", tag="disk"):
    """More disk space is onboarded than is left; in bytes."""

    onboarded: Amount
    present: Amount


class GPUMissing(Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="dimension", tag="gpus"):
    """An onboarded GPU is gone (`present` is 0), or has less VRAM than is onboarded of it; in bytes."""

    uuid: str
    model: str = ""
    onboarded: Amount
    present: Amount


Missing: TypeAlias = CPUMissing | RAMMissing | DiskMissing | GPUMissing


def missing_resources(onboarded: OnboardedResources, machine: MachineResources) -> tuple[Missing, ...]:
    """Every part of the onboarded resources that the machine no longer has; empty if it has all of them. Pure."""
    missing: list[Missing] = []
    if onboarded.cpu.cores > machine.cpu.cores:
        missing.append(CPUMissing(onboarded=onboarded.cpu.cores, present=machine.cpu.cores))
    if onboarded.ram.size > machine.ram.size:
        missing.append(RAMMissing(onboarded=onboarded.ram.size, present=machine.ram.size))
    if onboarded.disk.size > machine.disk.size:
        missing.append(DiskMissing(onboarded=onboarded.disk.size, present=machine.disk.size))
    present = {gpu.uuid: gpu.vram for gpu in machine.gpus}
    for gpu in onboarded.gpus:
        size = present.get(gpu.uuid)
        if size is None or size < gpu.vram:
            missing.append(GPUMissing(uuid=gpu.uuid, model=gpu.model, onboarded=gpu.vram, present=size or 0))
    return tuple(missing)


def remaining_resources(onboarded: OnboardedResources, machine: MachineResources) -> OnboardedResources:
    """The onboarded resources that this machine still has. New commitments are checked against them. Pure."""
    present = {gpu.uuid: gpu.vram for gpu in machine.gpus}
    return replace(
        onboarded,
        cpu=replace(onboarded.cpu, cores=min(onboarded.cpu.cores, machine.cpu.cores)),
        ram=replace(onboarded.ram, size=min(onboarded.ram.size, machine.ram.size)),
        disk=replace(onboarded.disk, size=min(onboarded.disk.size, machine.disk.size)),
        gpus=tuple(_cut(gpu, present[gpu.uuid]) for gpu in onboarded.gpus if gpu.uuid in present),
    )


def _cut(gpu: GPU, present: int) -> GPU:
    return replace(gpu, vram=min(gpu.vram, present))


def describe_missing(missing: Missing) -> str:
    """One clause for people: "ram: 8 GiB onboarded, 4 GiB left"."""
    match missing:
        case CPUMissing():
            return f"cpu: {missing.onboarded} cores onboarded, {missing.present} left"
        case RAMMissing() | DiskMissing():
            name = "ram" if isinstance(missing, RAMMissing) else "disk"
            return f"{name}: {format_size(missing.onboarded)} onboarded, {format_size(missing.present)} left"
        case GPUMissing():
            left = f"{format_size(missing.present)} left" if missing.present else "gone"
            name = f"{missing.model} " if missing.model else ""
            return f"gpu {name}{missing.uuid}: {format_size(missing.onboarded)} onboarded, {left}"
