"""dms-peer discover"""

from __future__ import annotations

from functools import partial
from typing import Annotated

import typer

from ..options.common import (
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
    home_at,
    time_to_live,
)
from ..options.demand import FileOption, asked_ensemble
from ..options.discovery import (
    BootstrapOption,
    DHTOption,
    ExchangeOption,
    GossipOption,
    KnownOption,
    MDNSOption,
    discovery_settings,
)
from ..output import print_json, show_answer

__all__ = ["discover"]


def discover(
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
    count: Annotated[
        int | None,
        typer.Option("--count", min=1, metavar="N", help="Stop when so many would take it.", show_default="all"),
    ] = None,
    timeout: Annotated[
        float, typer.Option("--timeout", parser=time_to_live, metavar="TIME", help="How long to look at most.")
    ] = 15.0,
    bootstrap: BootstrapOption = None,
    known: KnownOption = True,
    exchange: ExchangeOption = True,
    mdns: MDNSOption = True,
    dht: DHTOption = True,
    gossip: GossipOption = False,
    token: TokenOption = None,
    home: HomeOption = None,
    as_json: JSONOption = False,
    debug: DebugOption = False,
) -> int:
    """Find peers that would take a job now, and what they have free.

    Ends with exit code 3 when fewer than --count peers, or none at all, would take it. With --json there is a line for
    each peer that answered, and a last one.
    """
    from ...requesting import SearchProgress
    from ...telemetry.logs import show_warnings
    from ..event_loop import run_async
    from ..reports import FoundRow
    from ..search import search_peers
    from ..tables.search import search_view, show_found

    show_warnings()
    ensemble = asked_ensemble(
        file, cpu=cpu, ram=ram, disk=disk, gpu=gpu, port=port, ports=ports, executor=executor, location=location,
        not_location=not_location,
    )  # fmt: skip
    settings = discovery_settings(bootstrap, known=known, exchange=exchange, mdns=mdns, dht=dht, gossip=gossip)
    look = partial(search_peers, home_at(home), settings, ensemble, count=count, timeout=timeout, token=token)
    if as_json:

        def print_row(row: FoundRow, progress: SearchProgress) -> None:
            print_json(row)

        found = run_async(partial(look, tell=print_row))
    else:
        with search_view() as view:
            found = run_async(partial(look, tell=view.found, on_progress=view.progress))
    show_answer(as_json, show_found, found)
    return 0 if found.able >= (count or 1) else 3
