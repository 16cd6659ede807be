"""What a peer of the DHT keeps for others: near peers, and the providers of classes.

What breaks in the library's tables: peers enter the routing table because another peer named them, or because they
queried (even a short-lived requester), and each costs others a failed dial. Provider records live for two days, under
any number of keys, and the first twenty providers of a key keep out all later ones.
Measure: `ProvenTable` accepts peers that agreed to speak the protocol, or reported it on a connection.
`ProviderRecords` keeps only records of capability classes, for little longer than they are announced, the newest first,
and answers with a random choice.
Upstream: no upstream report found (November 2026).
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Any, Final, cast

from libp2p.abc import IHost
from libp2p.kad_dht.provider_store import ProviderStore
from libp2p.kad_dht.routing_table import KBucket, RoutingTable
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import PeerInfo

from dms_protocols.adverts.classes import CLASSES
from dms_resources.bounded_dict import BoundedDict

from .host_view import KademliaHost

__all__ = ["RECORD_TTL", "ProvenTable", "ProviderRecords"]

RECORD_TTL: Final = 3600.0
"""Seconds for which a provider record is kept. Providers announce them twice as often."""

_MOST_PROVIDERS: Final = 256
_MOST_ANSWERED: Final = 60
_MOST_ADDRESSES: Final = 8
_KEYS: Final = frozenset(one.key for one in CLASSES)


class ProvenTable(RoutingTable):
    """The routing table. Only `admit` adds a peer."""

    def __init__(self, host: KademliaHost) -> None:
        super().__init__(host.get_id(), cast(IHost, host))

    async def add_peer(self, peer_obj: PeerInfo | ID, *, skip_server_mode_check: bool = False) -> bool:
        """Add no peer, because being named, or querying, proves nothing."""
        return False

    async def admit(self, peer: PeerInfo) -> bool:
        """Add a peer that speaks the protocol, or note that it still does.

        False if its place is taken: by earlier peers, as long as they answer, or by other peers of its own network.
        """
        bucket = self.find_bucket(peer.peer_id)
        while self._is_full(bucket, peer.peer_id) and self._should_split_bucket(bucket) and self._split_bucket(bucket):
            bucket = self.find_bucket(peer.peer_id)
        if self._is_full(bucket, peer.peer_id):
            # The library would query it now. Here all peers are queried often enough, and removed if they do not
            # answer.
            return False
        return await super().add_peer(peer, skip_server_mode_check=True)

    @staticmethod
    def _is_full(bucket: KBucket, peer_id: ID) -> bool:
        return bucket.size() >= bucket.bucket_size and not bucket.has_peer(peer_id)


class ProviderRecords(ProviderStore):
    """The providers of each class. Times are Unix seconds."""

    def __init__(self, host: KademliaHost, peer_routing: Any, clock: Callable[[], float] = time.time) -> None:
        super().__init__(cast(IHost, host), peer_routing)
        self._clock = clock
        self._records: dict[bytes, BoundedDict[ID, tuple[PeerInfo, float]]] = {}

    def add_provider(self, key: bytes, provider: PeerInfo) -> None:
        """Keep a record. Records with another kind of key are ignored; of too many records the oldest is dropped."""
        if key not in _KEYS:
            return
        records = self._records.setdefault(key, BoundedDict(_MOST_PROVIDERS))
        kept = PeerInfo(provider.peer_id, provider.addrs[:_MOST_ADDRESSES])
        records[provider.peer_id] = (kept, self._clock() + RECORD_TTL)

    def get_providers(self, key: bytes) -> list[PeerInfo]:
        """A random choice of the providers of a class, so that not all requesters query the same ones."""
        records, now = self._records.get(key), self._clock()
        if records is None:
            return []
        # They are in the order of their age: a record becomes the newest when its provider announces it again.
        records.drop_oldest_while(lambda record: record[1] <= now)
        alive = [provider for provider, _ in records.values()]
        return random.sample(alive, min(len(alive), _MOST_ANSWERED))

    def size(self) -> int:
        """The number of records."""
        return sum(map(len, self._records.values()))
