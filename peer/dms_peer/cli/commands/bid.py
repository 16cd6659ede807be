"""dms-peer bid"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from dms_resources.demands import CPUDemand, Demand, DiskDemand, PortDemand, RAMDemand

from ..options.common import (
    AddressArgument,
    DebugOption,
    ExecutorOption,
    GPUDemandOption,
    HomeOption,
    JSONOption,
    NotLocationOption,
    OptionalCPU,
    OptionalDisk,
    OptionalRAM,
    PlaceOption,
    PortCountOption,
    PortOption,
    TokenOption,
    duration,
    home_at,
)
from ..options.demand import FileOption, asked_node, ensemble_file
from ..output import say, show_answer

__all__ = ["bid"]


def bid(
    address: AddressArgument,
    file: FileOption = None,
    cpu: OptionalCPU = None,
    ram: OptionalRAM = None,
    disk: OptionalDisk = None,
    gpu: GPUDemandOption = None,
    port: PortOption = None,
    ports: PortCountOption = 0,
    executor: ExecutorOption = None,
    location: PlaceOption = None,
    not_location: NotLocationOption = None,
    hold: Annotated[
        float | None,
        typer.Option(
            "--hold", parser=duration, metavar="SECONDS", help="Time to hold the offer.", show_default="0, no hold"
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Query only: no bid is signed or held.")] = False,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FILE", help="File to write the signed bids to.")
    ] = None,
    token: TokenOption = None,
    home: HomeOption = None,
    as_json: JSONOption = False,
    debug: DebugOption = False,
) -> int:
    """Request a bid from a peer for one node, or for the nodes of an ensemble file.

    Ends with exit code 3 when a node is refused. Example: dms-peer bid PEER --cpu 1 --ram 1GiB --disk 1GiB -o bid.cbor
    """
    if dry_run and output is not None:
        raise typer.BadParameter("a dry run signs no bid: leave -o out")
    from ..remote import ask_bid, ask_bids
    from ..tables.bids import show_bid, show_bids

    ensemble = ensemble_file(file, cpu, ram, disk, gpu, port, ports or None, executor, location, not_location)
    if ensemble is not None:
        report = ask_bids(
            home_at(home), address, ensemble, dry_run=dry_run, hold=hold or 0.0, output=output, token=token
        )
        show_answer(as_json, show_bids, report)
        return _tell(report.peer_id, len(report.refusals), len(report.bids))
    if cpu is None or ram is None or disk is None:
        raise typer.BadParameter("give --cpu, --ram and --disk, or -f with an ensemble file")
    demand = Demand(
        cpu=CPUDemand(cores=cpu), ram=RAMDemand(size=ram), disk=DiskDemand(size=disk), gpus=tuple(gpu or ())
    )
    node = asked_node(demand, PortDemand(static=tuple(port or ()), dynamic=ports), executor, location, not_location)
    one = ask_bid(home_at(home), address, node, dry_run=dry_run, hold=hold or 0.0, output=output, token=token)
    show_answer(as_json, show_bid, one)
    return 0


def _tell(peer_id: str, refused: int, bids: int) -> int:
    if not refused:
        return 0
    say(f"dms-peer: {peer_id} refuses {refused} of {refused + bids} nodes", sys.stderr)
    return 3
