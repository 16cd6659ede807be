"""Options that say where peers are looked for, of all commands that look for some."""

from __future__ import annotations

from typing import Annotated, TypeAlias

import typer

from ...discovery.settings import DiscoverySettings

__all__ = [
    "BootstrapOption",
    "DHTOption",
    "ExchangeOption",
    "GossipOption",
    "KnownOption",
    "MDNSOption",
    "discovery_settings",
]

BootstrapOption: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        "--bootstrap",
        metavar="MULTIADDR",
        help="A peer to begin with; ends in /p2p/PEER_ID; may be repeated.",
        show_default="the peers that answered before, and the local network",
    ),
]
KnownOption: TypeAlias = Annotated[
    bool, typer.Option("--known/--no-known", help="Use and remember the peers that answered before.")
]
ExchangeOption: TypeAlias = Annotated[
    bool, typer.Option("--exchange/--no-exchange", help="Exchange signed adverts with connected peers.")
]
MDNSOption: TypeAlias = Annotated[bool, typer.Option("--mdns/--no-mdns", help="Look on the local network, by mDNS.")]
DHTOption: TypeAlias = Annotated[bool, typer.Option("--dht/--no-dht", help="Look in the Kademlia DHT.")]
GossipOption: TypeAlias = Annotated[
    bool, typer.Option("--gossip/--no-gossip", help="Pass adverts and broadcast requests on, over gossipsub.")
]


def discovery_settings(
    bootstrap: list[str] | None, *, known: bool, exchange: bool, mdns: bool, dht: bool, gossip: bool
) -> DiscoverySettings:
    """The settings that these options mean."""
    return DiscoverySettings(
        bootstrap=tuple(bootstrap or ()), known=known, exchange=exchange, mdns=mdns, dht=dht, gossip=gossip
    )
