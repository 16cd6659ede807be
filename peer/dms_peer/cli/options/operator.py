"""Options of `run`: configuration, access to the host, relays, metrics and logs."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Final, TypeAlias

import typer

__all__ = [
    "FILES_PANEL",
    "AllowAddressOption",
    "AllowPeerOption",
    "AnnounceOption",
    "ConfigOption",
    "DenyAddressOption",
    "DenyPeerOption",
    "LimitsOption",
    "LogJSONOption",
    "LogLevel",
    "LogLevelOption",
    "MetricsOption",
    "RelayOption",
    "ReserveAtOption",
    "ShareMachineOption",
    "metrics_address",
]

FILES_PANEL: Final = "Files"
"""The heading above the options that name files of the owner."""
_TELEMETRY: Final = "Metrics and logs"
_CONNECTIONS: Final = "Which peers may connect"


class LogLevel(Enum):
    """The lowest level that is logged."""

    ERROR = "error"
    WARNING = "warning"
    INFO = "info"
    DEBUG = "debug"


def metrics_address(text: Any) -> str:
    """Read HOST:PORT from text such as "9464" or "127.0.0.1:9464"."""
    from ...config.settings import parse_metrics_address

    try:
        return parse_metrics_address(str(text))
    except ValueError as error:
        raise typer.BadParameter(f"{error} (write 9464, or 127.0.0.1:9464)") from None


AllowPeerOption: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        "--allow-peer",
        metavar="PEER_ID",
        help="Allow only this peer to connect (repeatable).",
        show_default="everybody",
        rich_help_panel=_CONNECTIONS,
    ),
]
DenyPeerOption: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        "--deny-peer",
        metavar="PEER_ID",
        help="Refuse connections of this peer (repeatable).",
        rich_help_panel=_CONNECTIONS,
    ),
]
AllowAddressOption: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        "--allow-address",
        metavar="RANGE",
        help="Allow only connections from this range, such as 192.0.2.0/24 (repeatable).",
        show_default="everywhere",
        rich_help_panel=_CONNECTIONS,
    ),
]
DenyAddressOption: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        "--deny-address",
        metavar="RANGE",
        help="Refuse connections from this range (repeatable).",
        rich_help_panel=_CONNECTIONS,
    ),
]
RelayOption: TypeAlias = Annotated[
    bool | None, typer.Option("--relay/--no-relay", help="Carry connections of peers that cannot be dialled.")
]
ShareMachineOption: TypeAlias = Annotated[
    bool | None,
    typer.Option(
        "--share-machine/--no-share-machine",
        help="Run also if the peers of other homes on this machine and this one offer more together than it has.",
        show_default="no",
    ),
]
AnnounceOption: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        "--announce",
        metavar="MULTIADDR",
        help="Tell others this address too, such as /dns4/node.example.org/tcp/4001 of a forwarded port (repeatable).",
    ),
]
ReserveAtOption: TypeAlias = Annotated[
    list[str] | None,
    typer.Option("--reserve-at", metavar="MULTIADDR", help="Be reachable through this relay (repeatable)."),
]
MetricsOption: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--metrics",
        parser=metrics_address,
        metavar="[HOST:]PORT",
        help="Serve metrics for Prometheus here; on loopback by default.",
        show_default="none",
        rich_help_panel=_TELEMETRY,
    ),
]
ConfigOption: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="FILE",
        help="The configuration file; see docs/configuration.md.",
        show_default="DMS_CONFIG, else peer.yaml in the home directory",
        rich_help_panel=FILES_PANEL,
    ),
]
LimitsOption: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        "--limits",
        metavar="FILE",
        help="Limits that differ from the defaults; see docs/limits.md.",
        rich_help_panel=FILES_PANEL,
    ),
]
LogLevelOption: TypeAlias = Annotated[
    LogLevel | None,
    typer.Option(
        "--log-level",
        help="The least level that is logged on stderr.",
        show_default="warning",
        rich_help_panel=_TELEMETRY,
    ),
]
LogJSONOption: TypeAlias = Annotated[
    bool | None,
    typer.Option(
        "--log-json/--no-log-json",
        help="Log JSON objects instead of key=value.",
        show_default="no",
        rich_help_panel=_TELEMETRY,
    ),
]
