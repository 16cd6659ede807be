"""dms-peer reserve"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..options.common import DebugOption, HomeOption, JSONOption, TokenOption, home_at, time_to_live
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
from ..output import print_json

if TYPE_CHECKING:
    from ...requesting.progress import OnProgress
    from ...requesting.reports import Reserved

__all__ = ["reserve"]


def reserve(
    file: Annotated[Path, typer.Option("-f", "--file", metavar="FILE", help="The ensemble file.")],
    command: Annotated[
        list[str] | None, typer.Argument(metavar="[-- COMMAND ...]", help="Command to run while the nodes are held.")
    ] = None,
    strategy: Annotated[
        str,
        typer.Option("--strategy", metavar="NAME", help="cheapest, tightest, spread, nearest, random, or your own."),
    ] = "cheapest",
    currency: Annotated[
        str,
        typer.Option(
            "--currency", metavar="NAME", help="Preferred currency; bids in others rank last.", show_default="any"
        ),
    ] = "",
    ttl: Annotated[
        float,
        typer.Option("--ttl", parser=time_to_live, metavar="TIME", help="Commitment time; renewed automatically."),
    ] = 60.0,
    timeout: Annotated[
        float, typer.Option("--timeout", parser=time_to_live, metavar="TIME", help="Longest time to search.")
    ] = 30.0,
    wait: Annotated[bool, typer.Option("--wait", help="Search until the timeout, even when nobody bids.")] = False,
    allocate: Annotated[bool, typer.Option("--allocate", help="Allocate the nodes before the command runs.")] = False,
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
    """Take all nodes of an ensemble file or none, run a command while they are held, and give them back.

    The command finds the ids in its environment: DMS_ENSEMBLE_ID, DMS_NODE_IDS, DMS_LEASE_IDS and DMS_PEER_IDS, in the
    order of the nodes, and everything as JSON in DMS_RESERVATION. Without a command they are held until Ctrl-C. Ends
    with the command's exit code, with 3 when the peers did not take the nodes, or with 1 when the nodes were lost,
    which ends the command.

    Example: dms-peer reserve -f ensemble.yaml --allocate -- ./train.sh
    """
    from ...config.ensemble import read_ensemble_file
    from ...telemetry.logs import show_warnings
    from ..child_process import check_command
    from ..event_loop import run_async
    from ..peer_reservation import hold_in_peer
    from ..tables.search import show_reserved, watched_progress

    show_warnings()
    chosen = chosen_sources(bootstrap, known=known, exchange=exchange, mdns=mdns, dht=dht, gossip=gossip)
    place, ensemble = home_at(home), read_ensemble_file(file)

    def hold(show: Callable[[Reserved], None], on_progress: OnProgress | None = None) -> int:
        options: dict[str, Any] = {
            "strategy": strategy, "currency": currency, "ttl": ttl, "timeout": timeout, "wait": wait,
            "allocate": allocate, "token": token, "tell": show, "on_progress": on_progress,
        }  # fmt: skip
        words = tuple(command or ())
        # The running peer searches with its own settings. Others need a host of the command's own.
        if not chosen:
            check_command(words)
            code = run_async(partial(hold_in_peer, place, ensemble, words, **options))
            if code is not None:
                return code
        from ..search import hold_ensemble

        return run_async(partial(hold_ensemble, place, discovery_settings(place, chosen), ensemble, words, **options))

    if as_json:
        return hold(print_json)
    with watched_progress() as on_progress:
        return hold(partial(show_reserved, out=sys.stderr), on_progress)
