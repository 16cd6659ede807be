"""All or nothing, kept while a block runs, and released."""

from __future__ import annotations

import logging
import random

import pytest
import trio

from dms_peer.requesting import AssignmentRules, Candidate, RequesterLimits
from dms_peer.requesting.errors import ReservationError, ReservationLostError, StrategyError
from dms_protocols.bidding.policies import Decision
from dms_protocols.bidding.service import BidTerms
from dms_protocols.errors import BidError, BusyError
from dms_protocols.messages.bid import NodeRequest, Price
from dms_protocols.protocol_ids import ALLOCATION_PROTOCOL_1_1
from dms_resources.ledger.leases import LeaseState
from dms_simulation.market import ListSource
from dms_simulation.network import LinkConditions
from dms_simulation.providers import provider_operations, simulated_demand, simulated_machine
from dms_simulation.scheduling import EPOCH


def promised(market):
    """The providers that have leases of the requester, and how many."""
    counts = {
        peer_id: len(market.manager(peer_id).leases("requester"))
        for peer_id in market.peer_ids
        if market.running(peer_id)
    }
    return {peer_id: count for peer_id, count in counts.items() if count}


def states(market, reservation):
    leases = reservation.leases
    return {
        node_id: market.manager(peer_id).lease(leases[node_id].lease_id).state
        for node_id, peer_id in reservation.peers.items()
    }


async def start(market, count, first=0, **sizes):
    for number in range(first, first + count):
        await market.start(f"p{number}", simulated_machine(**sizes))


async def start_near_and_far(market, count, **sizes):
    """p0 is the nearest, and so on."""
    for number in range(count):
        conditions = LinkConditions(latency=0.01 + number / 50, jitter=0.0)
        await market.start(f"p{number}", simulated_machine(**sizes), conditions=conditions)


async def fill(market, peer_id, ttl=1000.0, **demand):
    """Another requester takes something."""
    ids = random.Random(len(market.manager(peer_id).leases())).getrandbits(32)
    await market.manager(peer_id).commit_resources(f"t{ids}", simulated_demand(**demand), holder="tenant", ttl=ttl)


class Before:
    """The operations of a provider, with an event just before the first call of one of them."""

    def __init__(self, market, peer_id, name, happens):
        manager = market.manager(peer_id)
        operations = provider_operations(manager, peer_id, clock=market.clock)
        self.known = operations[ALLOCATION_PROTOCOL_1_1]
        self.name = name
        self.happens = happens
        self.requests = []
        market.network.add_host(peer_id, {**operations, ALLOCATION_PROTOCOL_1_1: self})

    @property
    def calls(self):
        return len(self.requests)

    def __getitem__(self, name):
        operation = self.known[name]
        if name != self.name:
            return operation

        async def handler(request, caller):
            self.requests.append(request)
            if self.calls == 1:
                await self.happens()
            return await operation.handler(request, caller)

        return type(operation)(operation.name, operation.kind, operation.request_type, handler)

    def get(self, name, default=None):
        return self[name] if name in self.known else default


# Taking


async def test_an_ensemble_is_committed_while_the_block_runs_and_free_after_it(market, autojump_clock):
    await start(market, 3, cores=2)
    async with market.requester().reserve(market.ensemble("a", "b", "c", cores=2)) as reservation:
        assert set(reservation.peers.values()) == {"p0", "p1", "p2"}
        assert states(market, reservation) == dict.fromkeys("abc", LeaseState.COMMITTED)
        assert reservation.addrs["a"] == (f"/memory/{reservation.peers['a']}",)
    assert promised(market) == {}


async def test_all_nodes_of_a_peer_are_taken_with_one_request(market, autojump_clock):
    await start(market, 1, cores=8)
    commit = Before(market, "p0", "commit", trio.lowlevel.checkpoint)
    async with market.requester().reserve(market.ensemble("a", "b", "c", cores=2), want=1):
        assert promised(market) == {"p0": 3}
    assert commit.calls == 1


async def test_nothing_is_taken_when_one_node_cannot_be_had(market, autojump_clock):
    await start(market, 2, cores=2)
    with pytest.raises(ReservationError) as caught:
        async with market.requester().reserve(market.ensemble("a", "b", "c", cores=2)):
            pytest.fail("the block ran")
    assert caught.value.code == "no_assignment"
    assert promised(market) == {}
    # It was clear at once: no peer was waited for.
    assert trio.current_time() < 5


async def test_the_error_says_for_each_node_what_every_peer_said(market, autojump_clock):
    await start(market, 3, cores=2, ram=4)
    await market.stop("p2")
    with pytest.raises(ReservationError) as caught:
        async with market.requester().reserve(market.ensemble("a", cores=4, ram=8)):
            pass
    error = caught.value
    assert error.code == "no_bids"
    (reasons,) = error.reasons
    assert reasons.node_id == "a"
    assert reasons.why == "no peer bids on it"
    refusal, failure = reasons.peers
    assert (refusal.code, refusal.count) == ("resources", 2)
    assert [type(shortage).__name__ for shortage in refusal.shortages] == ["CPUShortage", "RAMShortage"]
    assert (failure.code, failure.count) == ("refused", 1)
    assert "cpu: 4 cores asked, 2 cores free of 2 cores" in str(error)


async def test_nobody_to_ask_is_said(market, autojump_clock):
    with pytest.raises(ReservationError) as caught:
        async with market.requester().reserve(market.ensemble("a")):
            pass
    assert caught.value.code == "no_peers"


async def test_who_is_known_to_have_too_little_is_somebody(market, autojump_clock):
    await start(market, 1, cores=2)
    full = market.manager("p0").get_free_resources()
    source = ListSource("known", [Candidate("p0", (), "known", full, EPOCH + trio.current_time())])
    with pytest.raises(ReservationError) as caught:
        async with market.requester(sources=[source]).reserve(market.ensemble("a", cores=4)):
            pass
    assert caught.value.code == "no_bids"
    assert [(said.code, said.count) for said in caught.value.reasons[0].peers] == [("known_full", 1)]


async def test_an_unknown_strategy_is_refused_before_anybody_is_asked(market, autojump_clock):
    with pytest.raises(StrategyError):
        market.requester().reserve(market.ensemble("a"), strategy="dearest")


async def test_a_time_to_live_that_is_none_is_refused_at_once(market, autojump_clock):
    await start(market, 1)
    for ttl in (0, -1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="a commitment of"):
            market.requester().reserve(market.ensemble("a"), ttl=ttl)
    # A time that only the provider knows to be too long is not requested again and again.
    with pytest.raises(ReservationError) as caught:
        async with market.requester().reserve(market.ensemble("a", seconds=1000), ttl=1e12):
            pass
    assert caught.value.reasons[0].peers[0].code == "policy"
    assert trio.current_time() < 10


async def test_the_rules_are_kept(market, autojump_clock):
    await start(market, 4, cores=8)
    rules = AssignmentRules(different_peers=True, pins={"b": "p2"}, exclusions=frozenset({("p0", "a"), ("p1", "a")}))
    async with market.requester().reserve(market.ensemble("a", "b", exclude=["p1"]), rules=rules) as reservation:
        assert reservation.peers == {"a": "p3", "b": "p2"}


async def test_as_many_different_peers_are_asked_as_there_are_nodes(market, autojump_clock):
    await start(market, 8, cores=32)
    nodes = [f"n{number}" for number in range(6)]
    rules = AssignmentRules(different_peers=True)
    async with market.requester().reserve(market.ensemble(*nodes), want=1, rules=rules) as reservation:
        assert len(set(reservation.peers.values())) == 6


async def test_a_pinned_peer_that_refuses_is_named(market, autojump_clock):
    await start(market, 1, cores=1)
    await start(market, 2, first=1, cores=8)
    with pytest.raises(ReservationError) as caught:
        async with market.requester().reserve(
            market.ensemble("a", "b", cores=2), rules=AssignmentRules(pins={"b": "p0"})
        ):
            pass
    assert caught.value.code == "no_bids"
    assert [reason.node_id for reason in caught.value.reasons] == ["b"]
    assert "pinned" in caught.value.reasons[0].why


class FlatPrice:
    """A policy that accepts everything at one price."""

    def __init__(self, micros):
        self.decision = Decision(accept=True, price=Price(micros_per_hour=micros, currency="EUR"))

    def decide(self, request):
        return [self.decision for _ in request.nodes]


def priced(micros):
    return BidTerms(policies=(FlatPrice(micros),))


async def test_the_strategy_chooses_among_the_bids(market, autojump_clock):
    for name, cores, price, latency in (("a", 8, 30, 0.05), ("b", 4, 10, 0.09), ("c", 2, 20, 0.01)):
        await market.start(
            name,
            simulated_machine(cores=cores),
            terms=priced(price),
            conditions=LinkConditions(latency=latency, jitter=0.0),
        )
    chosen = {}
    for strategy in ("cheapest", "tightest", "nearest"):
        async with market.requester().reserve(market.ensemble("n", cores=2), strategy=strategy) as reservation:
            chosen[strategy] = reservation.peers["n"]
    assert chosen == {"cheapest": "b", "tightest": "c", "nearest": "c"}
    async with market.requester().reserve(market.ensemble("m", "n", cores=1), strategy="spread") as reservation:
        assert len(set(reservation.peers.values())) == 2


async def test_better_bids_are_waited_for_but_not_for_long(market, autojump_clock):
    await market.start("dear", terms=priced(30))
    await market.start("cheap", terms=priced(10), conditions=LinkConditions(latency=0.1))
    await market.start("silent", conditions=LinkConditions(stall=1.0))
    started = trio.current_time()
    async with market.requester().reserve(market.ensemble("a"), want=3) as reservation:
        assert reservation.peers == {"a": "cheap"}
        assert trio.current_time() - started < 2


# When some fail


async def test_a_peer_that_no_longer_has_what_it_bid_is_replaced(market, autojump_clock):
    await start_near_and_far(market, 2, cores=2)

    async def somebody_is_faster():
        await fill(market, "p0", cores=2)

    Before(market, "p0", "commit", somebody_is_faster)
    async with market.requester().reserve(market.ensemble("a", cores=2), strategy="nearest", want=2) as reservation:
        assert reservation.peers == {"a": "p1"}
        assert reservation.progress.failed == {"insufficient": 1}
        assert promised(market) == {"p1": 1}


class Liar(Before):
    """A provider that bids and never keeps it."""

    def __init__(self, market, peer_id):
        async def nothing():
            pass

        super().__init__(market, peer_id, "commit", nothing)

    def __getitem__(self, name):
        operation = self.known[name]
        if name != self.name:
            return operation

        async def handler(request, caller):
            self.requests.append(request)
            raise BidError("it was valid for a moment only", code="bid_expired")

        return type(operation)(operation.name, operation.kind, operation.request_type, handler)


@pytest.mark.parametrize(("liars", "want"), [(1, 1), (3, 3), (12, 3)])
async def test_peers_that_never_keep_their_bids_do_not_keep_it_from_those_that_do(market, autojump_clock, liars, want):
    # They answer faster than the only honest one.
    await start_near_and_far(market, liars + 1, cores=2)
    lying = [Liar(market, f"p{number}") for number in range(liars)]
    async with market.requester().reserve(market.ensemble("a", cores=2), want=want) as reservation:
        assert reservation.peers == {"a": f"p{liars}"}
    assert max(liar.calls for liar in lying) <= 6


@pytest.mark.parametrize("want", [1, 2, 3])
@pytest.mark.parametrize("valid", [0.001, 0.05, 0.3])
async def test_bids_that_lapse_at_once_do_not_stand_in_the_way_of_others(market, autojump_clock, valid, want):
    near, far = LinkConditions(latency=0.01, jitter=0.0), LinkConditions(latency=0.4, jitter=0.0)
    await market.start("lapses", simulated_machine(cores=2), terms=BidTerms(valid_seconds=valid), conditions=near)
    await market.start("stays", simulated_machine(cores=2), conditions=far)
    async with market.requester().reserve(market.ensemble("a", cores=2), want=want) as reservation:
        # It may also have been fast enough.
        assert list(reservation.peers) == ["a"]
        assert reservation.peers["a"] == "stays" or valid > 0.02


async def test_a_pinned_peer_is_asked_again_however_often_it_fails(market, autojump_clock):
    await start(market, 2, cores=2)
    liar = Liar(market, "p0")
    with pytest.raises(ReservationError) as caught:
        async with market.requester().reserve(market.ensemble("a", cores=2), rules=AssignmentRules(pins={"a": "p0"})):
            pytest.fail("it never keeps its bids")
    assert caught.value.code == "not_taken"
    assert liar.calls > 6


async def test_a_peer_that_dies_while_it_commits_is_replaced_and_the_rest_stays(market, autojump_clock):
    await start_near_and_far(market, 3, cores=2)

    async def death():
        await market.stop("p0", silent=True)

    Before(market, "p0", "commit", death)
    others = [Before(market, peer_id, "commit", trio.lowlevel.checkpoint) for peer_id in ("p1", "p2")]
    ensemble = market.ensemble("a", "b", cores=2)
    async with market.requester().reserve(ensemble, strategy="nearest", want=3) as reservation:
        assert set(reservation.peers.values()) == {"p1", "p2"}
        assert sum(commit.calls for commit in others) == 2
    await market.restart("p0")
    assert promised(market) == {}


async def test_a_commitment_that_stands_in_the_way_is_given_back_before_its_room_is_taken(market, autojump_clock):
    # p1 has enough for one of the nodes. "a" is cheapest there, until "b" finds no other place.
    await market.start("p0", simulated_machine(cores=4), terms=priced(50))
    await market.start("p1", simulated_machine(cores=2), terms=priced(10))
    await market.start("p2", simulated_machine(cores=2), terms=priced(10))

    async def somebody_is_faster():
        await fill(market, "p2", cores=2)

    Before(market, "p2", "commit", somebody_is_faster)
    rules = AssignmentRules(exclusions=frozenset({("p0", "b"), ("p2", "a")}))
    ensemble = market.ensemble("a", "b", cores=2)
    async with market.requester().reserve(ensemble, rules=rules, want=2) as reservation:
        assert reservation.peers == {"a": "p0", "b": "p1"}
        assert reservation.progress.attempts == 2
        assert promised(market) == {"p0": 1, "p1": 1}
    assert promised(market) == {}


async def test_what_is_committed_is_kept_while_another_peer_is_sought_for_the_rest(market, autojump_clock):
    await start(market, 3, cores=2)
    commits = {}

    async def somebody_is_faster():
        await fill(market, "p1", cores=2)

    for peer_id, happens in (("p0", trio.lowlevel.checkpoint), ("p1", somebody_is_faster)):
        commits[peer_id] = Before(market, peer_id, "commit", happens)
    requester = market.requester(limits=RequesterLimits(slack=0, peers_in_flight=1))
    async with requester.reserve(market.ensemble("a", "b", cores=2), want=1) as reservation:
        assert set(reservation.peers.values()) == {"p0", "p2"}
        assert commits["p0"].calls == commits["p1"].calls == 1


async def test_nothing_is_kept_for_long_while_the_rest_cannot_be_had(market, autojump_clock):
    await start(market, 2, cores=2)
    held = []

    async def somebody_is_faster():
        await fill(market, "p1", ttl=30.0, cores=2)

    async def watch():
        while True:
            await trio.sleep(0.1)
            held.append(bool(promised(market)))

    Before(market, "p1", "commit", somebody_is_faster)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch)
        async with market.requester().reserve(market.ensemble("a", "b", cores=2, seconds=60), wait=True):
            nursery.cancel_scope.cancel()
    # It had one half, released it, and held nothing most of the time until the other half was free.
    assert held.index(True) < 30
    assert held.count(True) < len(held) / 4


class AnswerLost(Before):
    """A provider that commits, and whose answer arrives far too late."""

    def __getitem__(self, name):
        operation = super().__getitem__(name)
        if name != "commit":
            return operation

        async def handler(request, caller):
            answer = await operation.handler(request, caller)
            await trio.sleep(60)
            return answer

        return type(operation)(operation.name, operation.kind, operation.request_type, handler)


class Delayed(Before):
    """A provider that is slow with one operation."""

    def __init__(self, market, peer_id, name, seconds):
        super().__init__(market, peer_id, name, trio.lowlevel.checkpoint)
        self.seconds = seconds

    def __getitem__(self, name):
        operation = super().__getitem__(name)
        if name != self.name:
            return operation

        async def handler(request, caller):
            answer = await operation.handler(request, caller)
            await trio.sleep(self.seconds)
            return answer

        return type(operation)(operation.name, operation.kind, operation.request_type, handler)


async def test_a_commitment_whose_answer_was_lost_is_given_back(market, autojump_clock):
    await start_near_and_far(market, 2, cores=2)
    silent = AnswerLost(market, "p0", "commit", trio.lowlevel.checkpoint)
    ensemble = market.ensemble("a", cores=2)
    async with market.requester().reserve(ensemble, strategy="nearest", want=2, ttl=300) as reservation:
        assert silent.calls == 1
        assert reservation.peers == {"a": "p1"}
        # Its budget ends first: until then it may only be slow.
        await trio.sleep(6)
        assert promised(market) == {"p1": 1}


async def test_silent_providers_at_commit_cost_half_a_second_each(market, autojump_clock):
    await start_near_and_far(market, 5, cores=2)
    for number in range(4):
        AnswerLost(market, f"p{number}", "commit", trio.lowlevel.checkpoint)
    started = trio.current_time()
    async with market.requester().reserve(
        market.ensemble("a", cores=2), strategy="nearest", want=5, ttl=300
    ) as reservation:
        assert reservation.peers == {"a": "p4"}
        assert trio.current_time() - started < 4
        await trio.sleep(8)
        assert promised(market) == {"p4": 1}


async def test_a_provider_that_is_only_slow_to_commit_is_waited_for_when_nobody_else_is_left(market, autojump_clock):
    await start(market, 1, cores=2)
    Delayed(market, "p0", "commit", 2.0)
    async with market.requester().reserve(market.ensemble("a", cores=2), ttl=300) as reservation:
        assert reservation.peers == {"a": "p0"}
    assert promised(market) == {}


async def test_a_commitment_that_comes_late_is_released_when_another_took_its_place(market, autojump_clock):
    await start_near_and_far(market, 2, cores=2)
    Delayed(market, "p0", "commit", 2.0)
    async with market.requester().reserve(
        market.ensemble("a", cores=2), strategy="nearest", want=2, ttl=300
    ) as reservation:
        assert reservation.peers == {"a": "p1"}
        await trio.sleep(4)
        assert promised(market) == {"p1": 1}


async def test_what_is_left_over_is_given_back_even_when_the_rest_is_kept(market, autojump_clock):
    await start_near_and_far(market, 2, cores=2)

    async def slow_down():
        market.network.set_conditions("p0", LinkConditions(latency=1.0))

    AnswerLost(market, "p0", "commit", slow_down)
    ensemble = market.ensemble("a", cores=2)
    async with market.requester().reserve(ensemble, strategy="nearest", want=2, ttl=300, keep=True):
        assert promised(market) == {"p0": 1, "p1": 1}
    assert promised(market) == {"p1": 1}


async def test_what_a_peer_bids_beside_what_is_kept_there_is_taken_beside_it(market, autojump_clock):
    await start(market, 2, cores=4)
    await fill(market, "p0", cores=2)
    (tenant,) = market.manager("p0").leases()

    async def others_come_and_go():
        await market.manager("p0").release(tenant.lease_id)
        await fill(market, "p1", cores=4)

    commits = [Before(market, "p0", "commit", trio.lowlevel.checkpoint)]
    Before(market, "p1", "commit", others_come_and_go)
    requester = market.requester(limits=RequesterLimits(slack=0, peers_in_flight=1))
    rules = AssignmentRules(exclusions=frozenset({("p1", "a")}))
    async with requester.reserve(market.ensemble("a", "b", cores=2), want=1, rules=rules) as reservation:
        assert reservation.peers == {"a": "p0", "b": "p0"}
        assert [len(request.bids) for request in commits[0].requests] == [1, 1]


async def test_a_commit_whose_connection_was_cut_is_asked_again(market, autojump_clock):
    await start(market, 1, cores=2)

    async def cut():
        market.network.cut("requester", "p0")
        # Nothing of what follows comes from this request.
        await trio.sleep_forever()

    commit = Before(market, "p0", "commit", cut)
    async with market.requester().reserve(market.ensemble("a", cores=2)) as reservation:
        assert commit.calls == 2
        assert reservation.progress.attempts == 1


async def test_two_requesters_that_want_the_same_do_not_wait_for_each_other(market, autojump_clock):
    await start(market, 2, cores=2)
    taken = []

    async def take(name):
        ensemble = market.ensemble("a", "b", seconds=60, cores=2)
        async with market.requester(name).reserve(ensemble, wait=True, ttl=30) as reservation:
            assert len(reservation.peers) == 2
            taken.append(name)
            await trio.sleep(5)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(take, "one")
        nursery.start_soon(take, "two")
    assert sorted(taken) == ["one", "two"]
    assert all(market.manager(peer_id).leases() == () for peer_id in market.peer_ids)


async def test_it_waits_until_something_is_free_when_told_to(market, autojump_clock):
    await start(market, 1, cores=2)
    await fill(market, "p0", ttl=10.0, cores=2)
    with pytest.raises(ReservationError):
        async with market.requester().reserve(market.ensemble("a", cores=2)):
            pass
    assert trio.current_time() < 5
    async with market.requester().reserve(market.ensemble("a", cores=2, seconds=60), wait=True):
        assert 10 < trio.current_time() < 20


async def test_it_gives_up_at_its_deadline(market, autojump_clock):
    await start(market, 1, cores=2)
    await fill(market, "p0", cores=2)
    started = trio.current_time()
    with pytest.raises(ReservationError) as caught:
        async with market.requester().reserve(market.ensemble("a", cores=2, seconds=40), wait=True):
            pass
    assert caught.value.code == "no_bids"
    assert 30 < trio.current_time() - started < 42
    # A requester that waits repeats its requests less and less often.
    assert market.network.traffic.streams < 20


# While the block runs


async def test_commitments_outlive_their_time_while_the_block_runs(market, autojump_clock):
    await start(market, 2, cores=2)
    renewals = [Before(market, peer_id, "renew", trio.lowlevel.checkpoint) for peer_id in ("p0", "p1")]
    async with market.requester().reserve(market.ensemble("a", "b", cores=2), ttl=30) as reservation:
        first = dict(reservation.leases)
        await trio.sleep(500)
        assert states(market, reservation) == dict.fromkeys("ab", LeaseState.COMMITTED)
        assert all(reservation.leases[node].deadline > first[node].deadline + 400 for node in "ab")
        assert all(reservation.leases[node].fence == first[node].fence for node in "ab")
    # Each at a third of its time, with the fencing number, so that a holder that was suspended gets an error.
    for renewal in renewals:
        assert renewal.calls in (49, 50)
        assert {request.fence for request in renewal.requests} <= {lease.fence for lease in first.values()}
    assert promised(market) == {}


async def test_a_provider_that_is_away_for_less_than_its_deadline_does_no_harm(market, autojump_clock):
    await start(market, 1, cores=2)
    async with market.requester().reserve(market.ensemble("a", cores=2), ttl=30) as reservation:
        await market.stop("p0", silent=True)
        await trio.sleep(15)
        await market.restart("p0")
        await trio.sleep(100)
        assert states(market, reservation) == {"a": LeaseState.COMMITTED}


async def test_the_block_is_cancelled_when_a_provider_is_away_for_too_long(market, autojump_clock):
    await start(market, 2, cores=2)
    started = trio.current_time()

    async def use():
        async with market.requester().reserve(market.ensemble("a", "b", cores=2), ttl=30) as reservation:
            await market.stop(reservation.peers["a"])
            try:
                await trio.sleep(100)
            finally:
                assert reservation.lost.is_set()
                # Never later than the provider's own deadline, after which another requester may have it.
                assert trio.current_time() < started + 31

    with pytest.raises(ReservationLostError) as caught:
        await use()
    assert caught.value.node_ids == ("a",)
    assert "a at p" in str(caught.value)
    assert promised(market) == {}


async def test_the_block_is_cancelled_at_once_when_the_provider_says_that_it_is_gone(market, autojump_clock):
    await start(market, 1, cores=2)

    async def use():
        async with market.requester().reserve(market.ensemble("a", cores=2), ttl=30) as reservation:
            await market.manager("p0").release(reservation.leases["a"].lease_id)
            await trio.sleep(100)

    with pytest.raises(ReservationLostError) as caught:
        await use()
    assert "ended" in str(caught.value)
    assert trio.current_time() < 15


async def test_what_the_block_raises_comes_out_as_it_is(market, autojump_clock):
    await start(market, 1)
    with pytest.raises(KeyError, match="the block's own"):
        async with market.requester().reserve(market.ensemble("a")):
            raise KeyError("the block's own")
    assert promised(market) == {}


# The end


async def test_everything_is_given_back_when_the_requester_is_cancelled(market, autojump_clock):
    await start(market, 2, cores=2)
    with trio.move_on_after(5) as scope:
        async with market.requester().reserve(market.ensemble("a", "b", cores=2), ttl=1000):
            assert len(promised(market)) == 2
            await trio.sleep_forever()
    assert scope.cancelled_caught
    assert promised(market) == {}


@pytest.mark.parametrize("seconds", [0.05, 0.1, 0.15, 0.2, 0.25, 0.3])
async def test_everything_is_given_back_when_it_is_cancelled_while_it_takes(market, autojump_clock, seconds):
    await start(market, 3, cores=2)
    with trio.move_on_after(seconds):
        async with market.requester().reserve(market.ensemble("a", "b", "c", cores=2), ttl=1000):
            await trio.sleep_forever()
    assert promised(market) == {}


class CancelAt(trio.abc.Instrument):
    """Cancels a scope after this many steps of all tasks together."""

    def __init__(self, steps, scope):
        self.left = steps
        self.scope = scope

    def after_task_step(self, task):
        self.left -= 1
        if self.left == 0:
            self.scope.cancel()


@pytest.mark.parametrize("first", range(4))
async def test_everything_is_given_back_at_whatever_step_it_is_cancelled(market, autojump_clock, first):
    await start(market, 3, cores=2)
    step, ended = 5 + first * 6, False
    while not ended:
        with trio.CancelScope() as scope:
            canceller = CancelAt(step, scope)
            trio.lowlevel.add_instrument(canceller)
            try:
                async with market.requester().reserve(market.ensemble("a", "b", "c", cores=2), ttl=1000) as reservation:
                    await reservation.allocate()
                    ended = True
            finally:
                trio.lowlevel.remove_instrument(canceller)
        assert promised(market) == {}
        step += 24
    # It went through all of it.
    assert step > 200


class Busy(Before):
    """A provider that answers one operation with `busy` and a time to retry, for some seconds."""

    def __init__(self, market, peer_id, name, until, retry_after):
        async def nothing():
            pass

        super().__init__(market, peer_id, name, nothing)
        self.until = until
        self.retry_after = retry_after
        self.times = []

    def __getitem__(self, name):
        operation = self.known[name]
        if name != self.name:
            return operation

        async def handler(request, caller):
            self.times.append(trio.current_time())
            if self.times[-1] < self.until:
                raise BusyError("not now", retry_after=self.retry_after)
            return await operation.handler(request, caller)

        return type(operation)(operation.name, operation.kind, operation.request_type, handler)


@pytest.mark.parametrize("operation", ["renew", "release"])
async def test_who_is_busy_is_left_alone_for_as_long_as_it_asks(market, autojump_clock, operation):
    await start(market, 1, cores=2)
    busy = Busy(market, "p0", operation, trio.current_time() + 20, 3.0)
    async with market.requester().reserve(market.ensemble("a", cores=2), ttl=30) as reservation:
        await trio.sleep(40 if operation == "renew" else 15)
        assert not reservation.lost.is_set()
    assert promised(market) == {}
    waits = [after - before for before, after in zip(busy.times, busy.times[1:], strict=False)]
    assert waits
    assert min(waits) >= 3.0


async def test_a_peer_cannot_put_off_its_renewal_until_it_is_lost(market, autojump_clock):
    await start(market, 1, cores=2)
    busy = Busy(market, "p0", "renew", trio.current_time() + 10, 1e9)
    async with market.requester().reserve(market.ensemble("a", cores=2), ttl=12) as reservation:
        await trio.sleep(60)
        assert not reservation.lost.is_set()
    assert busy.times[0] < 10 < busy.times[-1]


async def test_many_who_lost_a_peer_do_not_come_back_at_the_same_moments(market, autojump_clock):
    await start(market, 1, cores=12)
    busy = Busy(market, "p0", "renew", 0.0, 0.0)

    async def use(index):
        requester = market.requester(f"requester{index}", rng=random.Random(index))
        async with requester.reserve(market.ensemble("a", cores=2), ttl=30) as reservation:
            # They all began at the same moment.
            started.append(trio.current_time())
            await trio.sleep(28)
            assert not reservation.lost.is_set()

    started = []
    async with trio.open_nursery() as nursery:
        for index in range(6):
            nursery.start_soon(use, index)
        await trio.sleep(5)
        busy.until = trio.current_time() + 15
    second = sorted(busy.times)[6:12]
    assert len({round(moment, 3) for moment in second}) > 4
    # The network alone spreads them over less than that.
    assert second[-1] - second[0] > 0.04


async def test_giving_back_does_not_hold_up_the_end_for_long_and_says_what_is_left(market, autojump_clock, caplog):
    await start(market, 2, cores=2)
    with caplog.at_level(logging.WARNING, "dms_peer.requesting"):
        async with market.requester().reserve(market.ensemble("a", "b", cores=2), ttl=1000) as reservation:
            gone, there = reservation.peers["a"], reservation.peers["b"]
            await market.stop(gone, silent=True)
            ended = trio.current_time()
        assert trio.current_time() - ended == pytest.approx(RequesterLimits().release_deadline)
    assert market.manager(there).leases() == ()
    (record,) = caplog.records
    assert gone in record.getMessage()
    assert reservation.leases["a"].lease_id in record.getMessage()


async def test_a_requester_that_dies_leaves_nothing_behind_the_deadlines(market, autojump_clock):
    await start(market, 2, cores=2)
    with trio.move_on_after(45):
        async with market.requester().reserve(market.ensemble("a", "b", cores=2), ttl=30):
            await trio.sleep(40)
            market.network.kill_peer("requester")
            await trio.sleep_forever()
    assert len(promised(market)) == 2
    await trio.sleep(30)
    assert promised(market) == {}


async def test_with_keep_the_block_leaves_everything_unless_it_fails(market, autojump_clock):
    await start(market, 1, cores=2)
    async with market.requester().reserve(market.ensemble("a", cores=2), keep=True) as reservation:
        await reservation.allocate()
    assert states(market, reservation) == {"a": LeaseState.ALLOCATED}
    await market.manager("p0").release(reservation.leases["a"].lease_id)
    with pytest.raises(KeyError):
        async with market.requester().reserve(market.ensemble("a", cores=2), keep=True):
            raise KeyError
    assert promised(market) == {}


# Allocating


async def test_all_nodes_are_allocated_and_given_back_at_the_end(market, autojump_clock):
    await start(market, 2, cores=2)
    async with market.requester().reserve(market.ensemble("a", "b", cores=2), ttl=30) as reservation:
        await reservation.allocate()
        await trio.sleep(200)
        assert states(market, reservation) == dict.fromkeys("ab", LeaseState.ALLOCATED)
        assert not reservation.lost.is_set()
    assert promised(market) == {}


async def test_allocations_are_renewed_while_the_block_runs_whatever_its_ttl(market, autojump_clock):
    await start(market, 1, cores=2)
    renew = Before(market, "p0", "renew", trio.lowlevel.checkpoint)
    async with market.requester().reserve(market.ensemble("a", cores=2), ttl=36_000) as reservation:
        await reservation.allocate()
        await trio.sleep(5000)
        assert states(market, reservation) == {"a": LeaseState.ALLOCATED}
    # The provider's keep-alive is 900 s.
    assert renew.calls == 16


async def test_an_allocation_of_a_requester_that_vanished_ends(market, autojump_clock):
    await start(market, 1, cores=2)
    async with market.requester().reserve(market.ensemble("a", cores=2), ttl=30, keep=True) as reservation:
        await reservation.allocate()
    await trio.sleep(899)
    assert promised(market) == {"p0": 1}
    await trio.sleep(2)
    assert promised(market) == {}


async def test_an_evicted_reservation_is_lost_with_the_owners_reason(market, autojump_clock):
    await start(market, 1, cores=2)

    async def use():
        async with market.requester().reserve(market.ensemble("a", cores=2), ttl=30) as reservation:
            await reservation.allocate()
            await market.manager("p0").evict(everything=True, reason="a game tonight", notice=60.0)
            await trio.sleep_forever()

    with pytest.raises(ReservationLostError, match=r"evicted .*: a game tonight") as caught:
        await use()
    assert caught.value.node_ids == ("a",)


async def test_at_a_provider_of_the_first_version_an_allocation_needs_no_renewal(market, autojump_clock):
    await start(market, 1, cores=2)
    old = provider_operations(market.manager("p0"), "p0", clock=market.clock)
    del old[ALLOCATION_PROTOCOL_1_1]
    market.network.add_host("p0", old)
    async with market.requester().reserve(market.ensemble("a", cores=2), ttl=30) as reservation:
        await reservation.allocate()
        await trio.sleep(80_000)
        assert states(market, reservation) == {"a": LeaseState.ALLOCATED}
        assert not reservation.lost.is_set()
    assert promised(market) == {}


async def test_none_is_allocated_when_one_cannot_be(market, autojump_clock):
    await start(market, 2, cores=2)

    async def use():
        async with market.requester().reserve(market.ensemble("a", "b", cores=2), ttl=30) as reservation:
            await market.manager(reservation.peers["a"]).release(reservation.leases["a"].lease_id)
            await reservation.allocate()

    with pytest.raises(ReservationError) as caught:
        await use()
    assert caught.value.code == "not_allocated"
    assert promised(market) == {}


async def test_an_allocation_whose_answer_was_lost_is_asked_for_again(market, autojump_clock):
    await start(market, 1, cores=2)

    async def cut():
        market.network.cut("requester", "p0")

    allocate = Before(market, "p0", "allocate", cut)
    async with market.requester().reserve(market.ensemble("a", cores=2), ttl=30) as reservation:
        await reservation.allocate()
        assert allocate.calls == 2
        assert states(market, reservation) == {"a": LeaseState.ALLOCATED}


async def test_an_allocation_that_is_cancelled_is_given_back_as_a_whole(market, autojump_clock):
    await start(market, 2, cores=2)

    async def slow():
        await trio.sleep(10)

    async def use():
        async with market.requester().reserve(market.ensemble("a", "b", cores=2), ttl=300) as reservation:
            with trio.move_on_after(1) as scope:
                await reservation.allocate()
            pytest.fail(f"the block went on: {scope}")

    Before(market, "p1", "allocate", slow)
    with pytest.raises(ReservationLostError):
        await use()
    assert promised(market) == {}


async def test_nodes_with_gpus_go_where_the_gpus_are(market, autojump_clock):
    await start(market, 2, cores=8)
    await market.start("gpu", simulated_machine(cores=8, gpus=(24,)))
    nodes = [
        NodeRequest(node_id="plain", resources=simulated_demand(cores=6)),
        NodeRequest(node_id="gpu", resources=simulated_demand(cores=6, gpus=(16,))),
    ]
    async with market.requester().reserve(market.ensemble(*nodes)) as reservation:
        assert reservation.peers["gpu"] == "gpu"
        assert reservation.peers["plain"] != "gpu"


class Notebook:
    """Writes down what a requester holds, in memory; `fails` is raised by every write."""

    def __init__(self, market, fails=None):
        self.market, self.fails = market, fails
        self.providers, self.leases, self.before = [], {}, []

    async def note_provider(self, peer_id, addrs):
        self._write()
        self.providers.append(peer_id)
        self.before.append(len(self.market.manager(peer_id).leases("requester")))

    async def note(self, peer_id, leases):
        self._write()
        self.leases |= {lease.lease_id: lease for lease in leases}

    async def forget(self, peer_id, lease_ids):
        self._write()
        for lease_id in lease_ids:
            self.leases.pop(lease_id, None)

    def _write(self):
        if self.fails is not None:
            raise self.fails


async def test_a_recorder_knows_what_is_held_from_before_it_is_taken_until_it_has_ended(market):
    await start(market, 2)
    notes = Notebook(market)
    requester = market.requester(recorder=notes)
    async with requester.reserve(market.ensemble("a", "b", cores=2), ttl=30.0) as reservation:
        # A provider is noted before it is asked: a lease whose answer is lost is found there.
        assert set(notes.providers) == set(reservation.peers.values())
        assert set(notes.before) == {0}
        assert notes.leases == {lease.lease_id: lease for lease in reservation.leases.values()}
        first = {lease_id: lease.deadline for lease_id, lease in notes.leases.items()}
        await trio.sleep(60)
        assert all(notes.leases[lease_id].deadline > deadline for lease_id, deadline in first.items()), "renewed"
        await reservation.allocate()
        assert {lease.state for lease in notes.leases.values()} == {LeaseState.ALLOCATED}
    assert notes.leases == {}
    async with requester.reserve(market.ensemble("a", cores=2), keep=True) as reservation:
        pass
    assert set(notes.leases) == {lease.lease_id for lease in reservation.leases.values()}, "kept"


async def test_a_recorder_that_fails_is_logged_and_changes_nothing_else(market, caplog):
    await start(market, 1)
    requester = market.requester(recorder=Notebook(market, OSError("the disk is full")))
    async with requester.reserve(market.ensemble("a", cores=2)) as reservation:
        assert len(reservation.leases) == 1
    assert promised(market) == {}
    assert "the disk is full" in caplog.text
