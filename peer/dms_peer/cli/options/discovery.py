"""Options of all commands that find peers: which sources they use."""

from __future__ import annotations

from typing import Annotated, Any, Final, TypeAlias

import typer

from ...discovery.settings import DiscoverySettings

__all__ = [
    "BootstrapOption",
    "DHTOption",
    "DHTSetting",
    "ExchangeOption",
    "ExchangeSetting",
    "GossipOption",
    "GossipSetting",
    "KnownOption",
    "KnownSetting",
    "MDNSOption",
    "MDNSSetting",
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

KnownOption: TypeAlias = Annotated[bool, _KNOWN]
ExchangeOption: TypeAlias = Annotated[bool, _EXCHANGE]
MDNSOption: TypeAlias = Annotated[bool, _MDNS]
DHTOption: TypeAlias = Annotated[bool, _DHT]
GossipOption: TypeAlias = Annotated[bool, _GOSSIP]
# The same for `run`, whose configuration file decides if the option is not given.
KnownSetting: TypeAlias = Annotated[bool | None, _KNOWN]
ExchangeSetting: TypeAlias = Annotated[bool | None, _EXCHANGE]
MDNSSetting: TypeAlias = Annotated[bool | None, _MDNS]
DHTSetting: TypeAlias = Annotated[bool | None, _DHT]
GossipSetting: TypeAlias = Annotated[bool | None, _GOSSIP]


def discovery_settings(
    bootstrap: list[str] | None, *, known: bool, exchange: bool, mdns: bool, dht: bool, gossip: bool
) -> DiscoverySettings:
    """The settings from these options."""
    return DiscoverySettings(
        bootstrap=tuple(bootstrap or ()), known=known, exchange=exchange, mdns=mdns, dht=dht, gossip=gossip
    )
