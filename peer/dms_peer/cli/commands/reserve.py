"""dms-peer reserve"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from ..options.common import DebugOption, HomeOption, JSONOption, TokenOption, home_at, time_to_live
from ..options.discovery import (
    BootstrapOption,
    DHTOption,
    ExchangeOption,
    GossipOption,
    KnownOption,
    MDNSOption,
    discovery_settings,
)
from ..output import print_json

__all__ = ["reserve"]


def reserve(
    file: Annotated[Path, typer.Option("-f", "--file", metavar="FILE", help="The ensemble file.")],
    command: Annotated[
        list[str] | None, typer.Argument(metavar="[-- COMMAND ...]", help="What to run while it is held.")
    ] = None,
    strategy: Annotated[
        str,
        typer.Option("--strategy", metavar="NAME", help="cheapest, tightest, spread, nearest, random, or your own."),
    ] = "cheapest",
    currency: Annotated[
        str, typer.Option("--currency", metavar="NAME", help="Prices in another one come last.", show_default="any")
    ] = "",
    ttl: Annotated[
        float, typer.Option("--ttl", parser=time_to_live, metavar="TIME", help="Commit for so long, and renew.")
    ] = 60.0,
    timeout: Annotated[
        float, typer.Option("--timeout", parser=time_to_live, metavar="TIME", help="How long to try at most.")
    ] = 30.0,
    wait: Annotated[bool, typer.Option("--wait", help="Try until the timeout, even when nobody bids.")] = False,
    allocate: Annotated[bool, typer.Option("--allocate", help="Allocate the nodes before the command runs.")] = False,
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
    """Take all nodes of an ensemble file or none, run a command while they are held, and give them back.

    The command finds the ids in its environment: DMS_ENSEMBLE_ID, DMS_NODE_IDS, DMS_LEASE_IDS and DMS_PEER_IDS, in the
    order of the nodes, and everything as JSON in DMS_RESERVATION. Without a command they are held until Ctrl-C. Ends
    with the command's exit code, with 3 when the peers did not take the nodes, or with 1 when the nodes were lost,
    which ends the command.
    """
    from ...config.ensemble import read_ensemble_file
    from ...telemetry.logs import show_warnings
    from ..event_loop import run_async
    from ..search import hold_ensemble
    from ..tables.search import show_reserved, watched_progress

    show_warnings()
    settings = discovery_settings(bootstrap, known=known, exchange=exchange, mdns=mdns, dht=dht, gossip=gossip)
    take = partial(
        hold_ensemble, home_at(home), settings, read_ensemble_file(file), tuple(command or ()), strategy=strategy,
        currency=currency, ttl=ttl, timeout=timeout, wait=wait, allocate=allocate,
        token=token,
    )  # fmt: skip
    if as_json:
        return run_async(partial(take, tell=print_json))
    with watched_progress() as on_progress:
        return run_async(partial(take, tell=partial(show_reserved, out=sys.stderr), on_progress=on_progress))
