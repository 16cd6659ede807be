"""Strategies: what each prefers, and where additional ones come from."""

from __future__ import annotations

import random
from importlib.metadata import EntryPoint
from types import SimpleNamespace

import pytest

from dms_peer.requesting import StrategyOptions, strategies, strategy_named, strategy_names
from dms_peer.requesting.errors import StrategyError
from dms_protocols.messages.bid import Price
from dms_resources.components import CPU, RAM, Disk, FreeResources
from dms_resources.units import GIB, Cores
from dms_simulation.providers import simulated_demand


def bid(peer_id="p", *, price=None, currency="EUR", round_trip=0.1, free=None, **demand):
    """The parts of a received bid that a strategy reads."""
    return SimpleNamespace(
        peer_id=peer_id,
        bid=SimpleNamespace(
            price=None if price is None else Price(micros_per_hour=price, currency=currency),
            demand=simulated_demand(**demand),
        ),
        round_trip=round_trip,
        free=free,
    )


def free(cores, ram):
    return FreeResources(
        cpu=CPU(cores=Cores.of(cores)), ram=RAM(size=ram * GIB), disk=Disk(size=10 * GIB), gpus=(), ports=0,
        onboarded=True, draining=False, simulated=True,
    )  # fmt: skip


def order(name, bids, **options):
    costs = strategy_named(name, StrategyOptions(**options)).costs(bids)
    return sorted(range(len(bids)), key=lambda index: costs[index])


def test_cheapest_takes_the_lowest_price_and_what_is_free_first():
    assert order("cheapest", [bid(price=300), bid(price=None), bid(price=200)]) == [1, 2, 0]


def test_prices_in_another_currency_come_after_all_that_can_be_compared():
    bids = [bid(price=1, currency="NTX"), bid(price=900), bid(price=800)]
    assert order("cheapest", bids) == [2, 1, 0]
    assert order("cheapest", bids, currency="NTX") == [0, 2, 1]


def test_tightest_takes_where_least_is_left_over_and_asks_for_what_is_free():
    bids = [bid(free=free(8, 8)), bid(free=free(2, 2)), bid(free=None)]
    assert strategy_named("tightest").needs_free
    assert order("tightest", bids) == [1, 0, 2]


def test_nearest_takes_the_lowest_round_trip():
    assert order("nearest", [bid(round_trip=None), bid(round_trip=0.2), bid(round_trip=0.1)]) == [2, 1, 0]


def test_spread_prefers_any_number_of_peers_to_one_more_on_the_same():
    spread = strategy_named("spread")
    assert list(spread.costs([bid(), bid()])) == [0, 0]
    # Three on one peer and two on another, compared with five on one: more peers first, then even numbers.
    assert spread.crowding(1) + spread.crowding(2) + spread.crowding(1) < sum(map(spread.crowding, range(1, 5)))


def test_random_follows_the_chance_that_it_is_given():
    bids = [bid() for _ in range(6)]
    assert order("random", bids, rng=random.Random(1)) == order("random", bids, rng=random.Random(1))
    assert order("random", bids, rng=random.Random(1)) != order("random", bids, rng=random.Random(2))


def test_an_unknown_strategy_is_refused_with_those_that_there_are():
    with pytest.raises(StrategyError) as caught:
        strategy_named("dearest")
    assert caught.value.code == "unknown_strategy"
    assert all(name in caught.value.hint for name in ("cheapest", "tightest", "spread", "nearest", "random"))


class Dearest:
    """A strategy of another package."""

    needs_free = False

    def __init__(self, options):
        self.options = options

    def costs(self, bids):
        return [-received.bid.price.micros_per_hour for received in bids]

    def crowding(self, nth):
        return 0.0


@pytest.fixture
def installed(monkeypatch):
    """Installs entry points by name and value."""

    def install(**points):
        found = [EntryPoint(name, value, strategies.STRATEGY_GROUP) for name, value in points.items()]

        def entry_points(*, group, name=None):
            assert group == "dms_peer.strategies"
            return [point for point in found if name in (None, point.name)]

        monkeypatch.setattr(strategies, "entry_points", entry_points)

    return install


def test_an_installed_strategy_is_found_by_its_name(installed, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "their_strategies", SimpleNamespace(Dearest=Dearest))
    installed(dearest="their_strategies:Dearest")
    assert "dearest" in strategy_names()
    assert order("dearest", [bid(price=1), bid(price=3), bid(price=2)]) == [1, 2, 0]


def test_a_strategy_that_cannot_be_loaded_is_named(installed):
    installed(broken="no_such_module_here:Strategy")
    with pytest.raises(StrategyError) as caught:
        strategy_named("broken")
    assert caught.value.code == "bad_strategy"
    assert "no_such_module_here" in str(caught.value)
