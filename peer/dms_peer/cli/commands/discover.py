"""dms-peer discover"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Annotated

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
    DHTSetting,
    ExchangeSetting,
    GossipSetting,
    KnownSetting,
    MDNSSetting,
    chosen_sources,
    discovery_settings,
)
from ..output import print_json, show_answer

if TYPE_CHECKING:
    from ...requesting.progress import OnProgress

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
        typer.Option(
            "--count", min=1, metavar="N", help="Stop after this many peers that would take it.", show_default="all"
        ),
    ] = None,
    timeout: Annotated[
        float, typer.Option("--timeout", parser=time_to_live, metavar="TIME", help="Longest time to search.")
    ] = 15.0,
    bootstrap: BootstrapOption = None,
    known: KnownSetting = None,
    exchange: ExchangeSetting = None,
    mdns: MDNSSetting = None,
    dht: DHTSetting = None,
    gossip: GossipSetting = None,
    token: TokenOption = None,
    home: HomeOption = None,
    as_json: JSONOption = False,
    debug: DebugOption = False,
) -> int:
    """Find peers that would take a job now, and show what they have free.

    The running peer of this home searches, where there is one and no source is chosen here. Ends with exit code 3
    when fewer than --count peers (without it: none) would take the job. With --json there is a line for each peer that
    answered, and a last one. Example: dms-peer discover --cpu 2 --ram 4GiB --count 3
    """
    from ...requesting.reports import Found, FoundRow, SearchProgress
    from ...telemetry.logs import show_warnings
    from ..tables.search import search_view, show_found

    show_warnings()
    ensemble = asked_ensemble(
        file, cpu=cpu, ram=ram, disk=disk, gpu=gpu, port=port, ports=ports, executor=executor, location=location,
        not_location=not_location,
    )  # fmt: skip
    chosen = chosen_sources(bootstrap, known=known, exchange=exchange, mdns=mdns, dht=dht, gossip=gossip)
    place = home_at(home)

    def look(tell: Callable[[FoundRow, SearchProgress], None], on_progress: OnProgress | None = None) -> Found:
        # The running peer searches with its own settings. Others need a host of the command's own.
        if not chosen:
            from ..peer_search import search_in_peer

            found = search_in_peer(
                place,
                ensemble.asked(deadline=time.time() + timeout),
                count=count,
                timeout=timeout,
                tell=tell,
                token=token,
            )
            if found is not None:
                return found
        from ..event_loop import run_async
        from ..search import search_peers

        return run_async(
            partial(
                search_peers, place, discovery_settings(place, chosen), ensemble, count=count, timeout=timeout,
                tell=tell, on_progress=on_progress, token=token,
            )
        )  # fmt: skip

    if as_json:
        found = look(lambda row, progress: print_json(row))
    else:
        with search_view() as view:
            found = look(view.found, view.progress)
    show_answer(as_json, show_found, found)
    return 0 if found.able >= (count or 1) else 3
