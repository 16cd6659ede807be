"""dms-peer onboard"""

from __future__ import annotations

import sys
from typing import Annotated

import typer
from msgspec.structs import replace

from dms_resources.components import DEFAULT_PORT_RANGE, PortRange
from dms_resources.errors import AmountError

from ...home.home import Home
from ...owner.offers import GPUChoice, Offer
from ..options.common import (
    DebugOption,
    HomeOption,
    JSONOption,
    MachineOption,
    OptionalCPU,
    OptionalDisk,
    OptionalRAM,
    duration,
    gpu_choice,
    home_at,
    port_range,
)
from ..output import say, show_answer

__all__ = ["onboard"]


def onboard(
    cpu: OptionalCPU = None,
    ram: OptionalRAM = None,
    disk: OptionalDisk = None,
    gpu: Annotated[
        list[GPUChoice] | None,
        typer.Option(
            "--gpu",
            parser=gpu_choice,
            metavar="GPU",
            help="all, none, or an index or uuid, with :VRAM for a part of it; may be repeated.",
            show_default="none",
        ),
    ] = None,
    ports: Annotated[
        PortRange | None,
        typer.Option(
            "--ports",
            parser=port_range,
            metavar="FIRST-LAST",
            help="Public ports that jobs may be given.",
            show_default=f"{DEFAULT_PORT_RANGE.first}-{DEFAULT_PORT_RANGE.last}",
        ),
    ] = None,
    window: Annotated[
        list[str] | None,
        typer.Option(
            "--window",
            help='When capacity may be promised, such as "mon-fri 18:00-08:00" or "until 2030-01-01T18:00"; '
            "may be repeated.",
            show_default="always",
        ),
    ] = None,
    hold: Annotated[
        float | None,
        typer.Option(
            "--hold",
            parser=duration,
            metavar="SECONDS",
            help="How long a bid may hold what it offers, when its requester asks for it.",
            show_default="0, no holds",
        ),
    ] = None,
    keep: Annotated[
        float,
        typer.Option("--headroom", min=0, max=90, metavar="PERCENT", help="Share of it all that is never promised."),
    ] = 0.0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be offered.")] = False,
    home: HomeOption = None,
    machine: MachineOption = None,
    as_json: JSONOption = False,
    debug: DebugOption = False,
) -> None:
    """Offer a part of this machine to the network, whether the peer runs or not.

    Without --cpu, --ram and --disk it proposes amounts and asks.

    Example: dms-peer onboard --cpu 4 --ram 8GiB --disk 100GiB --gpu all
    """
    from ...owner.client import onboard_resources
    from ..tables.owner import show_offer, show_proposed_offer

    place = home_at(home)
    if cpu is None and ram is None and disk is None and not gpu and sys.stdin.isatty() and not as_json:
        amounts = _ask(place, machine)
    elif cpu is None or ram is None or disk is None:
        raise typer.BadParameter("--cpu, --ram and --disk are all needed where nobody can be asked")
    else:
        amounts = Offer(cpu=cpu, ram=ram, disk=disk, gpus=_choices(gpu or []))
    offer = replace(
        amounts,
        port_range=ports or DEFAULT_PORT_RANGE,
        windows=tuple(window or ()),
        hold=hold or 0.0,
        headroom=round(keep * 10),
    )
    show = show_proposed_offer if dry_run else show_offer
    show_answer(as_json, show, onboard_resources(place, offer, machine, dry_run=dry_run))


def _ask(home: Home, machine: str | None) -> Offer:
    from ...owner.client import read_machine_of
    from ...owner.proposals import questions, settle
    from ..tables.machine import show_hardware

    measured = read_machine_of(home, machine)
    show_hardware(measured)
    answers = {}
    for question in questions(measured):
        while question.name not in answers:
            try:
                answers[question.name] = question.read(typer.prompt(question.text, default=question.proposed))
            except AmountError as error:
                say(error.message, sys.stderr)
    typer.confirm("Offer this to the network?", default=True, abort=True)
    return settle(answers)


def _choices(choices: list[GPUChoice]) -> tuple[GPUChoice, ...]:
    none = GPUChoice(device="none")
    if none in choices and len(choices) > 1:
        raise typer.BadParameter("--gpu none stands alone")
    return tuple(choice for choice in choices if choice != none)
