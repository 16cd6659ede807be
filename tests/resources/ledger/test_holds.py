"""Holds: short, durable, within the owner's limits, replaced by a commitment without a gap."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import trio
import trio.testing

from dms_resources.components import HoldLimits, MachineResources, OnboardedResources
from dms_resources.demands import Demand, GPUDemand
from dms_resources.errors import AmountError, ConflictError, ExpiredError, NotCommittedError
from dms_resources.ledger.leases import LeaseRequest, LeaseState, Price, ResourceAllocation
from dms_resources.refusals import HoldLimitError, InsufficientError, NotOnboardedError
from dms_resources.units import GIB, Cores

NewDemand = Callable[..., Demand]


@pytest.fixture
def limited(machine: MachineResources, new_offer: Callable[..., OnboardedResources]) -> Callable[..., Any]:
    """An offer with limits on holds."""
    return lambda **limits: new_offer(machine, holds=HoldLimits(**{"max_seconds": 30.0, "share": 1000, **limits}))


def bid(lease_id: str, demand: Demand, *, holder: str = "peer", ttl: float = 10.0) -> LeaseRequest:
    return LeaseRequest(lease_id=lease_id, holder=holder, demand=demand, ttl=ttl)


async def test_a_commitment_takes_a_hold_over_without_a_gap(
    open_ledger: Any, new_demand: NewDemand, autojump_clock: trio.testing.MockClock
) -> None:
    demand = new_demand(4, 16, 1, [16])
    async with open_ledger() as manager:
        (held,) = await manager.hold([bid("lease", demand)])
        assert held.state is LeaseState.HELD
        assert not manager.is_committed("lease")
        frees = []

        async def look_on() -> None:
            async with manager.watch() as changes:
                async for free in changes:
                    frees.append(free.cpu.cores)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(look_on)
            await trio.testing.wait_all_tasks_blocked()
            lease = await manager.commit_resources("lease", demand, holder="peer", ttl=100)
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        assert set(frees) == {Cores.of(4)}
        assert (lease.fence, lease.resources) == (held.fence, held.resources)
        await trio.sleep(99)
        assert manager.is_committed("lease")


async def test_a_hold_ends_by_itself_and_survives_a_restart(
    open_ledger: Any, new_demand: NewDemand, autojump_clock: trio.testing.MockClock
) -> None:
    async with open_ledger() as manager:
        await manager.hold([bid("lease", new_demand(4))])
    async with open_ledger() as manager:
        await trio.sleep(9.9)
        assert manager.get_free_resources().cpu.cores == Cores.of(4)
        await trio.sleep(0.2)
        assert manager.get_free_resources().cpu.cores == Cores.of(8)
        with pytest.raises(ExpiredError):
            await manager.commit_resources("lease", new_demand(4), holder="peer", ttl=60)


async def test_a_hold_is_the_holders_and_for_what_was_held(open_ledger: Any, new_demand: NewDemand) -> None:
    async with open_ledger() as manager:
        await manager.hold([bid("lease", new_demand(1))])
        with pytest.raises(ConflictError):
            await manager.commit_resources("lease", new_demand(1), holder="other", ttl=60)
        with pytest.raises(ConflictError):
            await manager.commit_resources("lease", new_demand(2), holder="peer", ttl=60)
        with pytest.raises(NotCommittedError):
            await manager.renew("lease", ttl=60)
        await manager.uncommit_resources("lease", holder="peer")
        assert not manager.leases()


async def test_a_hold_twice_answers_the_same_and_lasts_no_longer(
    open_ledger: Any, new_demand: NewDemand, autojump_clock: trio.testing.MockClock, limited: Callable[..., Any]
) -> None:
    async with open_ledger(onboarded=limited(per_holder=1)) as manager:
        first = await manager.hold([bid("lease", new_demand(1))])
        await trio.sleep(6)
        assert await manager.hold([bid("lease", new_demand(1))]) == first
        await trio.sleep(5)
        assert not manager.leases()


@pytest.mark.parametrize("ttl", [0.0, -1.0, float("nan")])
async def test_a_hold_ends_some_day(open_ledger: Any, new_demand: NewDemand, ttl: float) -> None:
    async with open_ledger() as manager:
        with pytest.raises(AmountError):
            await manager.hold([bid("lease", new_demand(1), ttl=ttl)])


async def test_the_owner_says_how_long(open_ledger: Any, new_demand: NewDemand, limited: Callable[..., Any]) -> None:
    async with open_ledger(onboarded=limited(max_seconds=5.0)) as manager:
        await manager.hold([bid("lease", new_demand(1), ttl=5.0)])
        with pytest.raises(HoldLimitError, match="at most 5 s"):
            await manager.hold([bid("next", new_demand(1), ttl=5.1)])
        await manager.update_onboarded_resources(limited(max_seconds=0.0))
        with pytest.raises(HoldLimitError, match="the owner allows none"):
            await manager.hold([bid("next", new_demand(1), ttl=0.1)])
    async with open_ledger() as manager:
        await manager.release("lease")
        await manager.offboard()
        with pytest.raises(NotOnboardedError):
            await manager.hold([bid("next", new_demand(1), ttl=0.1)])


async def test_how_many_for_one_and_for_all(
    open_ledger: Any, new_demand: NewDemand, limited: Callable[..., Any]
) -> None:
    async with open_ledger(onboarded=limited(per_holder=2, total=3)) as manager:
        await manager.hold([bid("a1", new_demand(1)), bid("a2", new_demand(1))])
        with pytest.raises(HoldLimitError, match="one peer may hold 2"):
            await manager.hold([bid("a3", new_demand(1))])
        # Two peers in one call are counted separately.
        with pytest.raises(HoldLimitError, match="one peer may hold 2"):
            await manager.hold([bid("b1", new_demand(1), holder="other"), bid("a3", new_demand(1))])
        await manager.hold([bid("b1", new_demand(1), holder="other")])
        with pytest.raises(HoldLimitError, match="all peers together may hold 3"):
            await manager.hold([bid("c1", new_demand(1), holder="third")])
        # What is committed is no longer held.
        await manager.commit_resources("a1", new_demand(1), holder="peer", ttl=60)
        await manager.hold([bid("c1", new_demand(1), holder="third")])
        await manager.release("a2")
        await manager.hold([bid("a3", new_demand(1))])


@pytest.mark.parametrize(
    ("fits", "short", "name"),
    [
        ({"cores": 4}, {"cores": 0.001}, "cpu"),
        ({"ram": 16}, {"ram": 1}, "ram"),
        ({"disk": 250}, {"disk": 1}, "disk"),
        ({"gpus": [10, 7]}, {"gpus": [1]}, "gpus"),
    ],
)
async def test_how_much_of_each_dimension(
    open_ledger: Any,
    new_demand: NewDemand,
    limited: Callable[..., Any],
    fits: dict[str, Any],
    short: dict[str, Any],
    name: str,
) -> None:
    async with open_ledger(onboarded=limited(share=500, per_holder=9)) as manager:
        await manager.hold([bid("one", new_demand(**fits))])
        with pytest.raises(HoldLimitError, match=f"50 % of the {name}"):
            await manager.hold([bid("two", new_demand(**short))])
        await manager.commit_resources("three", new_demand(**short), holder="peer", ttl=60)


async def test_an_exclusive_hold_counts_as_the_whole_device(
    open_ledger: Any, new_demand: NewDemand, limited: Callable[..., Any]
) -> None:
    async with open_ledger(onboarded=limited(share=500)) as manager:
        big = GPUDemand(vram=GIB, exclusive=True, uuid="gpu-a")
        with pytest.raises(HoldLimitError, match="gpus"):
            await manager.hold([bid("lease", new_demand(gpus=[big]))])
        assert not manager.leases()


async def test_a_hold_of_what_is_not_free_names_what_is_short(
    open_ledger: Any, new_demand: NewDemand, limited: Callable[..., Any]
) -> None:
    async with open_ledger(onboarded=limited()) as manager:
        with pytest.raises(InsufficientError):
            await manager.hold([bid("one", new_demand(5)), bid("two", new_demand(5))])
        assert not manager.leases()


async def test_a_price_stands_for_the_life_of_the_lease(
    open_ledger: Any, new_demand: NewDemand, limited: Callable[..., Any]
) -> None:
    demand, agreed = new_demand(1), Price(micros_per_hour=250_000, currency="EUR")
    dearer = Price(micros_per_hour=10**12, currency="EUR")

    def asked(price: Price | None) -> LeaseRequest:
        return LeaseRequest(lease_id="lease", holder="peer", demand=demand, ttl=20, price=price)

    async with open_ledger(onboarded=limited()) as manager:
        await manager.hold([asked(agreed)])
        # An existing hold is not made again at another price.
        (held,) = await manager.hold([asked(dearer)])
        assert held.price == agreed
    async with open_ledger() as manager:
        assert manager.lease("lease").price == agreed
        (taken,) = await manager.commit_group([asked(agreed)])
        (again,) = await manager.commit_group([asked(dearer)])
        assert taken.price == again.price == agreed
        allocated = await manager.allocate_resources(ResourceAllocation(lease_id="lease", holder="peer"))
        assert allocated.price == agreed
        history = [entry.detail for _, entry in await manager.history()]
    assert [detail.endswith("0.25 EUR per hour") for detail in history] == [True, True, True, False]


@pytest.mark.parametrize(
    ("micros", "text"),
    [(0, "0"), (1, "0.000001"), (250_000, "0.25"), (1_000_000, "1"), (1_500_000_000, "1500"), (2**63 - 1, None)],
)
def test_a_price_is_shown_exactly(micros: int, text: str | None) -> None:
    shown = Price(micros_per_hour=micros, currency="EUR").describe()
    assert shown == f"{text or '9223372036854.775807'} EUR per hour"
