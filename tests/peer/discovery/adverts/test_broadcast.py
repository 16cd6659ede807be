"""Providers that can bid answer a broadcast: soon enough, not all at once, and only once."""

from __future__ import annotations

import logging
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from msgspec.structs import replace

from dms_host.errors import DialError
from dms_peer.discovery.adverts.broadcast import GossipBroadcast
from dms_peer.discovery.adverts.broadcast_answers import AnswerLimits, BroadcastAnswers, BroadcastValidator
from dms_peer.discovery.adverts.peer_count import PeerCount
from dms_peer.discovery.gossip.gossip import GossipVerdict
from dms_protocols.adverts.adverts import AdvertTable
from dms_protocols.adverts.broadcasts import OpenedBroadcast, seal_broadcast
from dms_protocols.clients import AllocationClient
from dms_protocols.messages.bid import BidAnswer, BidRequest, EnsembleRequest
from dms_protocols.messages.broadcast import LONGEST_BROADCAST, BroadcastRequest
from dms_protocols.protocol_ids import ALLOCATION_PROTOCOL, BID_PROTOCOL_1_1
from dms_protocols.rpc.operations import Caller, Operations
from dms_protocols.wire.conversion import to_map
from dms_simulation.scheduling import EPOCH
from dms_simulation.signing import SimulatedOpener, SimulatedSigner


def unix_time() -> float:
    return EPOCH + trio.current_time()


class Bus:
    """Ideal gossip: every peer gets every message at once."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.validators: list[BroadcastValidator] = []
        self.published: list[bytes] = []
        self.verdicts: list[GossipVerdict] = []
        self._nursery = nursery

    def join(self, peer: Any, **options: Any) -> BroadcastAnswers:
        answers = BroadcastAnswers(
            peer.operations[BID_PROTOCOL_1_1], peer.network, peer.table, peer.count, clock=unix_time, **options
        )
        self.validators.append(BroadcastValidator(peer.opener, answers.put, clock=unix_time))
        self._nursery.start_soon(answers.run)
        return answers

    async def publish(self, raw: bytes) -> bool:
        self.published.append(raw)
        self.verdicts = [await validate("bringer", raw) for validate in self.validators]
        return bool(self.validators)

    def broadcast_of(self, peer: Any, **options: Any) -> GossipBroadcast:
        return GossipBroadcast(
            self.publish, peer.deliveries, peer.signer, lambda: (f"/memory/{peer.peer_id}",), clock=unix_time, **options
        )


@pytest.fixture
def bus(nursery: trio.Nursery) -> Bus:
    return Bus(nursery)


async def all_answers(broadcast: GossipBroadcast, request: EnsembleRequest, **options: Any) -> list[Any]:
    async with broadcast.ask(request, **options) as answers:
        return [answer async for answer in answers]


async def test_who_can_bid_answers_and_nobody_else(
    autojump_clock: Any, new_peer: Any, machine: Any, demand: Any, ensemble: Any, bus: Bus
) -> None:
    requester = await new_peer("requester")
    for number, cores in enumerate((1, 8, 16, 2)):
        bus.join(await new_peer(f"p{number}", machine(cores=cores)))
    request = ensemble(demand(cores=4), demand(cores=12), deadline=5)
    begun = trio.current_time()
    answers = await all_answers(bus.broadcast_of(requester), request, hold=2.0)
    assert trio.current_time() - begun == pytest.approx(5)
    found = {answer.peer_id: {one.bid.node_id for one in answer.bids.bids} for answer in answers}
    assert found == {"p1": {"n0"}, "p2": {"n0", "n1"}}
    (first,) = [answer for answer in answers if answer.peer_id == "p1"]
    assert [refusal.node_id for refusal in first.bids.refusals] == ["n1"]
    assert all(one.bid.held for answer in answers for one in answer.bids.bids)
    assert len(bus.published) == 1


async def test_a_bid_by_broadcast_can_be_taken(
    autojump_clock: Any, new_peer: Any, machine: Any, demand: Any, ensemble: Any, bus: Bus
) -> None:
    requester, provider = await new_peer("requester"), await new_peer("provider", machine())
    bus.join(provider)
    (answer,) = await all_answers(bus.broadcast_of(requester), ensemble(demand(cores=4)))
    async with requester.network.client("provider", ALLOCATION_PROTOCOL) as client:
        (lease,) = await AllocationClient(client).commit([one.envelope for one in answer.bids.bids], ttl=60)
    assert lease.holder == "requester"


async def test_a_replay_is_not_answered(
    autojump_clock: Any, new_peer: Any, machine: Any, demand: Any, ensemble: Any, bus: Bus
) -> None:
    requester, provider = await new_peer("requester"), await new_peer("provider", machine())
    answers = bus.join(provider)
    request = ensemble(demand(), deadline=20)
    async with bus.broadcast_of(requester).ask(request) as arriving:
        assert (await anext(arriving)).peer_id == "provider"
        await bus.publish(bus.published[0])
        assert bus.verdicts == [GossipVerdict.IGNORE]
        await trio.sleep(10)
    assert answers.answered == 1
    await trio.sleep(30)
    await bus.publish(bus.published[0])
    assert bus.verdicts == [GossipVerdict.IGNORE]
    assert answers.answered == 1


async def test_what_proves_nothing_is_rejected(
    autojump_clock: Any, new_peer: Any, machine: Any, demand: Any, ensemble: Any, bus: Bus
) -> None:
    bus.join(await new_peer("provider", machine()))
    request = BroadcastRequest(requester="a", addrs=(), ensemble=to_map(ensemble(demand())), issued_at=unix_time())
    for raw in (b"garbage", seal_broadcast(request, SimulatedSigner("b")), bytes(20_000)):
        await bus.publish(raw)
        assert bus.verdicts == [GossipVerdict.REJECT]


async def test_a_requester_asks_as_often_as_it_may(
    autojump_clock: Any, new_peer: Any, machine: Any, demand: Any, ensemble: Any, bus: Bus
) -> None:
    bus.join(await new_peer("provider", machine()))
    verdicts = []
    for peer_id in ("eager", "other"):
        for nonce in range(20):
            request = BroadcastRequest(
                requester=peer_id, addrs=(), ensemble=to_map(ensemble(demand(), nonce=nonce)), issued_at=unix_time()
            )
            await bus.publish(seal_broadcast(request, SimulatedSigner(peer_id)))
            verdicts += bus.verdicts
    assert verdicts.count(GossipVerdict.ACCEPT) == 2 * AnswerLimits().burst


async def test_who_may_not_ask_or_is_excluded_gets_no_answer(
    autojump_clock: Any, new_peer: Any, machine: Any, demand: Any, ensemble: Any, bus: Bus
) -> None:
    requester = await new_peer("requester")
    bus.join(await new_peer("open", machine()))
    bus.join(await new_peer("excluded", machine()))
    bus.join(await new_peer("closed", machine()), may_ask=lambda requester: False)
    answers = await all_answers(bus.broadcast_of(requester), ensemble(demand(), excluded=["excluded"]))
    assert [answer.peer_id for answer in answers] == ["open"]


async def test_a_requester_that_is_a_provider_does_not_answer_itself(
    autojump_clock: Any, new_peer: Any, machine: Any, demand: Any, ensemble: Any, bus: Bus
) -> None:
    peer = await new_peer("both", machine())
    bus.join(peer)
    assert await all_answers(bus.broadcast_of(peer), ensemble(demand())) == []


async def test_a_requester_that_cannot_be_reached_ends_nothing(
    autojump_clock: Any, new_peer: Any, machine: Any, demand: Any, ensemble: Any, bus: Bus, network: Any
) -> None:
    requester, provider = await new_peer("requester"), await new_peer("provider", machine())
    answers = bus.join(provider)
    network.stop_host("requester", silent=True)
    assert await all_answers(bus.broadcast_of(requester), ensemble(demand(), nonce=1)) == []
    network.add_host("requester", requester.operations)
    assert len(await all_answers(bus.broadcast_of(requester), ensemble(demand(), nonce=2))) == 1
    assert answers.answered == 1


async def test_a_request_that_cannot_be_broadcast_has_no_answers(
    autojump_clock: Any, new_peer: Any, machine: Any, demand: Any, ensemble: Any, bus: Bus, caplog: Any
) -> None:
    requester, provider = await new_peer("requester"), await new_peer("provider", machine())
    bus.join(provider)
    broadcast = bus.broadcast_of(requester)
    far = ensemble(demand(), deadline=LONGEST_BROADCAST + 10)
    large = ensemble(demand(), excluded=["x" * 100] * 200, deadline=1)
    with caplog.at_level(logging.WARNING):
        assert await all_answers(broadcast, far) == []
        assert await all_answers(broadcast, large) == []
        request = ensemble(demand(), deadline=3)
        async with broadcast.ask(request):
            assert await all_answers(broadcast, request) == []
    assert len(caplog.records) == 3
    assert len(bus.published) == 1


async def test_leaving_early_waits_no_more(
    autojump_clock: Any, new_peer: Any, machine: Any, demand: Any, ensemble: Any, bus: Bus
) -> None:
    requester, provider = await new_peer("requester"), await new_peer("provider", machine())
    answers = bus.join(provider)
    with pytest.raises(KeyError):
        async with bus.broadcast_of(requester).ask(ensemble(demand(), deadline=100)):
            raise KeyError("mine")
    await trio.sleep(60)
    assert answers.answered == 0
    assert not requester.deliveries._waiting


async def test_a_request_is_told_again_until_somebody_is_there(
    autojump_clock: Any, new_peer: Any, machine: Any, demand: Any, ensemble: Any, bus: Bus
) -> None:
    requester, provider = await new_peer("requester"), await new_peer("provider", machine())
    async with bus.broadcast_of(requester).ask(ensemble(demand(), deadline=20)) as arriving:
        await trio.sleep(3)
        bus.join(provider)
        assert (await anext(arriving)).peer_id == "provider"
    assert len(bus.published) > 3


# Many providers


class Deliveries:
    """A network on which every peer reaches the requester. Records who did, and when."""

    def __init__(self, peer_id: str, delivered: list[float], *, works: bool = True) -> None:
        self.peer_id = peer_id
        self._delivered = delivered
        self._works = works

    @asynccontextmanager
    async def client(self, peer_id: str, protocol: str, addrs: Sequence[str] = ()) -> AsyncIterator[Any]:
        if not self._works:
            raise DialError("nobody there", code="refused", address=peer_id, hint="")
        await trio.lowlevel.checkpoint()
        yield self

    async def call(self, request: Any, answer_type: Any, **_: Any) -> Any:
        self._delivered.append(trio.current_time())
        return answer_type()


class Bidder:
    """Operations that bid at once, on anything."""

    def __init__(self, work: float = 0.0) -> None:
        self.running = self.most_running = 0
        self._work = work

    def operations(self) -> Operations:
        operations = Operations()
        operations.slow(BidRequest, self.bid)
        return operations

    async def bid(self, request: BidRequest, caller: Caller) -> BidAnswer:
        self.running += 1
        self.most_running = max(self.running, self.most_running)
        await trio.sleep(self._work)
        self.running -= 1
        return BidAnswer(bids=(b"envelope",), refusals=())


def count_of(peers: int) -> PeerCount:
    count = PeerCount(clock=trio.current_time)
    count._secret = b"the same each time"
    for one in range(peers):
        count.heard(f"peer-{one}")
    return count


def answers_of(
    number: int, network: Any, *, count: PeerCount | None = None, bidder: Bidder | None = None, **limits: Any
) -> Any:
    return BroadcastAnswers(
        (bidder or Bidder()).operations(),
        network,
        AdvertTable(SimulatedOpener(), clock=unix_time),
        count or count_of(0),
        limits=AnswerLimits(**limits),
        clock=unix_time,
        draw=random.Random(number).random,
    )


@pytest.mark.parametrize(("peers", "expected"), [(1, 1), (20, 20), (1000, 64)])
async def test_as_many_answer_as_are_wanted_several_times(
    autojump_clock: Any, nursery: trio.Nursery, demand: Any, ensemble: Any, peers: int, expected: int
) -> None:
    delivered: list[float] = []
    request = ensemble(demand(), deadline=10)
    broadcast = BroadcastRequest(requester="r", addrs=(), ensemble=to_map(request), issued_at=unix_time(), want=16)
    count = count_of(peers - 1)
    for number in range(peers):
        answers = answers_of(number, Deliveries(f"p{number}", delivered), count=count)
        nursery.start_soon(answers.run)
        answers.put(OpenedBroadcast(broadcast, request))
    await trio.sleep(10)
    assert expected * 0.6 <= len(delivered) <= min(peers, expected * 1.5)
    # Spread over the time that this many answers need, and never later than half of the remaining time.
    assert max(delivered) <= min(5.0, max(0.02, expected / 50) + 0.01)
    if peers > 1:
        assert max(delivered) - min(delivered) > expected / 50 / 2


async def test_the_time_that_is_left_bounds_the_wait(
    autojump_clock: Any, nursery: trio.Nursery, demand: Any, ensemble: Any
) -> None:
    delivered: list[float] = []
    request = ensemble(demand(), deadline=0.4)
    broadcast = BroadcastRequest(requester="r", addrs=(), ensemble=to_map(request), issued_at=unix_time(), want=256)
    count = count_of(199)
    for number in range(200):
        answers = answers_of(number, Deliveries(f"p{number}", delivered), count=count)
        nursery.start_soon(answers.run)
        answers.put(OpenedBroadcast(broadcast, request))
    await trio.sleep(10)
    assert len(delivered) == 200
    assert max(delivered) <= 0.2


async def test_answering_is_bounded(
    autojump_clock: Any, nursery: trio.Nursery, demand: Any, ensemble: Any, caplog: Any
) -> None:
    delivered: list[float] = []
    bidder = Bidder(work=1.0)
    answers = answers_of(0, Deliveries("p", delivered), bidder=bidder, waiting=20, answering=3)
    nursery.start_soon(answers.run)
    request = ensemble(demand(), deadline=100)
    broadcast = BroadcastRequest(requester="r", addrs=(), ensemble=to_map(request), issued_at=unix_time())
    for nonce in range(500):
        answers.put(OpenedBroadcast(broadcast, replace(request, nonce=nonce)))
    await trio.sleep(103)
    assert bidder.most_running == 3
    assert len(delivered) == 20
    # Now there is space again.
    answers.put(OpenedBroadcast(broadcast, request))
    await trio.sleep(3)
    # Its deadline has passed.
    assert len(delivered) == 20
    assert not caplog.records
    answers.put(OpenedBroadcast(broadcast, replace(request, deadline=unix_time() + 10)))
    await trio.sleep(10)
    assert len(delivered) == 21


async def test_what_fails_while_answering_ends_nothing(
    autojump_clock: Any, nursery: trio.Nursery, demand: Any, ensemble: Any, caplog: Any
) -> None:
    delivered: list[float] = []

    class Broken(Bidder):
        async def bid(self, request: BidRequest, caller: Caller) -> BidAnswer:
            await trio.lowlevel.checkpoint()
            raise ZeroDivisionError("ours")

    request = ensemble(demand(), deadline=100)
    broadcast = BroadcastRequest(requester="r", addrs=(), ensemble=to_map(request), issued_at=unix_time())
    broken = answers_of(0, Deliveries("p", delivered), bidder=Broken())
    unreachable = answers_of(0, Deliveries("p", delivered, works=False))
    for answers in (broken, unreachable):
        nursery.start_soon(answers.run)
        for nonce in range(3):
            answers.put(OpenedBroadcast(broadcast, replace(request, nonce=nonce)))
    await trio.sleep(10)
    assert delivered == []
    assert broken._waiting == unreachable._waiting == 0
    assert "ZeroDivisionError" in caplog.text
