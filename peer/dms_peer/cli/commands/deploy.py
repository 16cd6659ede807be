"""dms-peer deploy"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Annotated, Any

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
from ..output import comment

__all__ = ["deploy"]


def deploy(
    file: Annotated[
        Path, typer.Option("-f", "--file", metavar="FILE", help="An ensemble file with jobs, or one of the DMS (V1).")
    ],
    detach: Annotated[
        bool, typer.Option("-d", "--detach", help="End when all jobs run, and leave them running.")
    ] = False,
    remove: Annotated[bool, typer.Option("--rm", help="With --detach: release each lease when its job ends.")] = False,
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
    """Take all nodes of an ensemble file, start their jobs everywhere or nowhere, and show their output.

    Ends with the exit code of the worst job: its own, or 128 and the number of its signal. Ctrl-C stops the jobs and
    releases everything. Ends with 3 when the peers did not take the nodes, and with 1 when a job could not be started.
    With --detach the jobs run on until they end or are stopped. Where their providers set a keep-alive, this home's
    running peer renews it; without one they end with it (`renew`). Example: dms-peer deploy -f ensemble.yaml
    """
    from ...config.ensemble import read_ensemble_file

    if remove and not detach:
        raise typer.BadParameter("without --detach everything is released at the end; leave --rm out")
    chosen = chosen_sources(bootstrap, known=known, exchange=exchange, mdns=mdns, dht=dht, gossip=gossip)
    ensemble = read_ensemble_file(file)
    for warning in ensemble.warnings:
        comment(f"{file}: {warning}")
    if not ensemble.jobs:
        raise typer.BadParameter("the file names no jobs: add `jobs`, or hold the nodes with `reserve`")
    place = home_at(home)
    return run_deployment(
        as_json, list(ensemble.jobs), place, discovery_settings(place, chosen), ensemble,
        strategy=strategy, currency=currency, ttl=ttl, timeout=timeout, wait=wait, detach=detach, remove=remove,
        token=token,
    )  # fmt: skip


def run_deployment(as_json: bool, names: list[str], *arguments: Any, **options: Any) -> int:
    """Runs `deploy_ensemble` with what shows its jobs, as JSON or to a person. Returns its exit code."""
    from ...telemetry.logs import show_warnings
    from ..event_loop import run_async
    from ..job_output import JobPrinter, JSONJobs, ShownJobs
    from ..remote_jobs import deploy_ensemble
    from ..tables.search import watched_progress

    show_warnings()
    printer: JobPrinter = JSONJobs() if as_json else ShownJobs(names)
    with nullcontext(None) if as_json else watched_progress() as on_progress:
        run: Callable[[], Any] = partial(deploy_ensemble, printer, *arguments, on_progress=on_progress, **options)
        code: int = run_async(run)
    return code
