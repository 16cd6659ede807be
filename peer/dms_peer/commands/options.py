"""Options that several commands share, and how they are read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, TypeAlias

import typer

from dms_resources.components import PortRange
from dms_resources.demands import GPUDemand
from dms_resources.errors import AmountError
from dms_resources.units import Cores, parse_duration, parse_size

from ..home import home_at
from ..offers import GPUChoice

__all__ = [
    "AddressArgument",
    "CPUOption",
    "DebugOption",
    "DiskOption",
    "FenceOption",
    "HomeOption",
    "JSONOption",
    "LeaseArgument",
    "MachineOption",
    "OptionalCPU",
    "OptionalDisk",
    "OptionalRAM",
    "RAMOption",
    "cores",
    "duration",
    "gpu_choice",
    "gpu_demand",
    "home_at",
    "port_range",
    "size",
    "time_to_live",
]


def size(text: Any) -> int:
    """Bytes, from text such as "4GiB"."""
    try:
        return parse_size(str(text))
    except AmountError as error:
        raise typer.BadParameter(error.message) from None


def cores(text: Any) -> Cores:
    """Cores, from text such as "2" or "0.5"."""
    if isinstance(text, Cores):
        return text
    try:
        return Cores.of(text)
    except AmountError as error:
        raise typer.BadParameter(error.message) from None


def duration(text: Any) -> float:
    """Seconds, from text such as "60" or "5m"."""
    try:
        return parse_duration(str(text))
    except AmountError as error:
        raise typer.BadParameter(error.message) from None


def time_to_live(text: Any) -> float:
    """Seconds, and some of them."""
    seconds = duration(text)
    if seconds <= 0:
        raise typer.BadParameter(f"{text} is no time to live (write 60s, 5m or 2h)")
    return seconds


def gpu_choice(text: Any) -> GPUChoice:
    """A GPU to offer, from text such as "0", "all", or "GPU-1234:8GiB"."""
    device, colon, vram = str(text).strip().rpartition(":")
    if not colon:
        device, vram = vram, ""
    if not device or (colon and not vram):
        raise typer.BadParameter(f"{text!r} is no GPU (write all, none, 0, or 0:8GiB)")
    return GPUChoice(device=device, vram=size(vram) if vram else None)


def gpu_demand(text: Any) -> GPUDemand:
    """A GPU to ask for, from the VRAM needed on it."""
    return GPUDemand(vram=size(text))


def port_range(text: Any) -> PortRange:
    """Public ports, from text such as "20000-20999"."""
    first, _, last = str(text).partition("-")
    if not (first.isdecimal() and last.isdecimal() and 1 <= int(first) <= int(last) <= 65535):
        raise typer.BadParameter(f"{text!r} is no range of ports (write 20000-20999)")
    return PortRange(first=int(first), last=int(last))


HomeOption: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        "--home", metavar="DIR", help="Directory of key, ledger and socket.", show_default="the user's data directory"
    ),
]
MachineOption: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--machine",
        metavar="FILE",
        help="A JSON description that replaces the measured hardware, remembered in the home directory; "
        "`measured` goes back to the hardware.",
    ),
]
JSONOption: TypeAlias = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
DebugOption: TypeAlias = Annotated[bool, typer.Option("--debug", help="Show the traceback of a failure.")]
AddressArgument: TypeAlias = Annotated[
    str, typer.Argument(metavar="MULTIADDR", help="Where the peer is; ends in /p2p/PEER_ID.")
]
LeaseArgument: TypeAlias = Annotated[str, typer.Argument(metavar="LEASE_ID", help="What `commit` answered.")]
CPUOption: TypeAlias = Annotated[
    Cores, typer.Option("--cpu", parser=cores, metavar="CORES", help="Cores, such as 2 or 0.5.")
]
RAMOption: TypeAlias = Annotated[int, typer.Option("--ram", parser=size, metavar="SIZE", help="Such as 4GiB.")]
DiskOption: TypeAlias = Annotated[int, typer.Option("--disk", parser=size, metavar="SIZE", help="Such as 10GiB.")]
OptionalCPU: TypeAlias = Annotated[
    Cores | None, typer.Option("--cpu", parser=cores, metavar="CORES", help="Cores, such as 2 or 0.5.")
]
OptionalRAM: TypeAlias = Annotated[int | None, typer.Option("--ram", parser=size, metavar="SIZE", help="Such as 4GiB.")]
OptionalDisk: TypeAlias = Annotated[
    int | None, typer.Option("--disk", parser=size, metavar="SIZE", help="Such as 10GiB.")
]
FenceOption: TypeAlias = Annotated[
    int | None,
    typer.Option("--fence", min=0, metavar="NUMBER", help="The lease's fencing number, to be sure it is the same."),
]
