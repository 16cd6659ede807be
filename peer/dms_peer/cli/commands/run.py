"""dms-peer run"""

from __future__ import annotations

import os
from enum import Enum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..options.common import DebugOption, HomeOption, JSONOption, MachineOption, home_at
from ..options.discovery import (
    BootstrapOption,
    DHTSetting,
    ExchangeSetting,
    GossipSetting,
    KnownSetting,
    MDNSSetting,
)
from ..options.operator import (
    FILES_PANEL,
    AllowAddressOption,
    AllowPeerOption,
    AnnounceOption,
    ConfigOption,
    DenyAddressOption,
    DenyPeerOption,
    LimitsOption,
    LogJSONOption,
    LogLevelOption,
    MetricsOption,
    RelayOption,
    ReserveAtOption,
    ShareMachineOption,
)

if TYPE_CHECKING:
    from ...home.home import Home
    from ...owner.start_marker import StartMark

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
            help="Listen here, such as /ip4/0.0.0.0/tcp/4001 (repeatable).",
            show_default="all addresses, on a free port that is kept for the next start",
        ),
    ] = None,
    announce_addresses: AnnounceOption = None,
    guard: Annotated[
        GuardChoice | None,
        typer.Option(
            "--guard",
            help="What to do when the ledger has free capacity but the machine does not: enforce refuses what memory, "
            "disk or VRAM lacks now, warn refuses what the disk lacks, off refuses nothing. A busy CPU is only "
            "warned about.",
            show_default="enforce",
        ),
    ] = None,
    sample_interval: Annotated[
        float | None,
        typer.Option(
            "--sample-interval",
            min=0.5,
            max=3600,
            help="Seconds between samples of the machine's use.",
            show_default="5",
        ),
    ] = None,
    share_machine: ShareMachineOption = None,
    terms: Annotated[
        Path | None,
        typer.Option(
            "--terms",
            metavar="FILE",
            help="Prices, location, executors and policies; see docs/policies.md.",
            rich_help_panel=FILES_PANEL,
        ),
    ] = None,
    bootstrap: BootstrapOption = None,
    known: KnownSetting = None,
    exchange: ExchangeSetting = None,
    mdns: MDNSSetting = None,
    dht: DHTSetting = None,
    gossip: GossipSetting = None,
    access: Annotated[
        Path | None,
        typer.Option(
            "--access",
            metavar="FILE",
            help="Which peers may call what, and their shares; see docs/access.md.",
            rich_help_panel=FILES_PANEL,
        ),
    ] = None,
    allow_peer: AllowPeerOption = None,
    deny_peer: DenyPeerOption = None,
    allow_address: AllowAddressOption = None,
    deny_address: DenyAddressOption = None,
    relay: RelayOption = None,
    reserve_at: ReserveAtOption = None,
    metrics: MetricsOption = None,
    limits: LimitsOption = None,
    log_level: LogLevelOption = None,
    log_json: LogJSONOption = None,
    config: ConfigOption = None,
    home: HomeOption = None,
    machine: MachineOption = None,
    as_json: JSONOption = False,
    debug: DebugOption = False,
) -> None:
    """Run the peer until SIGTERM or SIGINT (Ctrl-C) stops it.

    The configuration file (see `dms-peer config`) has the same settings.

    Each option has a variable, such as DMS_PEER_LISTEN for --listen.

    SIGHUP reads terms, access and limits again.

    Example: dms-peer run --listen /ip4/0.0.0.0/tcp/4001
    """
    from ...owner.start_marker import StartMark

    options = {
        "listen": listen,
        "announce": announce_addresses,
        "machine": machine,
        "guard": guard.value if guard else None,
        "sample_interval": sample_interval,
        "share_machine": share_machine,
        "discovery.bootstrap": bootstrap,
        "discovery.known": known,
        "discovery.exchange": exchange,
        "discovery.mdns": mdns,
        "discovery.dht": dht,
        "discovery.gossip": gossip,
        "terms": str(terms) if terms else None,
        "access": str(access) if access else None,
        "limits": str(limits) if limits else None,
        "metrics.address": metrics,
        "logs.level": "debug" if debug else log_level.value if log_level else None,
        "logs.json": log_json,
        "network.allow_peers": allow_peer,
        "network.deny_peers": deny_peer,
        "network.allow_addresses": allow_address,
        "network.deny_addresses": deny_address,
        "network.relay": relay,
        "network.reserve_at": reserve_at,
    }
    where = home_at(home)
    where.prepare()
    # The libraries of the network take seconds to load. From here on, commands report that the peer is starting.
    with StartMark(where.start_path) as mark:
        _run(where, config, options, mark, as_json=as_json)


def _run(home: Home, file: Path | None, options: dict[str, Any], mark: StartMark, *, as_json: bool) -> None:
    from ...config.sources import ConfigSources
    from ...node import Node
    from ...telemetry.logs import write_logs
    from ..announcements import announce, announce_json
    from ..event_loop import run_async

    sources = ConfigSources(home.path, os.environ, file, options)
    loaded = sources.load().config
    write_logs(loaded.logs.level, as_json=loaded.logs.json)
    node = Node.of(home, loaded, lambda: sources.load().config)
    run_async(partial(node.run, announce_json if as_json else announce, mark))
