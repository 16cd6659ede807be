"""Thousands of peers on one network: a population, its DHT, and links with latencies and losses.

Real: the service and the client of `/dms/bid` over streams in memory, the ledger's decisions behind them, `Kademlia`
with its walks at the requester, and `keep_providing` of each peer. A peer's service is made when it is dialled.
Modelled: links (`Links`), the answering side of the DHT and its routing tables (`keyspace`), machines (`population`).
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist
from typing import Any, Final, cast

import trio
from libp2p.abc import IHost
from libp2p.peer.id import ID

from dms_host.errors import DialError
from dms_peer.connections import ConnectionPool
from dms_peer.discovery.dht.host_view import KademliaStream
from dms_peer.discovery.dht.kademlia import Kademlia
from dms_peer.discovery.dht.providing import keep_providing
from dms_protocols.adverts.adverts import AdvertTable
from dms_protocols.adverts.classes import CapabilityClass
from dms_protocols.adverts.exchange import advert_exchange_operations
from dms_protocols.protocol_ids import KADEMLIA_PROTOCOL, PEERS_PROTOCOL
from dms_resources.manager import ResourceManager

from .keyspace import Keyspace
from .network import LinkConditions, SimulatedNetwork
from .population import Member, Population
from .providers import provider_operations
from .scheduling import VirtualClock
from .signing import SimulatedOpener
from .watching import Watched

__all__ = ["TALLY", "Crowd", "CrowdKademlia", "Links", "Tally"]

_NORMAL: Final = NormalDist()
_DIAL_TIMEOUT: Final = 5.0
# Seconds after which a peer wants another peer's advert again.
_AGAIN: Final = 60.0
# Seconds that one walk of an announcement takes.
_WALK: Final = 1.0


@dataclass(slots=True)
class Tally:
    """The messages of one search. Requests by the requester: `dht` and `peer`, and failed `dials`. `frames` counts
    requests and answers of all peers.
    """

    dht: int = 0
    peer: int = 0
    dials: int = 0
    frames: int = 0
    others: int = 0

    @property
    def requests(self) -> int:
        """What the requester sent: requests, and dials without an answer."""
        return self.dht + self.peer + self.dials


TALLY: ContextVar[Tally] = ContextVar("TALLY")
"""The tally in which the messages of the task, and of its child tasks, are counted."""


@dataclass(frozen=True, slots=True)
class Links:
    """How messages travel. One-way latencies of pairs are lognormal: `median` (seconds) and `sigma`; each message takes
    up to `jitter` times that more. With probability `lost` it has to be sent again, which takes up to `again` seconds;
    with probability `stalled` the stream delivers nothing any more. Of the peers that are away, `silent` do not even
    refuse.
    """

    median: float = 0.04
    sigma: float = 0.6
    jitter: float = 0.25
    lost: float = 0.01
    again: float = 1.0
    stalled: float = 0.0005
    silent: float = 0.5


class Crowd(SimulatedNetwork):
    """The network of a population. Runs within `nursery`, from the virtual time 0 on."""

    def __init__(self, nursery: trio.Nursery, population: Population, seed: int, *, links: Links | None = None) -> None:
        super().__init__(nursery, random.Random(f"links {seed}"), dial_timeout=_DIAL_TIMEOUT)
        self.population = population
        self.keyspace = Keyspace(population, seed)
        self.links = links or Links()
        self.clock = VirtualClock()
        self.table = AdvertTable(SimulatedOpener(), clock=self.clock.wall)
        """The table of a peer that has received every advert."""
        self.rng = random.Random(f"crowd {seed}")
        self._seed = seed
        self._managers: dict[str, ResourceManager] = {}
        self._conditions = lru_cache(maxsize=65536)(self._pair_conditions)  # type: ignore[method-assign]

    def member(self, name: str) -> Member:
        """The member of this peer id."""
        return self.population.members[self.keyspace.numbers[name]]

    def anybody(self) -> Member:
        """A member that is there now."""
        while True:
            member = self.rng.choice(self.population.members)
            if member.session(trio.current_time()) is not None:
                return member

    def start_soon(self, task: Any, *arguments: Any) -> None:
        """Run a task in the background."""
        self._nursery.start_soon(task, *arguments)

    # Links

    def latency(self, one: str, other: str) -> float:
        """Seconds that a message takes from one peer to the other, without jitter."""
        first, second = sorted((one, other))
        digest = hashlib.blake2b(f"{self._seed} {first} {second}".encode(), digest_size=8).digest()
        quantile = (int.from_bytes(digest) + 0.5) / 2**64
        return self.links.median * math.exp(self.links.sigma * _NORMAL.inv_cdf(quantile))

    def _pair_conditions(self, dialer: str, listener: Any) -> LinkConditions:
        latency = self.latency(dialer, listener.peer_id)
        links = self.links
        return LinkConditions(
            latency=latency, jitter=latency * links.jitter, stall=links.stalled, late=links.lost, lateness=links.again
        )

    async def connect(self, dialer: str, listener: str) -> Any:
        """As in every simulated network. A member that is away is silent or refuses, and counts as a request."""
        if listener not in self.keyspace.numbers:
            return await super().connect(dialer, listener)
        member = self.member(listener)
        if member.session(trio.current_time()) is None:
            TALLY.get().dials += 1
            if member.number % 100 < 100 * self.links.silent:
                await trio.sleep(_DIAL_TIMEOUT)
                raise DialError("no answer", code="timeout", address=listener, hint="")
            await trio.sleep(2 * self.latency(dialer, listener))
            raise DialError("nobody listens there", code="refused", address=listener, hint="")
        self._serve_member(listener, member)
        return await super().connect(dialer, listener)

    def _serve_member(self, name: str, member: Member) -> None:
        manager = member.manager(trio.current_time())
        if self._managers.get(name) is not manager:
            self._managers[name] = manager
            operations = {
                **provider_operations(manager, name, clock=self.clock),
                PEERS_PROTOCOL: advert_exchange_operations(self.table, lambda: None, lambda: _AGAIN),
            }
            if name in self._hosts:
                self._hosts[name].operations = operations
            else:
                self.add_host(name, operations)

    def _due(self, connection: Any, *, back: bool = False) -> float:
        tally = TALLY.get()
        tally.frames += 1
        tally.peer += not back and connection.dialer not in self.keyspace.numbers
        return super()._due(connection, back=back)

    def travel(self, connection: Any) -> float:
        """When a message of the DHT that is sent now arrives."""
        TALLY.get().frames += 1
        return super()._due(connection)

    def disconnect(self, dialer: str, *, but: Sequence[str] = ()) -> None:
        """Close the connections that a peer dialled, except those to some peers."""
        for pair in [pair for pair in self._connections if pair[0] == dialer and pair[1] not in but]:
            self._connections.pop(pair).cut()

    def connected(self, dialer: str) -> list[str]:
        """The peers to which a peer is connected."""
        return [pair[1] for pair, one in self._connections.items() if pair[0] == dialer and not one.broken]

    # Providing

    async def provide(self, wanted: frozenset[CapabilityClass]) -> None:
        """Let all members announce what they have free, while they are there. Only `wanted` classes are recorded."""
        TALLY.set(Tally())
        async with trio.open_nursery() as nursery:
            for member in self.population.members:
                nursery.start_soon(self._provide, member, wanted)

    async def _provide(self, member: Member, wanted: frozenset[CapabilityClass]) -> None:
        announcer, watched = _Announcer(self, member, wanted), Watched(member)
        while True:
            now = trio.current_time()
            until = member.stays_until(now)
            if member.session(now) is None:
                await trio.sleep_until(until)
                continue
            with trio.move_on_at(until):
                await keep_providing(cast(Kademlia, announcer), cast(ResourceManager, watched), rng=self.rng.random)


class _Announcer:
    """The DHT as `keep_providing` sees it. The peers at the end of a walk are looked up."""

    peers = 1

    def __init__(self, crowd: Crowd, member: Member, wanted: frozenset[CapabilityClass]) -> None:
        self._crowd = crowd
        self._member = member
        self._wanted = wanted

    async def wait_joined(self) -> None:
        await trio.sleep(_WALK)

    async def wait_peers(self, number: int) -> None:
        await trio.sleep_forever()

    async def announce(self, classes: Sequence[CapabilityClass]) -> int:
        await trio.sleep(_WALK * len(classes))
        now = trio.current_time()
        for one in sorted(self._wanted.intersection(classes), key=lambda one: one.name):
            self._crowd.keyspace.announce(self._member.number, one, now)
        return 1


# The requester


@dataclass(slots=True)
class _Host:
    """The part of a libp2p host that `Kademlia` needs."""

    crowd: Crowd
    name: str

    def get_id(self) -> ID:
        return ID.from_string(self.name)

    def get_private_key(self) -> None:
        """None: a requester signs nothing in the DHT."""

    def get_peerstore(self) -> _Host:
        return self

    def get_protocols(self, peer_id: ID) -> list[str]:
        """The protocols that connected peers have reported."""
        return [KADEMLIA_PROTOCOL]

    def addrs(self, peer_id: ID) -> list[Any]:
        keyspace = self.crowd.keyspace
        return keyspace.infos[keyspace.numbers[peer_id.to_base58()]].addrs

    def get_connected_peers(self) -> list[ID]:
        return [ID.from_string(name) for name in self.crowd.connected(self.name)]


class CrowdKademlia(Kademlia):
    """The `Kademlia` of a requester: everything except the host under it."""

    def __init__(self, crowd: Crowd, name: str) -> None:
        # A requester has no addresses, because it only queries.
        super().__init__(cast(IHost, _Host(crowd, name)), cast(ConnectionPool, None), tuple, server=False)
        self._crowd = crowd
        self._name = name
        self._host.new_stream = self._new_stream  # type: ignore[method-assign]

    async def _new_stream(self, peer_id: ID, protocol_ids: Sequence[Any]) -> KademliaStream:
        connection = await self._crowd.connect(self._name, peer_id.to_base58())
        self._host._learn(peer_id)
        await self._proven(peer_id)
        return cast(KademliaStream, _Stream(self._crowd, connection, peer_id))


class _Stream:
    """A stream to the model of the DHT: what was written is answered after the time of a message and its answer."""

    def __init__(self, crowd: Crowd, connection: Any, peer_id: ID) -> None:
        self._crowd = crowd
        self._connection = connection
        self._number = crowd.keyspace.numbers[peer_id.to_base58()]
        self._sent = bytearray()
        self._messages = 0
        self._answer: bytes | None = None

    async def write(self, data: bytes) -> None:
        self._sent += data
        self._messages += 1

    async def read(self, n: int | None = None) -> bytes:
        if self._answer is None:
            TALLY.get().dht += 1
            await self._travel()
            self._answer = _with_length(
                self._crowd.keyspace.answer(self._number, _message(self._sent), trio.current_time())
            )
            await self._travel()
        taken, self._answer = self._answer[:n], self._answer[n or len(self._answer) :]
        return taken

    async def finish(self) -> None:
        """Announcements: the end of the stream answers all of them."""
        TALLY.get().dht += self._messages
        await self._travel()
        await self._travel()

    async def close(self) -> None:
        await trio.lowlevel.checkpoint()

    async def _travel(self) -> None:
        await trio.sleep_until(self._crowd.travel(self._connection))


def _message(framed: bytearray) -> bytes:
    place = 0
    while framed[place] & 0x80:
        place += 1
    return bytes(framed[place + 1 :])


def _with_length(message: bytes) -> bytes:
    length, prefix = len(message), bytearray()
    while length >= 0x80:
        prefix.append(length & 0x7F | 0x80)
        length >>= 7
    return bytes(prefix) + bytes([length]) + message
