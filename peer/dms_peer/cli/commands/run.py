"""dms-peer run"""

from __future__ import annotations

from enum import Enum
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from ..options.common import DebugOption, HomeOption, JSONOption, MachineOption, home_at
from ..options.discovery import (
    BootstrapOption,
    DHTOption,
    ExchangeOption,
    GossipOption,
    KnownOption,
    MDNSOption,
    discovery_settings,
)
from ..options.operator import (
    AllowAddressOption,
    AllowPeerOption,
    DenyAddressOption,
    DenyPeerOption,
    LimitsOption,
    LogJSONOption,
    LogLevel,
    LogLevelOption,
    MetricsOption,
    RelayOption,
    ReserveAtOption,
)

__all__ = ["run"]


class GuardChoice(Enum):
    """The settings of the guard."""

    OFF = "off"
    WARN = "warn"
    ENFORCE = "enforce"


def run(
    listen: Annotated[
        list[str] | None,
        typer.Option(
            "--listen",
            metavar="MULTIADDR",
            help="Where to listen, such as /ip4/0.0.0.0/tcp/4001; may be repeated.",
            show_default="all IPv4 addresses, a port of the system's choice that is kept when it can be",
        ),
    ] = None,
    guard: Annotated[
        GuardChoice,
        typer.Option(
            "--guard",
            help="What to do with a promise that the ledger has room for and the machine itself has not now; "
            "`warn` still refuses where the disk is full.",
        ),
    ] = GuardChoice.WARN,
    sample_interval: Annotated[
        float,
        typer.Option("--sample-interval", min=0.5, max=3600, help="Seconds between samples of the machine's use."),
    ] = 5.0,
    terms: Annotated[
        Path | None,
        typer.Option("--terms", metavar="FILE", help="Prices, place, executors and policies; see docs/policies.md."),
    ] = None,
    bootstrap: BootstrapOption = None,
    known: KnownOption = True,
    exchange: ExchangeOption = True,
    mdns: MDNSOption = True,
    dht: DHTOption = True,
    gossip: GossipOption = False,
    access: Annotated[
        Path | None,
        typer.Option("--access", metavar="FILE", help="Who may do what, and how much of it; see docs/access.md."),
    ] = None,
    allow_peer: AllowPeerOption = None,
    deny_peer: DenyPeerOption = None,
    allow_address: AllowAddressOption = None,
    deny_address: DenyAddressOption = None,
    relay: RelayOption = False,
    reserve_at: ReserveAtOption = None,
    metrics: MetricsOption = None,
    limits: LimitsOption = None,
    log_level: LogLevelOption = LogLevel.WARNING,
    log_json: LogJSONOption = False,
    home: HomeOption = None,
    machine: MachineOption = None,
    as_json: JSONOption = False,
    debug: DebugOption = False,
) -> None:
    """Run the peer until it is stopped by SIGTERM or SIGINT (Ctrl-C)."""
    from ...home.host import NetworkSettings
    from ...node import Node, announce, announce_json
    from ...telemetry.logs import write_logs
    from ..event_loop import run_async

    write_logs("debug" if debug else log_level.value, as_json=log_json)
    node = Node(
        home=home_at(home),
        listen=tuple(listen or ()),
        machine=machine,
        guard=guard.value,
        sample_interval=sample_interval,
        terms=terms,
        access=access,
        network=NetworkSettings(
            allow_peers=tuple(allow_peer or ()),
            deny_peers=tuple(deny_peer or ()),
            allow_addresses=tuple(allow_address or ()),
            deny_addresses=tuple(deny_address or ()),
            relay=relay,
            reserve_at=tuple(reserve_at or ()),
        ),
        metrics=metrics,
        limits=limits,
        discovery=discovery_settings(bootstrap, known=known, exchange=exchange, mdns=mdns, dht=dht, gossip=gossip),
    )
    run_async(partial(node.run, announce_json if as_json else announce))
