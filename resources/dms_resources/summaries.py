"""What a book adds up to, as resources: pure functions."""

from __future__ import annotations

from collections.abc import Iterable

from msgspec.structs import replace

from .book import Book
from .components import CPU, GPU, RAM, Disk, FreeResources, Resources
from .leases import LeaseState
from .units import Cores

__all__ = ["free_resources", "promised_resources"]


def free_resources(book: Book) -> FreeResources:
    """What could be taken now."""
    room = book.room()
    return FreeResources(
        cpu=replace(room.cpu, cores=Cores(room.millicores)),
        ram=RAM(size=room.ram),
        disk=Disk(size=room.disk),
        gpus=_by_index(
            replace(state.device, vram=state.free, exclusive=state.exclusive)
            for state in room.devices
            if not state.missing
        ),
        ports=book.ports.free if book.offer.onboarded else 0,
        onboarded=book.offer.onboarded is not None,
        draining=book.offer.draining,
        simulated=book.machine.simulated,
    )


def promised_resources(book: Book, *states: LeaseState) -> Resources:
    """The sum of all leases in these states; GPUs with the bytes promised on each."""
    sums = [book.totals[state] for state in states]
    gpus = []
    for uuid, device in book.devices.items():
        vram = sum(book.vram[state].get(uuid, 0) for state in states)
        if vram:
            gpus.append(replace(device.device, vram=vram))
    return Resources(
        cpu=CPU(cores=Cores(sum(total.millicores for total in sums))),
        ram=RAM(size=sum(total.ram for total in sums)),
        disk=Disk(size=sum(total.disk for total in sums)),
        gpus=_by_index(gpus),
    )


def _by_index(gpus: Iterable[GPU]) -> tuple[GPU, ...]:
    return tuple(sorted(gpus, key=lambda gpu: (gpu.index, gpu.uuid)))
