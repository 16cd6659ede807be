"""The sources that are used, and the cost that each may have."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    # Commands read settings before they load libp2p, which the connections come with.
    from ..connections.limits import ConnectionLimits
    from .gossip.limits import GossipLimits

__all__ = ["DiscoverySettings"]


@dataclass(frozen=True, slots=True)
class DiscoverySettings:
    """Where peers are looked for; each source can be switched off. Times in seconds.

    `bootstrap` are addresses (multiaddrs that end in /p2p/PEER_ID) of peers to begin with. `gossip` carries signed
    adverts and the broadcast requests, `exchange` asks connected peers for the adverts that they hold.
    """

    bootstrap: tuple[str, ...] = ()
    known: bool = True
    exchange: bool = True
    mdns: bool = True
    dht: bool = True
    gossip: bool = False
    broadcast: bool = True
    max_known_peers: int = 4096
    """Peers that are remembered; the least recently seen is forgotten first."""
    max_adverts: int = 1024
    """Adverts of others that are kept."""
    advert_interval: float = 60.0
    """How often this peer advertises in a small network; in a large one less often."""
    advert_ttl: float = 600.0
    """How long an advert holds in a small network; in a large one longer."""
    bootstrap_interval: float = 30.0
    """How often it is looked whether enough peers are connected."""
    connection_limits: ConnectionLimits | None = None
    gossip_limits: GossipLimits | None = None
