"""Options for whoever operates a peer: who may connect, through whom, and what is told of its work."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import typer

__all__ = [
    "AllowAddressOption",
    "AllowPeerOption",
    "DenyAddressOption",
    "DenyPeerOption",
    "LimitsOption",
    "LogJSONOption",
    "LogLevel",
    "LogLevelOption",
    "MetricsOption",
    "RelayOption",
    "ReserveAtOption",
    "metrics_address",
]


class LogLevel(Enum):
    """From which importance on something is logged."""

    ERROR = "error"
    WARNING = "warning"
    INFO = "info"
    DEBUG = "debug"


def metrics_address(text: Any) -> str:
    """Where metrics are served, from text such as "9464" or "127.0.0.1:9464"."""
    host, _, port = str(text).rpartition(":")
    if not port.isdecimal() or int(port) > 65535:
        raise typer.BadParameter(f"{text!r} is no port (write 9464, or 127.0.0.1:9464)")
    return f"{host.strip('[]')}:{port}"


AllowPeerOption: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        "--allow-peer",
        metavar="PEER_ID",
        help="Only such peers may connect; may be repeated.",
        show_default="everybody",
        rich_help_panel="Who may connect",
    ),
]
DenyPeerOption: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        "--deny-peer",
        metavar="PEER_ID",
        help="Such peers may not connect; may be repeated.",
        rich_help_panel="Who may connect",
    ),
]
AllowAddressOption: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        "--allow-address",
        metavar="RANGE",
        help="Only from there, such as 192.0.2.0/24; may be repeated.",
        show_default="everywhere",
        rich_help_panel="Who may connect",
    ),
]
DenyAddressOption: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        "--deny-address",
        metavar="RANGE",
        help="Not from there; may be repeated.",
        rich_help_panel="Who may connect",
    ),
]
RelayOption: TypeAlias = Annotated[
    bool, typer.Option("--relay", help="Carry connections of peers that cannot be reached in person.")
]
ReserveAtOption: TypeAlias = Annotated[
    list[str] | None,
    typer.Option("--reserve-at", metavar="MULTIADDR", help="A relay through which to be reached; may be repeated."),
]
MetricsOption: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--metrics",
        parser=metrics_address,
        metavar="[HOST:]PORT",
        help="Where Prometheus fetches metrics; on loopback unless a host is named.",
        show_default="nowhere",
    ),
]
LimitsOption: TypeAlias = Annotated[
    Path | None,
    typer.Option("--limits", metavar="FILE", help="Bounds other than the usual ones; see docs/limits.md."),
]
LogLevelOption: TypeAlias = Annotated[LogLevel, typer.Option("--log-level", help="What is logged on stderr.")]
LogJSONOption: TypeAlias = Annotated[
    bool, typer.Option("--log-json", help="Log JSON objects instead of key=value, one line each.")
]
