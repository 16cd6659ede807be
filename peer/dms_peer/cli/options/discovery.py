"""Options of all commands that find peers: which sources they use."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeAlias

import typer

if TYPE_CHECKING:
    from ...discovery.settings import DiscoverySettings
    from ...home.home import Home

__all__ = [
    "BootstrapOption",
    "DHTSetting",
    "ExchangeSetting",
    "GossipSetting",
    "KnownSetting",
    "MDNSSetting",
    "chosen_sources",
    "discovery_settings",
]

BootstrapOption: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        "--bootstrap",
        metavar="MULTIADDR",
        help="Address of a bootstrap peer, ending in /p2p/PEER_ID (repeatable).",
        show_default="the peers that answered before, and the local network",
    ),
]
_KNOWN: Final[Any] = typer.Option("--known/--no-known", help="Use and remember the peers that answered before.")
_EXCHANGE: Final[Any] = typer.Option("--exchange/--no-exchange", help="Exchange signed adverts with connected peers.")
_MDNS: Final[Any] = typer.Option("--mdns/--no-mdns", help="Find peers on the local network by mDNS.")
_DHT: Final[Any] = typer.Option("--dht/--no-dht", help="Find peers in the Kademlia DHT.")
_GOSSIP: Final[Any] = typer.Option("--gossip/--no-gossip", help="Pass adverts and broadcast requests on, by gossipsub.")

# None leaves the choice to the configuration of the home.
KnownSetting: TypeAlias = Annotated[bool | None, _KNOWN]
ExchangeSetting: TypeAlias = Annotated[bool | None, _EXCHANGE]
MDNSSetting: TypeAlias = Annotated[bool | None, _MDNS]
DHTSetting: TypeAlias = Annotated[bool | None, _DHT]
GossipSetting: TypeAlias = Annotated[bool | None, _GOSSIP]


def chosen_sources(
    bootstrap: list[str] | None,
    *,
    known: bool | None,
    exchange: bool | None,
    mdns: bool | None,
    dht: bool | None,
    gossip: bool | None,
) -> dict[str, Any]:
    """The settings that these options choose, by their path in the configuration. Empty if there is no such option."""
    flags = {"known": known, "exchange": exchange, "mdns": mdns, "dht": dht, "gossip": gossip}
    chosen: dict[str, Any] = {"discovery.bootstrap": bootstrap} if bootstrap else {}
    return chosen | {f"discovery.{name}": flag for name, flag in flags.items() if flag is not None}


def discovery_settings(home: Home, chosen: dict[str, Any]) -> DiscoverySettings:
    """The section `discovery` of the home's configuration, overridden by the `chosen` options.

    Raises DocumentError for a section with an error. Blocks on disk.
    """
    # It loads libp2p, which a command that asks the running peer does not need.
    from ...config.sources import ConfigSources

    return ConfigSources(home.path, os.environ, None, chosen).discovery()
