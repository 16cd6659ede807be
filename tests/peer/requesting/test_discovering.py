"""Finding peers: what they have free, and how old that is."""

from __future__ import annotations

import pytest
import trio

from dms_peer.requesting import Candidate, RequesterLimits
from dms_protocols.protocol_ids import BID_PROTOCOL, BID_PROTOCOL_1_1, RESOURCES_PROTOCOL
from dms_resources.units import Cores
from dms_simulation.market import ListSource
from dms_simulation.network import LinkConditions
from dms_simulation.providers import provider_operations, simulated_machine
from dms_simulation.scheduling import EPOCH


async def find(market, ensemble, *, requester=None, **options):
    async with (requester or market.requester()).discover(ensemble, **options) as peers:
        return {peer.peer_id: peer async for peer in peers}, peers.progress


async def test_everybody_tells_what_is_free_now_and_why_not(market, autojump_clock):
    await market.start("small", simulated_machine(cores=1))
    await market.start("large", simulated_machine(cores=8))
    found, progress = await find(market, market.ensemble("a", cores=4))
    assert found["large"].able
    assert not found["small"].able
    assert found["small"].refusals[0].code == "resources"
    assert found["large"].free.cpu.cores == Cores.of(8)
    assert found["large"].age == 0.0
    assert found["large"].round_trip > 0
    assert (progress.asked, progress.answered, progress.refused) == (2, 2, {"resources": 1})


async def test_nothing_is_taken(market, autojump_clock):
    manager = await market.start("p")
    before = manager.version
    await find(market, market.ensemble("a"))
    assert manager.version == before
    assert manager.leases() == ()


async def test_it_ends_when_enough_are_able(market, autojump_clock):
    for number in range(12):
        await market.start(f"p{number}", simulated_machine(cores=8 if number % 2 else 1))
    found, progress = await find(market, market.ensemble("a", cores=4), count=2)
    assert sum(peer.able for peer in found.values()) >= 2
    assert progress.asked < 12


async def test_they_come_as_they_answer(market, autojump_clock):
    await market.start("slow", conditions=LinkConditions(latency=1.0))
    await market.start("quick")
    async with market.requester(limits=RequesterLimits(peer_budget=20)).discover(market.ensemble("a")) as peers:
        first = await anext(peers)
        assert first.peer_id == "quick"
        assert trio.current_time() < 1.0
        assert (await anext(peers)).peer_id == "slow"


async def test_what_was_known_before_carries_its_age(market, autojump_clock):
    manager = await market.start("p")
    free = manager.get_free_resources()
    await trio.sleep(100)
    # It answers requests for bids but does not report what it has free.
    operations = provider_operations(manager, "p")
    del operations[RESOURCES_PROTOCOL]
    market.network.add_host("p", operations)
    known = Candidate("p", (), "known", free, EPOCH + trio.current_time() - 70)
    requester = market.requester(sources=[ListSource("known", [known])])
    found, _ = await find(market, market.ensemble("a"), requester=requester)
    assert found["p"].free == free
    assert found["p"].age == pytest.approx(70, abs=1)
    nothing_known = Candidate("p", (), "known")
    requester = market.requester(sources=[ListSource("known", [nothing_known])])
    found, _ = await find(market, market.ensemble("a"), requester=requester)
    assert (found["p"].free, found["p"].age) == (None, None)


async def test_a_peer_that_does_not_bid_at_all_is_a_failure(market, autojump_clock):
    manager = await market.start("p")
    operations = provider_operations(manager, "p")
    del operations[BID_PROTOCOL], operations[BID_PROTOCOL_1_1]
    market.network.add_host("p", operations)
    found, progress = await find(market, market.ensemble("a"))
    assert found == {}
    assert progress.failed == {"protocol_not_supported": 1}


async def test_full_peers_are_passed_over_only_when_a_number_is_wanted(market, autojump_clock):
    manager = await market.start("p", simulated_machine(cores=1))
    full = Candidate("p", (), "known", manager.get_free_resources(), EPOCH + trio.current_time())
    requester = market.requester(sources=[ListSource("known", [full])])
    found, progress = await find(market, market.ensemble("a", cores=4), requester=requester, count=1)
    assert (found, progress.skipped, progress.asked) == ({}, 1, 0)
    found, _ = await find(market, market.ensemble("a", cores=4), requester=requester)
    assert list(found) == ["p"]


async def test_everybody_is_asked_when_the_sources_name_too_few(market, autojump_clock, everybody_hears):
    for number in range(3):
        await market.start(f"p{number}")
    broadcast = everybody_hears(market)
    requester = market.requester(sources=[ListSource("known", market.candidates()[:1])], broadcast=broadcast)
    await find(market, market.ensemble("a"), requester=requester, count=1)
    assert broadcast.used == 0
    found, progress = await find(market, market.ensemble("a"), requester=requester, count=3)
    assert sorted(found) == ["p0", "p1", "p2"]
    assert progress.asked == 1
    assert (found["p2"].source, found["p2"].free, found["p2"].able) == ("broadcast", None, True)
