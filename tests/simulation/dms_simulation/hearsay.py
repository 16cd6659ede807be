"""Gossip in a crowd: adverts and broadcast requests.

Real: `AdvertKeeper` of each peer, which decides what to publish and when, `AdvertTable` and `PeerCount` of the
receivers, `GossipBroadcast` and the rule by which `BroadcastAnswers` answer. Modelled: the mesh. Each peer has six
neighbours, passes each message on once to all except the one that sent it, and one in a hundred of its messages is
lost. All peers receive the same, so that one table stands for all of them; a peer that has just joined has what was
published since.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Awaitable, Callable
from typing import Any, Final, cast

import trio

from dms_peer.discovery.adverts.advertiser import AdvertKeeper
from dms_peer.discovery.adverts.broadcast import GossipBroadcast
from dms_peer.discovery.adverts.broadcast_answers import BroadcastAnswers
from dms_peer.discovery.adverts.own_advert import OwnAdvert
from dms_peer.discovery.adverts.peer_count import PeerCount
from dms_peer.discovery.adverts.schedule import AdvertSchedule
from dms_protocols.adverts.adverts import AdvertTable
from dms_protocols.adverts.bid_delivery import Deliveries
from dms_protocols.adverts.broadcasts import open_broadcast
from dms_protocols.messages.bid import EnsembleRequest
from dms_protocols.protocol_ids import BID_DELIVERY_PROTOCOL, BID_PROTOCOL_1_1
from dms_resources.manager import ResourceManager

from .crowd import TALLY, Crowd, Tally
from .population import Member
from .providers import provider_operations
from .signing import SimulatedOpener, SimulatedSigner
from .watching import Watched

__all__ = ["MESH", "Hearsay"]

MESH: Final = 6
"""Neighbours of a peer in the mesh of a topic."""

_LOST: Final = 0.01


class _Since(PeerCount):
    """How many peers a peer that joined at `begun` has heard of: no more than were heard since."""

    def __init__(self, hearsay: Hearsay, begun: float) -> None:
        self.period = 1800.0
        self._hearsay = hearsay
        self._before = hearsay.published if begun > 0 else -hearsay.crowd.population.online

    def heard(self, peer_id: str) -> None:
        raise AssertionError("counted by Hearsay")

    def estimate(self) -> float:
        return min(self._hearsay.count.estimate(), float(self._hearsay.published - self._before))


class Hearsay:
    """The topics of a crowd."""

    def __init__(self, crowd: Crowd, schedule: AdvertSchedule | None = None) -> None:
        self.crowd = crowd
        self.schedule = schedule or AdvertSchedule()
        self.table = crowd.table
        self.count = PeerCount(clock=trio.current_time)
        self.count._secret = b"the same in each run"
        self.published = 0
        self._rng = random.Random(f"hearsay {crowd.rng.random()}")
        self._begun = False

    # Adverts

    async def advertise(self) -> None:
        """Let all members publish what they have free, while they are there."""
        TALLY.set(Tally())
        for member in self.crowd.population.members:
            if member.session(0.0) is not None:
                self.count.heard(self.crowd.keyspace.names[member.number])
        async with trio.open_nursery() as nursery:
            for member in self.crowd.population.members:
                nursery.start_soon(self._advertise, member)

    async def _advertise(self, member: Member) -> None:
        name = self.crowd.keyspace.names[member.number]
        address = self.crowd.keyspace.address(member.number)
        own = OwnAdvert(SimulatedSigner(name), lambda: (address,), clock=self.crowd.clock.wall)

        async def publish(raw: bytes) -> bool:
            await trio.lowlevel.checkpoint()
            self.published += 1
            self.count.period = 2 * self.schedule.interval_for(self.count.estimate())
            self.count.heard(name)
            if self._rng.random() >= _LOST:
                self.table.accept(raw)
            return True

        while True:
            now = trio.current_time()
            until = member.stays_until(now)
            if member.session(now) is None:
                await trio.sleep_until(until)
                continue
            with trio.move_on_at(until):
                if not now:
                    # At the beginning all members are there already; none of them has just joined.
                    await trio.sleep(self._rng.random() * self.schedule.interval_for(self.crowd.population.online))
                manager = cast(ResourceManager, Watched(member))
                count = _Since(self, now)
                keeper = AdvertKeeper(own, manager, self.schedule, count, publish, draw=self._rng.random)
                await keeper.keep()

    # Broadcast

    def broadcast(self, name: str, want: int) -> GossipBroadcast:
        """The broadcast of a requester."""
        crowd = self.crowd
        deliveries = Deliveries(SimulatedOpener(), requester=name, clock=crowd.clock.wall)
        crowd.add_host(name, {BID_DELIVERY_PROTOCOL: deliveries.operations})
        return GossipBroadcast(
            self._publisher(name),
            deliveries,
            SimulatedSigner(name),
            lambda: (f"/memory/{name}",),
            want=want,
            clock=crowd.clock.wall,
        )

    def _publisher(self, name: str) -> Callable[[bytes], Awaitable[bool]]:
        async def publish(raw: bytes) -> bool:
            await trio.lowlevel.checkpoint()
            events, sent = self._flood(name)
            TALLY.get().others += sent
            broadcast = open_broadcast(raw, SimulatedOpener(), now=self.crowd.clock.wall())
            able = _Able(self.table, broadcast.ensemble)
            demand = broadcast.ensemble.request[0].resources
            for number, arrives in events.items():
                member = self.crowd.population.members[number]
                if member.would_take(demand, trio.current_time()):
                    # A peer that cannot bid sends nothing.
                    self.crowd.start_soon(self._answer, member, broadcast, able, arrives)
            return True

        return publish

    async def _answer(self, member: Member, broadcast: Any, able: Any, arrives: float) -> None:
        await trio.sleep_until(arrives)
        name = self.crowd.keyspace.names[member.number]
        manager = member.manager(trio.current_time())
        operations = provider_operations(manager, name, clock=self.crowd.clock)[BID_PROTOCOL_1_1]
        answers = BroadcastAnswers(
            operations,
            self.crowd.peer(name),
            able,
            self.count,
            clock=self.crowd.clock.wall,
            draw=self._rng.random,
        )
        await answers._answer(broadcast)

    def sent_for_one(self) -> int:
        """How many messages all peers together send to pass on one."""
        return self._flood(self.crowd.keyspace.names[self.crowd.anybody().number])[1]

    def _flood(self, name: str) -> tuple[dict[int, float], int]:
        """When a message arrives at each member that is there, and how many were sent for it."""
        now, rng, names = trio.current_time(), self._rng, self.crowd.keyspace.names
        there = [member.number for member in self.crowd.population.members if member.session(now) is not None]
        mesh: dict[int, list[int]] = {number: [] for number in there}
        for number in there:
            for other in rng.sample(there, min(MESH // 2, len(there))):
                if other != number:
                    mesh[number].append(other)
                    mesh[other].append(number)
        events: dict[int, float] = {}
        first = rng.sample(there, min(MESH, len(there)))
        queue = [(now + self.crowd.latency(name, names[number]), number) for number in first]
        heapq.heapify(queue)
        sent = len(queue)
        while queue:
            arrives, number = heapq.heappop(queue)
            if number in events:
                continue
            events[number] = arrives
            # To all except the one that sent it.
            sent += len(mesh[number]) - 1
            for other in mesh[number]:
                if other not in events and rng.random() >= _LOST:
                    heapq.heappush(queue, (arrives + self.crowd.latency(names[number], names[other]), other))
        return events, sent


class _Able:
    """The table as seen by those who answer one request: all of them find the same."""

    def __init__(self, table: AdvertTable, ensemble: EnsembleRequest) -> None:
        self._share: float | None = None
        self._table = table
        self._ensemble = ensemble

    def share_able(self, ensemble: EnsembleRequest, *, examine: int) -> float:
        if self._share is None:
            self._share = self._table.share_able(self._ensemble, examine=examine)
        return self._share
