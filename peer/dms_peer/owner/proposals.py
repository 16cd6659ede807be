"""Proposes what an owner could offer of a machine, and the questions to decide it.

The bounds are the DMS's: at least 1 core, and 10 to 90 % of the RAM and of each GPU's VRAM; the disk has the same upper
bound. They apply to the proposals and answers here. Amounts that are given as options may offer everything.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from dms_resources.components import MachineResources
from dms_resources.errors import AmountError
from dms_resources.units import GIB, MIB, Cores, format_size, parse_size

from .offers import GPUChoice, Offer

__all__ = ["Proposal", "Question", "propose", "questions", "settle"]

_LEAST, _MOST, _USUAL = 10, 90, 75


@dataclass(frozen=True, slots=True)
class Question:
    """One amount to decide: the question, the proposal, and a function that reads an answer (raises `AmountError`)."""

    name: str
    text: str
    proposed: str
    read: Callable[[str], int]


@dataclass(frozen=True, slots=True)
class Proposal:
    """Millicores and bytes; VRAM by GPU uuid."""

    millicores: int
    ram: int
    disk: int
    vram: dict[str, int]


def propose(machine: MachineResources) -> Proposal:
    """A proposal that leaves one core, a quarter of the rest and half of the disk to the machine's owner."""
    millicores = machine.cpu.cores.millicores
    return Proposal(
        millicores=max(min(1000, millicores), (millicores - 1000) // 1000 * 1000),
        ram=_whole(machine.ram.size * _USUAL // 100),
        disk=_whole(machine.disk.size // 2),
        vram={gpu.uuid: _whole(gpu.vram * _MOST // 100) for gpu in machine.gpus},
    )


def questions(machine: MachineResources) -> list[Question]:
    """The questions for this machine, each with its proposal."""
    proposal = propose(machine)
    cores = Cores(min(1000, machine.cpu.cores.millicores)), machine.cpu.cores
    asked = [
        Question(
            "cpu",
            f"CPU cores ({cores[0]} to {cores[1]})",
            str(Cores(proposal.millicores)),
            lambda text: _between(Cores.of(text).millicores, cores[0].millicores, cores[1].millicores, _cores),
        ),
        _size_question("ram", "RAM", machine.ram.size, proposal.ram, _LEAST),
        _size_question("disk", "disk", machine.disk.size, proposal.disk, 0),
    ]
    for gpu in machine.gpus:
        name = f"VRAM of GPU {gpu.index} {gpu.model}".rstrip()
        asked.append(_size_question(gpu.uuid, name, gpu.vram, proposal.vram[gpu.uuid], _LEAST, or_none=True))
    return asked


def settle(answers: dict[str, int]) -> Offer:
    """The offer from the answers, by the names of their questions. A GPU with 0 bytes is left out."""
    vram = {name: size for name, size in answers.items() if name not in ("cpu", "ram", "disk")}
    return Offer(
        cpu=Cores(answers["cpu"]),
        ram=answers["ram"],
        disk=answers["disk"],
        gpus=tuple(GPUChoice(device=uuid, vram=size) for uuid, size in vram.items() if size),
    )


def _size_question(name: str, what: str, size: int, proposed: int, least: int, *, or_none: bool = False) -> Question:
    low, high = -(-size * least // 100), size * _MOST // 100

    def read(text: str) -> int:
        if or_none and text.strip().casefold() in ("0", "none"):
            return 0
        return _between(parse_size(text), low, high, format_size)

    none = ", or none" if or_none else ""
    text = f"{what} ({format_size(low)} to {format_size(high)}{none})"
    exact = f"{proposed // GIB}GiB" if proposed % GIB == 0 else f"{proposed // MIB}MiB"
    return Question(name, text, exact, read)


def _between(amount: int, low: int, high: int, show: Callable[[int], str]) -> int:
    if not low <= amount <= high:
        raise AmountError(f"{show(amount)} is not between {show(low)} and {show(high)}", value=str(amount))
    return amount


def _cores(millicores: int) -> str:
    return f"{Cores(millicores)} cores"


def _whole(size: int) -> int:
    # A person reads and types the proposal, so it is in whole GiB if it has any.
    unit = GIB if size >= GIB else MIB
    return size // unit * unit
