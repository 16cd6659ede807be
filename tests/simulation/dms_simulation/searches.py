"""Searches of requesters on a crowd: the real requester, cold or warm, with different sources."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import trio
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import PeerInfo

from dms_host.errors import DialError
from dms_peer.discovery.adverts.exchange import ExchangeSource
from dms_peer.discovery.adverts.source import AdvertSource
from dms_peer.discovery.dht import kademlia
from dms_peer.discovery.known_peers import KnownPeers
from dms_peer.requesting import Requester
from dms_peer.requesting.network import CandidateSource
from dms_protocols.adverts.adverts import AdvertTable
from dms_protocols.adverts.classes import CapabilityClass, classes_to_look_up
from dms_protocols.messages.bid import EnsembleRequest, NodeRequest

from .crowd import TALLY, Crowd, CrowdKademlia, Tally
from .hearsay import Hearsay
from .population import REQUESTS, Population
from .scheduling import EPOCH, run_seeded
from .signing import SimulatedOpener

__all__ = ["VARIANTS", "WANTED", "Outcome", "Plan", "Variant", "run_plan", "seeded_chance"]

WANTED: Final = 3
DEADLINE: Final = 30.0
_PEERS: Final = 4
_WARM_PEERS: Final = 8
_NOTED: Final = 30.0


@dataclass(frozen=True, slots=True)
class Variant:
    """The state of a requester: `sources` by name in their order, "broadcast" last. A warm one has been on the network
    for an hour. `part` is the share of the searches that are made with it.
    """

    name: str
    sources: tuple[str, ...]
    warm: bool = False
    part: float = 1.0


VARIANTS: Final = (
    Variant("DHT, cold", ("known", "dht", "others")),
    Variant("DHT, warm", ("known", "dht", "others"), warm=True),
    Variant("gossip, warm", ("known", "adverts", "others"), warm=True),
    Variant("all, cold", ("known", "adverts", "exchange", "dht", "others", "broadcast")),
    Variant("all, warm", ("known", "adverts", "exchange", "dht", "others", "broadcast"), warm=True),
    Variant("broadcast", ("broadcast",), part=0.1),
)
"""The rows of the table."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of one search. `seconds` is the time until the third bid, None if there were fewer."""

    variant: str
    request: int
    able: int
    bids: int
    seconds: float | None
    elapsed: float
    tally: Tally
    upkeep: Tally


@dataclass(frozen=True, slots=True)
class Plan:
    """A run: the number of peers, and the number of searches of each kind over `span` seconds, after a time
    to settle.
    """

    peers: int = 10_000
    searches: int = 1000
    seed: int = 1
    settle: float = 5400.0
    warming: float = 3600.0
    span: float = 1800.0
    variants: tuple[Variant, ...] = VARIANTS


def run_plan(plan: Plan) -> list[Outcome]:
    """All searches of a plan; the same seed gives the same figures."""
    with seeded_chance(plan.seed):
        return run_seeded(_run, plan, seed=plan.seed)


class _Secrets:
    def __init__(self, seed: int) -> None:
        self.token_bytes = random.Random(f"secrets {seed}").randbytes


@contextmanager
def seeded_chance(seed: int) -> Iterator[None]:
    """The seed also decides the random numbers that the DHT takes from the process."""
    before, secrets = random.getstate(), kademlia.secrets
    random.seed(seed)
    kademlia.secrets = _Secrets(seed)  # type: ignore[assignment]
    try:
        yield
    finally:
        kademlia.secrets = secrets
        random.setstate(before)


def ensemble(request: int) -> EnsembleRequest:
    """The request, open from now on."""
    node = NodeRequest(node_id="n1", resources=REQUESTS[request].demand)
    return EnsembleRequest(id="ensemble", nonce=1, deadline=EPOCH + trio.current_time() + DEADLINE, request=(node,))


async def _run(plan: Plan) -> list[Outcome]:
    outcomes: list[Outcome] = []
    population = Population(plan.peers, begin=0.0, end=plan.settle + plan.span + 600.0, seed=plan.seed)
    wanted: frozenset[CapabilityClass] = frozenset(
        one for request in range(len(REQUESTS)) for one in classes_to_look_up(ensemble(request))
    )
    async with trio.open_nursery() as nursery:
        crowd = Crowd(nursery, population, plan.seed)
        hearsay = Hearsay(crowd)
        nursery.start_soon(crowd.provide, wanted)
        nursery.start_soon(hearsay.advertise)
        await trio.sleep(plan.settle - plan.warming)
        warm = [_Requester(crowd, hearsay, f"warm {number} {plan.seed}") for number in range(_WARM_PEERS)]
        async with trio.open_nursery() as warming:
            for one in warm:
                warming.start_soon(one.live, plan.warming)
        async with trio.open_nursery() as searching:
            for number in range(plan.searches):
                for variant in plan.variants:
                    if number % round(1 / variant.part) == 0:
                        for request in range(len(REQUESTS)):
                            label = f"{variant.name} {request} {number} {plan.seed}"
                            one = _Requester(crowd, hearsay, label, warm[number % len(warm)] if variant.warm else None)
                            searching.start_soon(one.search, variant, request, outcomes)
                await trio.sleep(plan.span / plan.searches)
        nursery.cancel_scope.cancel()
    return outcomes


class _Requester:
    """A requester. A `template` gives it its knowledge."""

    def __init__(self, crowd: Crowd, hearsay: Hearsay, label: str, template: _Requester | None = None) -> None:
        self.rng = random.Random(label)
        self.name = ID(b"\x00\x24\x08\x01\x12\x20" + self.rng.randbytes(32)).to_base58()
        self.crowd = crowd
        self.hearsay = hearsay
        self.template = template
        self.upkeep = Tally()
        known = template.known.table().values() if template else ()
        self.known = KnownPeers(tuple(known), clock=crowd.clock.wall)
        self.dht = CrowdKademlia(crowd, self.name)
        self.network = crowd.peer(self.name)
        self.table = hearsay.table if template else AdvertTable(SimulatedOpener(), clock=crowd.clock.wall)

    async def live(self, seconds: float) -> None:
        """Be on the network for this time, without searching."""
        TALLY.set(self.upkeep)
        await self._join(1)
        with trio.move_on_after(seconds):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.dht.keep_up)
                while True:
                    await trio.sleep(_NOTED)
                    self._note()
        self.crowd.disconnect(self.name)

    def _note(self) -> None:
        """As `Peering` does; unused connections end."""
        connected = self.crowd.connected(self.name)
        for name in connected:
            self.known.seen(name, (self.crowd.keyspace.address(self.crowd.keyspace.numbers[name]),))
        self.crowd.disconnect(self.name, but=connected[:_PEERS])

    async def _join(self, most: int) -> None:
        """Connect to at most this many peers, as `Peering` does."""
        reached = 0
        recent = [peer.peer_id for peer in self.known.recent(8)]
        while reached < most:
            name = recent.pop() if recent else self.crowd.keyspace.names[self.crowd.anybody().number]
            try:
                await self.crowd.connect(self.name, name)
            except DialError:
                continue
            reached += 1

    async def _begin(self) -> None:
        template = self.template
        await self._join(_PEERS if template else 1)
        if template:
            for peer_id in template.dht._table.find_local_closest_peers(template.name.encode(), 10_000):
                addrs = template.dht._host.book.addrs(peer_id)
                self.dht._host.book.add_addrs(peer_id, addrs)
                await self.dht._table.admit(PeerInfo(peer_id, addrs))

    async def search(self, variant: Variant, request: int, outcomes: list[Outcome]) -> None:
        """One search, and its result."""
        TALLY.set(self.upkeep)
        await self._begin()
        tally = Tally()
        async with trio.open_nursery() as nursery:
            if "dht" in variant.sources:
                nursery.start_soon(self.dht.keep_up)
            TALLY.set(tally)
            able, begun = self.crowd.population.able(request, trio.current_time()), trio.current_time()
            bidders: set[str] = set()
            seconds = None
            async with self._requester(variant).collect_bids(ensemble(request), want=WANTED) as bids:
                async for bid in bids:
                    bidders.add(bid.peer_id)
                    if len(bidders) == WANTED and seconds is None:
                        seconds = trio.current_time() - begun
            nursery.cancel_scope.cancel()
        elapsed = trio.current_time() - begun
        outcomes.append(Outcome(variant.name, request, able, len(bidders), seconds, elapsed, tally, self.upkeep))
        self.crowd.disconnect(self.name)

    def _requester(self, variant: Variant) -> Requester:
        sources: Mapping[str, CandidateSource] = {
            "known": self.known,
            "others": self.known.others,
            "adverts": AdvertSource(self.table),
            "exchange": ExchangeSource(self.network, self.table, self._partners),
            "dht": self.dht,
        }
        return Requester(
            self.network,
            SimulatedOpener(),
            [sources[name] for name in variant.sources if name in sources],
            broadcast=self.hearsay.broadcast(self.name, WANTED) if "broadcast" in variant.sources else None,
            observer=self.known,
            clock=self.crowd.clock.wall,
            rng=self.rng,
        )

    def _partners(self) -> dict[str, Sequence[str]]:
        return dict.fromkeys(self.crowd.connected(self.name), ())
