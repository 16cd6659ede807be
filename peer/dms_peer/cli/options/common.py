"""Options that several commands share, and their parsers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, TypeAlias

import typer

from dms_protocols.messages.bid import MAX_PORTS, Place
from dms_resources.components import PortRange
from dms_resources.demands import GPUDemand
from dms_resources.errors import AmountError
from dms_resources.units import Cores, parse_duration, parse_size

from ...home.home import home_at
from ...owner.offers import GPUChoice

__all__ = [
    "AddressArgument",
    "DebugOption",
    "ExecutorOption",
    "FenceOption",
    "FullOption",
    "GPUDemandOption",
    "HomeOption",
    "JSONOption",
    "LeaseArguments",
    "MachineOption",
    "NotLocationOption",
    "OptionalCPU",
    "OptionalDisk",
    "OptionalPeer",
    "OptionalRAM",
    "PlaceOption",
    "PortCountOption",
    "PortOption",
    "TokenOption",
    "cores",
    "duration",
    "gpu_choice",
    "gpu_demand",
    "home_at",
    "lease_at",
    "parse_place",
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
    """Seconds, more than 0."""
    seconds = duration(text)
    if seconds <= 0:
        raise typer.BadParameter(f"invalid time to live {text} (write 60s, 5m or 2h)")
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
    """A requested GPU, from the VRAM that is needed on it."""
    return GPUDemand(vram=size(text))


def parse_place(text: Any) -> Place:
    """A place, from text such as "Europe", "Europe/DE/Berlin" or "/DE"."""
    if isinstance(text, Place):
        return text
    parts = [part.strip() for part in str(text).split("/")]
    if len(parts) > 3 or not any(parts):
        raise typer.BadParameter(f"{text!r} is no place (write Europe, Europe/DE or Europe/DE/Berlin)")
    continent, country, city = (*parts, "", "")[:3]
    return Place(continent=continent, country=country, city=city)


def port_range(text: Any) -> PortRange:
    """Public ports, from text such as "20000-20999"."""
    first, _, last = str(text).partition("-")
    if not (first.isdecimal() and last.isdecimal() and 1 <= int(first) <= int(last) <= 65535):
        raise typer.BadParameter(f"{text!r} is no range of ports (write 20000-20999)")
    return PortRange(first=int(first), last=int(last))


HomeOption: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        "--home",
        metavar="DIR",
        help="Directory of key, ledger and socket.",
        show_default="DMS_HOME, else the user's data directory",
    ),
]
MachineOption: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--machine",
        metavar="FILE",
        help="A JSON description that replaces the measured hardware (`-`: standard input), remembered in the home "
        "directory; `measured` goes back to the hardware.",
    ),
]
JSONOption: TypeAlias = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
DebugOption: TypeAlias = Annotated[bool, typer.Option("--debug", help="Show the traceback of a failure.")]
FullOption: TypeAlias = Annotated[bool, typer.Option("--full", help="Show lease ids and peer ids in full.")]
AddressArgument: TypeAlias = Annotated[
    str,
    typer.Argument(metavar="PEER", help="Its address (ends in /p2p/PEER_ID), or the start of a known peer's id."),
]
OptionalPeer: TypeAlias = Annotated[
    str | None, typer.Argument(metavar="[PEER]", help="The peer, as an address or the start of a known id.")
]
LeaseArguments: TypeAlias = Annotated[
    list[str],
    typer.Argument(metavar="[PEER] LEASE", help="The lease, by its id or the start of one that `leases` shows."),
]
OptionalCPU: TypeAlias = Annotated[
    Cores | None, typer.Option("--cpu", parser=cores, metavar="CORES", help="Cores, such as 2 or 0.5.")
]
OptionalRAM: TypeAlias = Annotated[int | None, typer.Option("--ram", parser=size, metavar="SIZE", help="Such as 4GiB.")]
OptionalDisk: TypeAlias = Annotated[
    int | None, typer.Option("--disk", parser=size, metavar="SIZE", help="Such as 10GiB.")
]


def lease_at(words: list[str]) -> tuple[str | None, str]:
    """The peer, if one is named, and the lease of `[PEER] LEASE`."""
    if not 1 <= len(words) <= 2:
        raise typer.BadParameter("give one lease: [PEER] LEASE")
    return (words[0], words[1]) if len(words) == 2 else (None, words[0])


def token_in(path: Any) -> bytes:
    """The token in a file. Raises PeerError `bad_token_file`."""
    from ..token_files import read_token_file

    return read_token_file(Path(str(path)))


TokenOption: TypeAlias = Annotated[
    bytes | None,
    typer.Option(
        "--token",
        parser=token_in,
        metavar="FILE",
        help="Token to show where the provider requires one (docs/access.md).",
    ),
]
FenceOption: TypeAlias = Annotated[
    int | None,
    typer.Option("--fence", min=0, metavar="NUMBER", help="The lease's fencing number: refuse if it is another."),
]
GPUDemandOption: TypeAlias = Annotated[
    list[GPUDemand] | None,
    typer.Option("--gpu", parser=gpu_demand, metavar="VRAM", help="A GPU with at least this VRAM (repeatable)."),
]
PortOption: TypeAlias = Annotated[
    list[int] | None,
    typer.Option("--port", min=1, max=65535, metavar="PORT", help="A certain public port (repeatable)."),
]
PortCountOption: TypeAlias = Annotated[
    int, typer.Option("--ports", min=0, max=MAX_PORTS, metavar="N", help="Number of public ports (any).")
]
ExecutorOption: TypeAlias = Annotated[
    list[str] | None,
    typer.Option("--executor", metavar="NAME", help="Executor that the job needs, such as docker (repeatable)."),
]
PlaceOption: TypeAlias = Annotated[
    list[Place] | None,
    typer.Option(
        "--location",
        parser=parse_place,
        metavar="PLACE",
        help="Where it may run, such as Europe/DE (repeatable).",
    ),
]
NotLocationOption: TypeAlias = Annotated[
    list[Place] | None,
    typer.Option("--not-location", parser=parse_place, metavar="PLACE", help="Where it may not run (repeatable)."),
]
