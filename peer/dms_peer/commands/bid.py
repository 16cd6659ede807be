"""dms-peer bid"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dms_resources.demands import CPUDemand, Demand, DiskDemand, GPUDemand, RAMDemand

from .options import (
    AddressArgument,
    CPUOption,
    DebugOption,
    DiskOption,
    HomeOption,
    JSONOption,
    RAMOption,
    duration,
    gpu_demand,
    home_at,
)
from .output import run_and_show

__all__ = ["bid"]


def bid(
    address: AddressArgument,
    cpu: CPUOption,
    ram: RAMOption,
    disk: DiskOption,
    gpu: Annotated[
        list[GPUDemand] | None,
        typer.Option("--gpu", parser=gpu_demand, metavar="VRAM", help="A GPU with so much VRAM; may be repeated."),
    ] = None,
    hold: Annotated[
        float | None,
        typer.Option(
            "--hold", parser=duration, metavar="SECONDS", help="Ask that the offer be held.", show_default="0, no hold"
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only ask: would you, and if not, why not?")] = False,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FILE", help="Where to put the signed bid.")
    ] = None,
    home: HomeOption = None,
    as_json: JSONOption = False,
    debug: DebugOption = False,
) -> None:
    """Ask another peer for a bid on a job."""
    if dry_run and output is not None:
        raise typer.BadParameter("a dry run makes no bid that could be written with -o")
    from ..errands import ask_bid
    from ..tables import show_bid

    demand = Demand(
        cpu=CPUDemand(cores=cpu), ram=RAMDemand(size=ram), disk=DiskDemand(size=disk), gpus=tuple(gpu or ())
    )
    run_and_show(
        as_json, show_bid, ask_bid, home_at(home), address, demand, dry_run=dry_run, hold=hold or 0.0, output=output
    )
