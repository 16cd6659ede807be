"""Advice to the owner about a valid offer: amounts that leave too little for the machine, or for a job."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from ..components import MachineResources, OnboardedResources
from ..units import Cores, format_size

__all__ = ["LEAST_PERCENT", "MOST_PERCENT", "offer_warnings"]

LEAST_PERCENT: Final = 10
"""The DMS's lower bound of the offered RAM and of the offered VRAM of each GPU, in percent of the machine."""
MOST_PERCENT: Final = 90
"""The DMS's upper bound, in percent. Above it too little is left for the operating system and the owner."""
_ONE_CORE: Final = Cores(1000)


def offer_warnings(offer: OnboardedResources, machine: MachineResources, ephemeral: tuple[int, int]) -> tuple[str, ...]:
    """A sentence for each unusual part of the offer. None of them prevents it. Pure.

    `ephemeral` are the first and the last port of the range that the kernel uses for outgoing connections.
    """
    return tuple(_warnings(offer, machine, ephemeral))


def _warnings(offer: OnboardedResources, machine: MachineResources, ephemeral: tuple[int, int]) -> Iterator[str]:
    if offer.cpu.cores < min(_ONE_CORE, machine.cpu.cores):
        yield f"CPU: {offer.cpu.cores} cores are less than 1; few jobs fit"
    yield from _share("RAM", offer.ram.size, machine.ram.size, LEAST_PERCENT)
    yield from _share("disk", offer.disk.size, machine.disk.size, 0)
    sizes = {gpu.uuid: gpu.vram for gpu in machine.gpus}
    for gpu in offer.gpus:
        yield from _share(f"GPU {gpu.index}", gpu.vram, sizes.get(gpu.uuid, 0), LEAST_PERCENT)
    first, last = max(offer.port_range.first, ephemeral[0]), min(offer.port_range.last, ephemeral[1])
    if first <= last:
        yield (
            f"ports {first}-{last} are also taken for outgoing connections (net.ipv4.ip_local_port_range); "
            f"use ports below {ephemeral[0]}"
        )


def _share(name: str, amount: int, total: int, least: int) -> Iterator[str]:
    if not total:
        return
    if amount * 100 > total * MOST_PERCENT:
        yield f"{name}: {format_size(amount)} are more than {MOST_PERCENT} % of {format_size(total)}"
    elif amount * 100 < total * least:
        yield f"{name}: {format_size(amount)} are less than {least} % of {format_size(total)}"
