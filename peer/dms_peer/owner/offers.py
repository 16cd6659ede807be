"""Converts what an owner writes (`--cpu 2 --gpu 0:8GiB`) to the onboarded resources."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct
from msgspec.structs import replace

from dms_resources.components import (
    DEFAULT_PORT_RANGE,
    GPU,
    RAM,
    Amount,
    Disk,
    GPUs,
    Headroom,
    HoldLimits,
    MachineResources,
    OnboardedResources,
    PortRange,
)
from dms_resources.errors import OnboardingError
from dms_resources.units import Cores

__all__ = ["GPUChoice", "Offer", "onboarded_resources"]


class GPUChoice(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One GPU to offer: its index or uuid, or "all", and the bytes of it (None: the whole device)."""

    device: str
    vram: Amount | None = None


class Offer(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What an owner wants to offer. Sizes are in bytes; `hold` is the number of seconds for which bids may hold
    capacity (0: none).

    `headroom` is the share, in thousandths of each amount, that is never promised.
    """

    cpu: Cores
    ram: Amount
    disk: Amount
    gpus: tuple[GPUChoice, ...] = ()
    port_range: PortRange = DEFAULT_PORT_RANGE
    windows: tuple[str, ...] = ()
    hold: float = 0.0
    headroom: Annotated[int, Meta(ge=0, le=1000)] = 0


def onboarded_resources(offer: Offer, machine: MachineResources) -> OnboardedResources:
    """The offer as a part of this machine.

    Raises `OnboardingError` for an empty offer, and for a GPU that the machine does not have.
    """
    nothing = [
        f"{what} of nothing cannot be offered: {remedy}"
        for amount, what, remedy in (
            (offer.cpu.millicores, "CPU", "give --cpu, such as 1"),
            (offer.ram, "RAM", "give --ram, such as 1GiB"),
        )
        if not amount
    ]
    if nothing:
        raise OnboardingError(tuple(nothing), hint="to offer nothing any more, use `dms-peer offboard`")
    return OnboardedResources(
        cpu=replace(machine.cpu, cores=offer.cpu),
        ram=RAM(size=offer.ram, clock_speed=machine.ram.clock_speed, type=machine.ram.type),
        disk=Disk(size=offer.disk, model=machine.disk.model, type=machine.disk.type, interface=machine.disk.interface),
        gpus=_chosen(offer.gpus, machine),
        port_range=offer.port_range,
        windows=offer.windows,
        holds=HoldLimits(max_seconds=offer.hold),
        headroom=Headroom(share=offer.headroom),
    )


def _chosen(choices: tuple[GPUChoice, ...], machine: MachineResources) -> GPUs:
    chosen: dict[str, GPU] = {}
    problems = []
    for choice in choices:
        found = [gpu for gpu in machine.gpus if choice.device in ("all", gpu.uuid, str(gpu.index))]
        if not found and choice.device != "all":
            problems.append(f"GPU {choice.device}: the machine has {_have(machine)}")
        for gpu in found:
            if gpu.uuid in chosen and choice.device != "all":
                problems.append(f"GPU {choice.device}: named twice")
            chosen[gpu.uuid] = gpu if choice.vram is None else replace(gpu, vram=choice.vram)
    if problems:
        raise OnboardingError(tuple(problems), hint="see `dms-peer hardware` for what there is")
    return tuple(chosen.values())


def _have(machine: MachineResources) -> str:
    if not machine.gpus:
        return "no GPU"
    return "GPUs " + ", ".join(f"{gpu.index} ({gpu.uuid})" for gpu in machine.gpus[:8])
