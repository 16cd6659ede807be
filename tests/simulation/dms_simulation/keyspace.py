"""The DHT of a population, as a model: the routing tables, and which peers keep which provider records.

Modelled: a routing table has up to twenty peers for each length of common prefix (Kademlia's k-buckets), chosen from
those that were there when the entry was last verified, some time within the last twenty minutes: entries die as peers
leave. Real: `ProviderRecords`, and the messages, which `answer` receives and returns as bytes.
"""

from __future__ import annotations

import hashlib
import random
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, cast

from libp2p.kad_dht.pb.kademlia_pb2 import Message
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import PeerInfo
from multiaddr import Multiaddr  # type: ignore[import-untyped]  # it has no types

from dms_peer.discovery.dht.lookup import WIDTH
from dms_peer.discovery.dht.tables import ProviderRecords
from dms_protocols.adverts.classes import CapabilityClass

from .population import Population
from .scheduling import EPOCH

__all__ = ["Keyspace"]

_BITS: Final = 256
_BUCKET: Final = 20
# Seconds: how often each entry of a table is queried, in walks of its owner.
_VERIFIED: Final = 1200.0
_NEAREST: Final = 20


@dataclass(frozen=True, slots=True)
class _Own:
    """The part of a host that `ProviderRecords` needs."""

    peer_id: ID

    def get_id(self) -> ID:
        return self.peer_id


class Keyspace:
    """The places of the members of a population in the DHT. `now` is always in seconds of virtual time."""

    def __init__(self, population: Population, seed: int) -> None:
        self._members = population.members
        self._seed = seed
        raw = [_raw_id(seed, member.number) for member in self._members]
        self.ids = [ID(one) for one in raw]
        self.names = [one.to_base58() for one in self.ids]
        self.numbers = {name: number for number, name in enumerate(self.names)}
        self.infos = [PeerInfo(one, [_address(number)]) for number, one in enumerate(self.ids)]
        self._keys = [_key(one) for one in raw]
        self._sorted = sorted(range(len(raw)), key=self._keys.__getitem__)
        self._sorted_keys = [self._keys[number] for number in self._sorted]
        self._by_class: dict[bytes, list[int]] = {}
        self._tables: dict[int, tuple[int, list[int]]] = {}
        self._records: dict[int, tuple[float, ProviderRecords]] = {}
        self.stored = 0

    def address(self, number: int) -> str:
        """The address of a member."""
        return f"{self.infos[number].addrs[0]}/p2p/{self.names[number]}"

    # Records

    def holders(self, one: CapabilityClass, now: float) -> Iterator[int]:
        """The members that are there and closest to a class, at which a walk to it ends."""
        if one.key not in self._by_class:
            target = _key(one.key)
            self._by_class[one.key] = sorted(range(len(self._keys)), key=lambda number: self._keys[number] ^ target)
        left = WIDTH
        for number in self._by_class[one.key]:
            if self._members[number].session(now) is not None:
                yield number
                left -= 1
                if not left:
                    return

    def announce(self, provider: int, one: CapabilityClass, now: float) -> int:
        """A member announces a class: its record goes to the closest members. Returns to how many."""
        told = 0
        for number in self.holders(one, now):
            records = self._records_of(number, now)
            if records is not None:
                self._clock = now
                records.add_provider(one.key, self.infos[provider])
                told += 1
        return told

    def _records_of(self, number: int, now: float) -> ProviderRecords | None:
        session = self._members[number].session(now)
        if session is None:
            return None
        held = self._records.get(number)
        if held is None or held[0] != session:
            # What it kept before it left is gone.
            host = cast(Any, _Own(self.ids[number]))
            held = self._records[number] = (session, ProviderRecords(host, None, clock=lambda: EPOCH + self._clock))
        return held[1]

    # Answering

    def answer(self, number: int, raw: bytes, now: float) -> bytes:
        """A member's answer to a message of the DHT."""
        question, answer = Message(), Message()
        question.ParseFromString(raw)
        answer.type, answer.key = question.type, question.key
        self._clock = now
        if question.type == Message.MessageType.GET_PROVIDERS:
            records = self._records_of(number, now)
            for provider in records.get_providers(question.key) if records else ():
                _add(answer.providerPeers, provider)
        for near in self.nearest(number, question.key, now):
            _add(answer.closerPeers, self.infos[near])
        return answer.SerializeToString()

    def nearest(self, number: int, key: bytes, now: float) -> list[int]:
        """The members of a member's routing table that are closest to a key."""
        target, keys = _key(key), self._keys
        return sorted(self._table(number, now), key=lambda one: keys[one] ^ target)[:_NEAREST]

    def _table(self, number: int, now: float) -> list[int]:
        epoch = int(now // _VERIFIED)
        known = self._tables.get(number)
        if known is None or known[0] != epoch:
            known = self._tables[number] = (epoch, list(self._drawn_table(number, epoch, now)))
        return known[1]

    def table_size(self, number: int, now: float) -> int:
        """How many are in a member's routing table."""
        return len(self._table(number, now))

    def _drawn_table(self, number: int, epoch: int, now: float) -> Iterator[int]:
        rng = random.Random(f"table {self._seed} {number} {epoch}")
        session = self._members[number].session(now) or now
        key = self._keys[number]
        for length in range(_BITS):
            first, end = self._range(key ^ (1 << (_BITS - 1 - length)), length + 1)
            chosen = rng.sample(range(first, end), min(end - first, 3 * _BUCKET))
            left = _BUCKET
            for place in chosen:
                other = self._sorted[place]
                seen = max(session, now - rng.random() * _VERIFIED)
                if left and self._members[other].session(seen) is not None:
                    left -= 1
                    yield other
            first, end = self._range(key, length + 1)
            if end - first <= 1:
                return

    def _range(self, key: int, length: int) -> tuple[int, int]:
        """The range, in the order of all keys, of those that begin with the first `length` bits of a key."""
        low = key >> (_BITS - length) << (_BITS - length)
        return bisect_left(self._sorted_keys, low), bisect_left(self._sorted_keys, low + (1 << (_BITS - length)))


def _raw_id(seed: int, number: int) -> bytes:
    # As long as the id of an Ed25519 key.
    return b"\x00\x24\x08\x01\x12\x20" + hashlib.sha256(f"{seed} {number}".encode()).digest()


def _key(raw: bytes) -> int:
    return int.from_bytes(hashlib.sha256(raw).digest())


def _address(number: int) -> Multiaddr:
    # Spread over the address space, because a routing table accepts few peers of one network.
    first, second, third, fourth = hashlib.sha256(b"address %d" % number).digest()[:4]
    return Multiaddr(f"/ip4/{11 + first % 100}.{second}.{third}.{fourth}/tcp/4001")


def _add(peers: Any, info: PeerInfo) -> None:
    peer = peers.add()
    peer.id = info.peer_id.to_bytes()
    peer.addrs.extend(address.to_bytes() for address in info.addrs)
