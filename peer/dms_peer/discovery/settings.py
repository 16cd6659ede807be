"""The sources that are used, and the limits of each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    # Commands read settings before they load libp2p, which the connections need.
    from ..connections.limits import ConnectionLimits
    from .gossip.limits import GossipLimits

__all__ = ["DiscoverySettings"]


@dataclass(frozen=True, slots=True)
class DiscoverySettings:
    """The ways in which peers are found. Each source can be switched off. Times are in seconds.

    `bootstrap` are addresses (multiaddrs that end in /p2p/PEER_ID) of the first peers to connect to. `gossip` carries
    signed adverts and broadcast requests. `exchange` queries connected peers for the adverts that they hold.
    """

    bootstrap: tuple[str, ...] = ()
    known: bool = True
    exchange: bool = True
    mdns: bool = True
    dht: bool = True
    gossip: bool = False
    broadcast: bool = True
    max_known_peers: int = 4096
    """Peers that are remembered. The least recently seen is forgotten first."""
    max_adverts: int = 1024
    """Adverts of others that are kept."""
    advert_interval: float = 60.0
    """How often this peer advertises in a small network; less often in a large one."""
    advert_ttl: float = 600.0
    """How long an advert is valid in a small network; longer in a large one."""
    bootstrap_interval: float = 30.0
    """How often the number of connected peers is checked."""
    connection_limits: ConnectionLimits | None = None
    gossip_limits: GossipLimits | None = None
