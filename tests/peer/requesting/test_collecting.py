"""Collecting bids: how many peers are queried, when, and which."""

from __future__ import annotations

import math
from contextlib import asynccontextmanager

import pytest
import trio

from dms_host.errors import DialError
from dms_peer.requesting import AssignmentRules, Candidate, Requester, RequesterLimits
from dms_protocols.messages.bid import BidAnswer, BidRequest, NodeRequest, Refusal
from dms_protocols.protocol_ids import BID_PROTOCOL, BID_PROTOCOL_1_1
from dms_protocols.rpc.operations import Operations
from dms_simulation.market import ListSource
from dms_simulation.network import LinkConditions
from dms_simulation.providers import provider_operations, simulated_demand, simulated_machine
from dms_simulation.scheduling import EPOCH
from dms_simulation.signing import SimulatedOpener


async def collect(market, ensemble, *, requester=None, **options):
    """All bids as (node, peer), and the last progress."""
    requester = requester or market.requester()
    async with requester.collect_bids(ensemble, **options) as bids:
        received = [(bid.node_id, bid.peer_id) async for bid in bids]
        return received, bids.progress


async def start(market, count, first=0, conditions=None, **sizes):
    for number in range(first, first + count):
        kwargs = {"conditions": conditions} if conditions else {}
        await market.start(f"p{number:02}", simulated_machine(**sizes), **kwargs)


SLOW = LinkConditions(latency=2.0, jitter=0.0)
SILENT = LinkConditions(stall=1.0)


# How many are queried


async def test_as_many_peers_are_asked_as_bids_are_missing_and_one_more(market, autojump_clock):
    await start(market, 12)
    received, progress = await collect(market, market.ensemble("a"), want=3)
    assert len(received) >= 3
    assert progress.asked == 4
    assert market.network.traffic.dials == 4


async def test_a_refusal_makes_room_for_the_next_peer(market, autojump_clock):
    await start(market, 6, cores=1)
    await start(market, 2, first=6, cores=8)
    received, progress = await collect(market, market.ensemble("a", cores=4), want=1)
    assert received in ([("a", "p06")], [("a", "p07")])
    assert set(progress.refused) == {"resources"}
    # No peer was late: only refusals led to more queries.
    assert trio.current_time() < RequesterLimits().hedge_delay
    assert progress.asked == 8


async def test_more_peers_are_asked_beside_those_that_are_silent_for_too_long(market, autojump_clock):
    await start(market, 2, conditions=SILENT)
    await start(market, 2, first=2)
    started = trio.current_time()
    received, progress = await collect(market, market.ensemble("a"), want=1)
    assert received[0][1] in ("p02", "p03")
    assert progress.asked >= 3
    elapsed = trio.current_time() - started
    assert RequesterLimits().hedge_delay <= elapsed < RequesterLimits().peer_budget


async def test_the_answer_of_one_that_was_late_is_welcome(market, autojump_clock):
    await start(market, 3, conditions=LinkConditions(latency=0.2, jitter=0.0))
    received, progress = await collect(market, market.ensemble("a"), want=3)
    assert sorted(received) == [("a", "p00"), ("a", "p01"), ("a", "p02")]
    assert progress.failed == {}


async def test_no_more_peers_are_asked_at_once_than_the_limit_says(market, autojump_clock):
    await start(market, 12, conditions=SLOW)
    most = 0

    def watch(progress):
        nonlocal most
        most = max(most, progress.in_flight)

    requester = market.requester(limits=RequesterLimits(peers_in_flight=5, peer_budget=30))
    received, _ = await collect(
        market, market.ensemble("a", seconds=300), requester=requester, want=12, on_progress=watch
    )
    assert len(received) == 12
    assert most == 5


async def test_no_more_peers_are_asked_in_all_than_the_limit_says(market, autojump_clock):
    await start(market, 12, cores=1)
    requester = market.requester(limits=RequesterLimits(peers_asked=7))
    received, progress = await collect(market, market.ensemble("a", cores=4), requester=requester)
    assert received == []
    assert progress.asked == 7


async def test_what_is_under_way_is_cancelled_when_there_is_enough(market, autojump_clock):
    await start(market, 1, conditions=SILENT)
    await start(market, 1, first=1)
    started = trio.current_time()
    received, progress = await collect(market, market.ensemble("a"), want=1)
    assert received == [("a", "p01")]
    assert trio.current_time() - started < RequesterLimits().hedge_delay
    assert progress.in_flight == 0


async def test_leaving_the_block_ends_the_search(market, autojump_clock):
    await start(market, 3)
    async with market.requester().collect_bids(market.ensemble("a"), want=100) as bids:
        await anext(bids)
    with pytest.raises(KeyError, match="the block's own"):
        async with market.requester().collect_bids(market.ensemble("a"), want=100):
            raise KeyError("the block's own")


async def test_it_ends_at_its_deadline(market, autojump_clock):
    await start(market, 3, conditions=SILENT)
    requester = market.requester(limits=RequesterLimits(peer_budget=100))
    started = trio.current_time()
    received, _ = await collect(
        market, market.ensemble("a", seconds=300), requester=requester, deadline=EPOCH + started + 7
    )
    assert received == []
    assert trio.current_time() == pytest.approx(started + 7)


async def test_a_peer_that_fails_is_counted_by_the_code_of_its_failure(market, autojump_clock):
    await start(market, 3)
    await market.stop("p00")
    await market.stop("p01", silent=True)
    received, progress = await collect(market, market.ensemble("a"), want=3)
    assert received == [("a", "p02")]
    assert progress.failed == {"refused": 1, "timeout": 1}
    assert (progress.asked, progress.answered, progress.bids) == (3, 1, 1)


async def test_the_observer_learns_who_answers_and_who_cannot_be_reached(market, autojump_clock):
    class Observer:
        def __init__(self):
            self.heard = []

        def seen(self, peer_id, addrs, free=None):
            self.heard.append(("seen", peer_id, addrs))

        def unreachable(self, peer_id):
            self.heard.append(("unreachable", peer_id))

    await start(market, 3)
    await market.stop("p00")
    await market.stop("p01", silent=True)
    observer = Observer()
    await collect(market, market.ensemble("a"), requester=market.requester(observer=observer), want=3)
    assert sorted(observer.heard) == [
        ("seen", "p02", ("/memory/p02",)),
        ("unreachable", "p00"),
        ("unreachable", "p01"),
    ]


# Where peers come from


async def test_the_next_source_is_used_only_when_the_one_before_is_at_its_end(market, autojump_clock):
    await start(market, 6)
    known, others = market.candidates()[:4], market.candidates("dht")[2:]
    sources = [ListSource("known", known), ListSource("dht", others)]
    await collect(market, market.ensemble("a"), requester=market.requester(sources=sources), want=2)
    assert sources[1].named == 0
    received, progress = await collect(
        market, market.ensemble("a"), requester=market.requester(sources=sources), want=6
    )
    assert sorted(peer_id for _, peer_id in received) == [f"p{number:02}" for number in range(6)]
    assert progress.asked == 6
    assert progress.source == "dht"


class StuckSource:
    name = "stuck"

    def __init__(self, first):
        self.first = first
        self.closed = False

    @asynccontextmanager
    async def candidates(self, request):
        async def named():
            yield self.first
            await trio.sleep(math.inf)

        try:
            yield named()
        finally:
            self.closed = True


async def test_a_source_that_says_nothing_for_too_long_is_left(market, autojump_clock):
    await start(market, 2)
    first, second = market.candidates()
    stuck = StuckSource(first)
    requester = market.requester(sources=[stuck, ListSource("next", [second])])
    started = trio.current_time()
    received, _ = await collect(market, market.ensemble("a"), requester=requester, want=2)
    assert [peer_id for _, peer_id in received] == ["p00", "p01"]
    assert stuck.closed
    assert trio.current_time() - started < RequesterLimits().source_patience + 1


async def test_neither_itself_nor_excluded_peers_nor_one_peer_twice_are_asked(market, autojump_clock):
    await start(market, 3)
    named = [Candidate("requester", (), "known"), *market.candidates(), *market.candidates()]
    requester = market.requester(sources=[ListSource("known", named)])
    received, progress = await collect(market, market.ensemble("a", exclude=["p01"]), requester=requester, want=9)
    assert sorted(peer_id for _, peer_id in received) == ["p00", "p02"]
    assert progress.asked == 2


class Moved:
    """A network in which peers are reached at one address and no longer at another."""

    def __init__(self, network, dead_after):
        self.network = network
        self.peer_id = network.peer_id
        self.dead_after = dead_after
        self.asked = []

    @asynccontextmanager
    async def client(self, peer_id, protocol, addrs=()):
        self.asked.append(addrs)
        if addrs == ("/was/here",):
            await trio.sleep(self.dead_after)
            raise DialError("nobody is there", code="unreachable", address="/was/here", hint="look elsewhere")
        async with self.network.client(peer_id, protocol, addrs) as client:
            yield client


@pytest.mark.parametrize("dead_after", [0.0, 3.0])
async def test_a_peer_that_moved_is_asked_where_another_source_says_that_it_is(market, autojump_clock, dead_after):
    await start(market, 1)
    stale, same = Candidate("p00", ("/was/here",), "known"), Candidate("p00", ("/was/here",), "mdns")
    fresh = Candidate("p00", ("/is/here", "/was/here"), "dht")
    sources = [ListSource("known", [stale]), ListSource("mdns", [same, same]), ListSource("dht", [fresh, fresh])]
    network = Moved(market.network.peer("requester"), dead_after)
    requester = Requester(network, SimulatedOpener(), sources, clock=market.clock.wall)
    received, _ = await collect(market, market.ensemble("a"), requester=requester)
    assert received == [("a", "p00")]
    assert network.asked == [("/was/here",), ("/is/here", "/was/here")]
    async with requester.discover(market.ensemble("a")) as found:
        assert [peer.peer_id async for peer in found] == ["p00"]


# Hints


async def hinted(market, peer_id, age, free):
    return [Candidate(peer_id, (), "known", free, EPOCH + trio.current_time() - age)]


async def test_a_peer_that_is_known_to_be_full_now_is_not_asked(market, autojump_clock):
    await start(market, 1, cores=8)
    await start(market, 1, first=1, cores=1)
    await trio.sleep(60)
    full = market.manager("p01").get_free_resources()
    for age, asked in ((1.0, 0), (60.0, 1)):
        sources = [ListSource("known", await hinted(market, "p00", age, full))]
        received, progress = await collect(
            market, market.ensemble("a", cores=4), requester=market.requester(sources=sources)
        )
        assert (progress.asked, progress.skipped, len(received)) == (asked, 1 - asked, asked)


async def test_a_peer_that_is_known_to_have_room_is_asked_all_the_same(market, autojump_clock):
    await start(market, 1, cores=8)
    await start(market, 1, first=1, cores=1)
    room = market.manager("p00").get_free_resources()
    sources = [ListSource("known", await hinted(market, "p01", 0.0, room))]
    received, progress = await collect(
        market, market.ensemble("a", cores=4), requester=market.requester(sources=sources)
    )
    assert received == []
    assert progress.refused == {"resources": 1}


# Several nodes


async def test_one_peer_bids_on_several_nodes(market, autojump_clock):
    await start(market, 3, cores=8)
    received, progress = await collect(market, market.ensemble("a", "b", "c", cores=2), want=1)
    assert {node_id for node_id, _ in received} == {"a", "b", "c"}
    assert progress.asked <= 2


async def test_different_peers_are_asked_for_different_nodes_first(market, autojump_clock):
    # Each has enough for one node only: if all were asked for the same node first, the others would get no bid.
    await start(market, 2, cores=2)
    received, progress = await collect(market, market.ensemble("a", "b", cores=2), want=1)
    assert sorted(node_id for node_id, _ in received) == ["a", "b"]
    assert len({peer_id for _, peer_id in received}) == 2
    assert progress.asked == 2


async def test_a_node_refused_beside_others_is_asked_for_alone(market, autojump_clock):
    # Only the second peer has a GPU, and it has enough for one of the nodes.
    await start(market, 1, cores=2, gpus=(16,))
    small = NodeRequest(node_id="small", resources=simulated_demand(cores=2))
    with_gpu = NodeRequest(node_id="gpu", resources=simulated_demand(cores=2, gpus=(16,)))
    received, progress = await collect(market, market.ensemble(small, with_gpu), want=1)
    assert sorted(received) == [("gpu", "p00"), ("small", "p00")]
    assert progress.asked == 2


async def test_a_node_that_could_never_fit_is_not_asked_for_again(market, autojump_clock):
    await start(market, 1, cores=2)
    small = NodeRequest(node_id="small", resources=simulated_demand(cores=2))
    large = NodeRequest(node_id="large", resources=simulated_demand(cores=4))
    received, progress = await collect(market, market.ensemble(small, large), want=1)
    assert received == [("small", "p00")]
    assert progress.asked == 1


async def test_a_pinned_node_is_asked_of_its_peer_and_of_nobody_else(market, autojump_clock):
    await start(market, 4, cores=8)
    source = ListSource("known", market.candidates()[:3])
    requester, rules = market.requester(sources=[source]), AssignmentRules(pins={"b": "p03"})
    received, _ = await collect(market, market.ensemble("a", "b"), requester=requester, want=1, rules=rules)
    assert [peer_id for node_id, peer_id in received if node_id == "b"] == ["p03"]
    # If all nodes are pinned, no peer has to be found.
    source.named = 0
    received, progress = await collect(market, market.ensemble("b"), requester=requester, want=3, rules=rules)
    assert received == [("b", "p03")]
    assert (progress.asked, source.named) == (1, 0)


# The last resort


async def test_everybody_is_asked_only_when_the_sources_do_not_suffice(market, autojump_clock, everybody_hears):
    await start(market, 6)
    broadcast = everybody_hears(market)
    requester = market.requester(sources=[ListSource("known", market.candidates()[:2])], broadcast=broadcast)
    await collect(market, market.ensemble("a"), requester=requester, want=2)
    assert broadcast.used == 0
    received, progress = await collect(market, market.ensemble("a"), requester=requester, want=5)
    assert broadcast.used == 1
    assert len({peer_id for _, peer_id in received}) == 5
    assert progress.asked == 2


async def test_bids_that_prove_nothing_are_no_bids(market, autojump_clock):
    await start(market, 2)

    class Forged(SimulatedOpener):
        def open(self, raw, domain, payload_type):
            signer, payload = super().open(raw, domain, payload_type)
            return ("p01" if signer == "p00" else signer), payload

    requester = Requester(
        market.network.peer("requester"), Forged(), [ListSource("known", market.candidates())], clock=market.clock.wall
    )
    received, progress = await collect(market, market.ensemble("a"), requester=requester, want=2)
    assert received == [("a", "p01")]
    assert progress.failed == {"bad_bid": 1}


async def test_a_peer_that_answers_far_too_much_costs_no_more_than_another(market, autojump_clock):
    manager = await market.start("p")
    operations = provider_operations(manager, "p")

    def flood(request, caller):
        refusals = [Refusal(node_id="a", code=f"code{number}", message=str(number)) for number in range(2000)]
        refusals += [Refusal(node_id=f"n{number}", code="resources", message="") for number in range(2000)]
        return BidAnswer(bids=(), refusals=tuple(refusals))

    flooding = Operations()
    flooding.quick(BidRequest, flood)
    for protocol in (BID_PROTOCOL, BID_PROTOCOL_1_1):
        operations[protocol] = flooding
    market.network.add_host("p", operations)
    async with market.requester().collect_bids(market.ensemble("a")) as bids:
        assert [bid async for bid in bids] == []
        assert len(bids.progress.refused) <= 33
        assert sum(bids.progress.refused.values()) == 4000
        assert len(bids.reasons("a").peers) == 1


async def test_a_network_that_raises_says_so_by_its_code(market, autojump_clock):
    class Denied:
        peer_id = "requester"

        @asynccontextmanager
        async def client(self, peer_id, protocol, addrs=()):
            raise DialError("not allowed", code="denied", address=peer_id, hint="")
            yield

    requester = Requester(
        Denied(), SimulatedOpener(), [ListSource("known", [Candidate("p", (), "known")])], clock=market.clock.wall
    )
    async with requester.collect_bids(market.ensemble("a")) as bids:
        assert [bid async for bid in bids] == []
        assert bids.progress.failed == {"denied": 1}
        assert bids.reasons("a").peers[0].message == "not allowed"
