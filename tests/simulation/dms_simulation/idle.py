"""The messages of a peer in a crowd while no peer requests anything.

Real: `Kademlia.keep_up`, `keep_providing` and `Kademlia.announce` of some members, for an hour, over the model of the
DHT; the adverts of all members by `AdvertKeeper`. Modelled: how often gossip passes on one message, and its heartbeat.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Final, cast

import trio

from dms_host.errors import DialError
from dms_peer.discovery.dht.providing import keep_providing
from dms_peer.discovery.gossip.limits import GossipLimits
from dms_resources.manager import ResourceManager

from .crowd import TALLY, Crowd, CrowdKademlia, Tally
from .hearsay import MESH, Hearsay
from .population import Member, Population
from .scheduling import run_seeded
from .searches import seeded_chance
from .watching import Watched

__all__ = ["IdleCost", "measure_idle"]

_SETTLE: Final = 3600.0
_MEASURED: Final = 3600.0
_SAMPLED: Final = 8
_NOTED: Final = 30.0
_PEERS: Final = 4


@dataclass(frozen=True, slots=True)
class IdleCost:
    """Messages that one peer sends per minute, on average, in a network of this many `peers`.

    `upkeep` and `announcing` are requests in the DHT and failed dials (each request has an answer, which another peer
    sends). `adverts` is how many adverts all peers together publish per second, `gossip` what one peer sends to pass
    them on, `heartbeat` the most that it sends of control messages.
    """

    peers: int
    upkeep: float
    announcing: float
    adverts: float
    gossip: float
    heartbeat: float


def measure_idle(peers: int, seed: int = 1) -> IdleCost:
    """Measure for an hour, after an hour to settle. The same seed gives the same figures."""
    with seeded_chance(seed):
        return run_seeded(_measure, peers, seed, seed=seed)


async def _measure(peers: int, seed: int) -> IdleCost:
    end = _SETTLE + _MEASURED
    population = Population(peers, begin=0.0, end=end + 600.0, seed=seed)
    upkeep, announcing = Tally(), Tally()
    async with trio.open_nursery() as nursery:
        crowd = Crowd(nursery, population, seed)
        hearsay = Hearsay(crowd)
        nursery.start_soon(hearsay.advertise)
        for member in population.members[:: len(population.members) // _SAMPLED]:
            nursery.start_soon(_live, crowd, member, upkeep, announcing)
        await trio.sleep_until(_SETTLE)
        published, before = hearsay.published, (upkeep.requests, announcing.requests)
        await trio.sleep_until(end)
        adverts = (hearsay.published - published) / _MEASURED
        sent = hearsay.sent_for_one()
        nursery.cancel_scope.cancel()
    sampled = len(population.members[:: len(population.members) // _SAMPLED]) * _MEASURED / 60
    return IdleCost(
        peers=peers,
        upkeep=(upkeep.requests - before[0]) / sampled,
        announcing=(announcing.requests - before[1]) / sampled,
        adverts=adverts,
        gossip=60 * adverts * sent / peers,
        heartbeat=MESH * 60 / GossipLimits().heartbeat,
    )


async def _live(crowd: Crowd, member: Member, upkeep: Tally, announcing: Tally) -> None:
    """One member's own DHT, from the beginning."""
    name = crowd.keyspace.names[member.number]
    dht = CrowdKademlia(crowd, name)
    async with trio.open_nursery() as nursery:
        TALLY.set(announcing)
        nursery.start_soon(partial(keep_providing, dht, cast(ResourceManager, Watched(member)), rng=crowd.rng.random))
        TALLY.set(upkeep)
        nursery.start_soon(dht.keep_up)
        while True:
            # As `Peering` does: some peers stay connected, the others are closed when they are idle.
            while len(crowd.connected(name)) < _PEERS:
                try:
                    await crowd.connect(name, crowd.keyspace.names[crowd.anybody().number])
                except DialError:
                    continue
            await trio.sleep(_NOTED)
            crowd.disconnect(name, but=crowd.connected(name)[:_PEERS])
