"""dms-peer onboard"""

from __future__ import annotations

from typing import Annotated

import typer

from dms_resources.components import DEFAULT_PORT_RANGE, PortRange

from ..offers import GPUChoice, Offer
from .options import (
    CPUOption,
    DebugOption,
    DiskOption,
    HomeOption,
    JSONOption,
    MachineOption,
    RAMOption,
    duration,
    gpu_choice,
    home_at,
    port_range,
)
from .output import run_and_show

__all__ = ["onboard"]


def onboard(
    cpu: CPUOption,
    ram: RAMOption,
    disk: DiskOption,
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
    home: HomeOption = None,
    machine: MachineOption = None,
    as_json: JSONOption = False,
    debug: DebugOption = False,
) -> None:
    """Offer a part of this machine to the network, whether the peer runs or not."""
    from ..owner import onboard as offer_resources
    from ..tables import show_offer

    offer = Offer(
        cpu=cpu,
        ram=ram,
        disk=disk,
        gpus=_choices(gpu or []),
        port_range=ports or DEFAULT_PORT_RANGE,
        windows=tuple(window or ()),
        hold=hold or 0.0,
    )
    run_and_show(as_json, show_offer, offer_resources, home_at(home), offer, machine)


def _choices(choices: list[GPUChoice]) -> tuple[GPUChoice, ...]:
    none = GPUChoice(device="none")
    if none in choices and len(choices) > 1:
        raise typer.BadParameter("--gpu none stands alone")
    return tuple(choice for choice in choices if choice != none)
