"""What may be onboarded: no more than the machine has, and no less than is promised."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from ..components import OnboardedResources
from ..errors import AmountError
from ..units import Cores, format_size
from .windows import Window

if TYPE_CHECKING:
    from .book import Book

__all__ = ["onboarding_problems"]


def onboarding_problems(asked: OnboardedResources, book: Book) -> tuple[str, ...]:
    """A sentence for each problem of this onboarding; empty if it is valid."""
    return (*_amounts(asked, book), *_gpus(asked, book), *_terms(asked))


def _amounts(asked: OnboardedResources, book: Book) -> Iterator[str]:
    machine, promised, keep = book.machine, book.promised(), asked.headroom

    def cores(millicores: int) -> str:
        return f"{Cores(millicores)} cores"

    rows = (
        (
            "CPU",
            asked.cpu.cores.millicores,
            keep.cpu.millicores,
            machine.cpu.cores.millicores,
            promised.millicores,
            cores,
        ),
        ("RAM", asked.ram.size, keep.ram, machine.ram.size, promised.ram, format_size),
        ("disk", asked.disk.size, keep.disk, machine.disk.size, promised.disk, format_size),
    )
    for name, amount, headroom, has, taken, show in rows:
        if amount > has:
            yield f"{name}: {show(amount)} asked but the machine has {show(has)}"
        if keep.cut(amount, headroom) < taken:
            yield f"{name}: {show(amount)} asked (less headroom) but {show(taken)} are promised"


def _gpus(asked: OnboardedResources, book: Book) -> Iterator[str]:
    devices = {gpu.uuid: gpu for gpu in book.machine.gpus}
    offered = {gpu.uuid: gpu for gpu in asked.gpus}
    if len(offered) != len(asked.gpus):
        yield "GPU: one device is named twice"
    for gpu in asked.gpus:
        device = devices.get(gpu.uuid)
        if device is None:
            yield f"GPU {gpu.uuid}: the machine has no such device"
        elif gpu.vram > device.vram:
            yield (
                f"GPU {device.index} ({gpu.uuid}): {format_size(gpu.vram)} asked "
                f"but the device has {format_size(device.vram)}"
            )
    for uuid, state in book.devices.items():
        kept = asked.headroom.cut(offered[uuid].vram, 0) if uuid in offered else 0
        if state.users and kept < state.used:
            yield f"GPU {uuid}: {format_size(state.used)} of it are promised"


def _terms(asked: OnboardedResources) -> Iterator[str]:
    if not len(asked.port_range):
        yield f"ports: {asked.port_range.first}-{asked.port_range.last} is an empty range"
    for window in asked.windows:
        try:
            Window.parse(window)
        except AmountError as error:
            yield error.message
