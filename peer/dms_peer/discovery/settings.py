"""Which sources are used, and what each may cost."""

from __future__ import annotations

from dataclasses import dataclass

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
    max_adverts: int = 1024
    advert_interval: float = 60.0
    advert_ttl: float = 600.0
    bootstrap_interval: float = 30.0
