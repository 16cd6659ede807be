"""The owner ends leases, and allocations end without renewals: in memory, in the file, across restarts."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import trio.testing

from dms_resources.demands import Demand
from dms_resources.errors import AmountError, EvictedError, ExpiredError, NotAllocatedError, NotHolderError
from dms_resources.ledger.leases import EndReason, Lease, LeaseRequest, LeaseState, ResourceAllocation
from dms_resources.manager import AllocationTerms, ResourceManager
from dms_resources.refusals import DrainingError

NewDemand = Callable[..., Demand]
FIFTEEN_MINUTES = 900.0


@pytest.fixture
async def manager(open_ledger: Any, mock_clock: Any) -> AsyncIterator[ResourceManager]:
    async with open_ledger() as opened:
        yield opened


async def commit(manager: ResourceManager, demand: Demand, lease_id: str = "lease", ttl: float = 60.0) -> Lease:
    return await manager.commit_resources(lease_id, demand, holder="peer", ttl=ttl)


async def allocate(
    manager: ResourceManager, demand: Demand, lease_id: str = "lease", terms: AllocationTerms | None = None
) -> Lease:
    await commit(manager, demand, lease_id)
    return await manager.allocate_resources(ResourceAllocation(lease_id=lease_id, holder="peer"), terms=terms)


async def histories(manager: ResourceManager) -> list[tuple[str, str, str, str]]:
    # What the deadlines caused is written then too.
    await trio.testing.wait_all_tasks_blocked()
    return [(one.actor, one.action, one.reason, one.detail) for _, one in reversed(await manager.history())]


# Evictions


@pytest.mark.parametrize("state", [LeaseState.HELD, LeaseState.COMMITTED, LeaseState.ALLOCATED])
async def test_an_evicted_lease_is_free_and_its_holder_is_told_why(
    manager: ResourceManager, new_demand: NewDemand, state: LeaseState
) -> None:
    before = manager.get_free_resources()
    if state is LeaseState.HELD:
        await manager.hold([LeaseRequest(lease_id="lease", holder="peer", demand=new_demand(1), ttl=5)])
    elif state is LeaseState.COMMITTED:
        await commit(manager, new_demand(1))
    else:
        await allocate(manager, new_demand(1))
    eviction = await manager.evict(["lease"], reason="a game tonight")
    assert [(one.lease_id, one.state, one.reason, one.detail) for one in eviction.ended] == [
        ("lease", state, EndReason.EVICTED, "a game tonight")
    ]
    assert manager.get_free_resources() == before
    for attempt in (
        manager.renew("lease", ttl=9, holder="peer"),
        manager.allocate_resources(ResourceAllocation(lease_id="lease", holder="peer")),
        manager.release("lease", holder="peer"),
        commit(manager, new_demand(1)),
    ):
        with pytest.raises(EvictedError, match="evicted lease: a game tonight") as caught:
            await attempt
        assert (caught.value.code, caught.value.lease_id) == ("evicted", "lease")
    with pytest.raises(NotHolderError):
        await manager.renew("lease", ttl=9, holder="another")
    # A repetition gets the same answer and writes nothing.
    entries = await histories(manager)
    assert entries[-1] == ("owner", "end", "evicted", "a game tonight")
    assert await manager.evict(["lease"], reason="another") == eviction
    assert await histories(manager) == entries
    assert manager.metrics.changes["evicted"] == 1


async def test_leases_are_evicted_by_holder_or_all(manager: ResourceManager, new_demand: NewDemand) -> None:
    for name, holder in (("a", "one"), ("b", "two"), ("c", "one"), ("d", "three")):
        await manager.commit_resources(name, new_demand(1), holder=holder, ttl=60)
    assert {one.lease_id for one in (await manager.evict(holder="one")).ended} == {"a", "c"}
    assert (await manager.evict(holder="one")).ended == ()
    assert {one.lease_id for one in (await manager.evict(everything=True)).ended} == {"b", "d"}
    assert manager.leases() == ()


async def test_one_unknown_id_and_nothing_is_evicted(manager: ResourceManager, new_demand: NewDemand) -> None:
    await commit(manager, new_demand(1))
    with pytest.raises(NotAllocatedError, match="no lease 'unknown' is known"):
        await manager.evict(["lease", "unknown"])
    for wrong in ({"reason": "two\nlines"}, {"reason": "x" * 201}, {"notice": -1.0}, {"notice": float("nan")}):
        with pytest.raises(AmountError):
            await manager.evict(["lease"], **wrong)  # type: ignore[arg-type]
    assert manager.is_committed("lease")


async def test_a_notice_bounds_every_renewal(
    manager: ResourceManager, new_demand: NewDemand, clock: Any, mock_clock: Any
) -> None:
    await commit(manager, new_demand(1), ttl=60)
    await allocate(manager, new_demand(1), "job")
    started = clock.wall()
    eviction = await manager.evict(everything=True, notice=100.0, reason="maintenance")
    assert [(one.lease_id, one.deadline) for one in eviction.noticed] == [
        ("lease", started + 60),
        ("job", started + 100),
    ]
    # The wall clock is set; the remaining time does not change.
    clock.jump(-5000.0)
    clock.suspend(50.0)
    renewed = [await manager.renew(name, ttl=600.0, holder="peer") for name in ("lease", "job")]
    assert [one.deadline for one in renewed] == [pytest.approx(clock.wall() + 50)] * 2
    # A repetition gives no more time; an earlier notice counts.
    assert (await manager.evict(everything=True, notice=3000.0)).noticed == tuple(renewed)
    await manager.evict(["lease"], notice=10.0, reason="now")
    clock.suspend(10.0)
    assert [lease.lease_id for lease in manager.leases()] == ["job"]
    with pytest.raises(EvictedError, match="evicted lease: now"):
        await manager.renew("lease", ttl=60.0)
    clock.suspend(40.0)
    with pytest.raises(EvictedError, match="evicted job: maintenance"):
        await manager.renew("job", ttl=60.0)
    entries = await histories(manager)
    assert ("owner", "notice", "", "ends in 100 s: maintenance") in entries
    assert entries[-1] == ("owner", "end", "evicted", "maintenance")


async def test_a_notice_stands_across_a_reboot_and_can_be_taken_back(
    open_ledger: Any, new_demand: NewDemand, clock: Any, mock_clock: Any
) -> None:
    async with open_ledger() as manager:
        await allocate(manager, new_demand(1), "ends")
        await allocate(manager, new_demand(1), "stays", AllocationTerms(keep_alive=None))
        await manager.evict(everything=True, notice=100.0, reason="maintenance")
    clock.reboot("boot-2", away=40.0)
    async with open_ledger() as manager:
        clock.suspend(59.0)
        assert {lease.lease_id for lease in manager.leases()} == {"ends", "stays"}
        free = await manager.withdraw_notices()
        found = {one.lease_id: (one.deadline, one.notice) for one in free}
        assert found == {"ends": (pytest.approx(clock.wall() + FIFTEEN_MINUTES), None), "stays": (None, None)}
        clock.suspend(100.0)
        assert {lease.lease_id for lease in manager.leases()} == {"ends", "stays"}


async def test_a_clock_that_is_years_behind_does_not_keep_a_lease_that_is_evicted(
    open_ledger: Any, new_demand: NewDemand, clock: Any, mock_clock: Any
) -> None:
    async with open_ledger() as manager:
        await allocate(manager, new_demand(1), terms=AllocationTerms(keep_alive=None))
        await manager.evict(["lease"], notice=100.0)
    clock.reboot("boot-2", away=-1e9)
    async with open_ledger() as manager:
        clock.suspend(101.0)
        assert manager.leases() == ()


async def test_a_drain_with_a_deadline_ends_all_leases_and_can_be_cancelled(
    manager: ResourceManager, new_demand: NewDemand, clock: Any, mock_clock: Any
) -> None:
    await allocate(manager, new_demand(1), "job")
    await allocate(manager, new_demand(1), "noticed")
    await manager.evict(["noticed"], notice=50.0, reason="mine")
    assert (await manager.drain()).noticed == ()
    eviction = await manager.drain(evict=True, deadline=100.0, reason="new disk")
    assert {one.lease_id: one.deadline for one in eviction.noticed} == {
        "job": pytest.approx(clock.wall() + 100),
        "noticed": pytest.approx(clock.wall() + 50),
    }
    with pytest.raises(DrainingError):
        await commit(manager, new_demand(1), "late")
    (kept,) = await manager.cancel_drain()
    assert (kept.lease_id, kept.notice, manager.draining) == ("job", None, False)
    clock.suspend(51.0)
    assert [lease.lease_id for lease in manager.leases()] == ["job"]
    await manager.drain(evict=True, deadline=10.0, reason="new disk")
    clock.suspend(10.0)
    assert manager.leases() == ()
    await manager.wait_drained()
    with pytest.raises(EvictedError, match="evicted job: new disk"):
        await manager.renew("job", ttl=9.0)
    await manager.cancel_drain()
    await commit(manager, new_demand(1), "again")
    assert (await manager.drain(evict=True, reason="now")).ended[0].detail == "now"


# Allocations end


async def test_an_allocation_ends_without_a_renewal(
    manager: ResourceManager, new_demand: NewDemand, clock: Any, mock_clock: Any
) -> None:
    lease = await allocate(manager, new_demand(1))
    assert (lease.ttl, lease.deadline) == (FIFTEEN_MINUTES, clock.wall() + FIFTEEN_MINUTES)
    clock.suspend(899.0)
    # The owner sets the length of a keep-alive, whatever the holder requests.
    renewed = await manager.renew("lease", ttl=5.0, holder="peer", fence=lease.fence)
    assert renewed.deadline == clock.wall() + FIFTEEN_MINUTES
    clock.suspend(899.0)
    assert manager.is_allocated("lease")
    clock.suspend(1.0)
    assert manager.leases() == ()
    with pytest.raises(ExpiredError, match="its holder did not renew it for 900 s"):
        await manager.renew("lease", ttl=60.0, holder="peer")
    assert (await histories(manager))[-1][:3] == ("deadline", "end", "lost")


async def test_the_longest_time_ends_an_allocation_however_often_it_is_renewed(
    open_ledger: Any, new_demand: NewDemand, clock: Any, mock_clock: Any
) -> None:
    async with open_ledger(allocation_terms=AllocationTerms(keep_alive=60.0, longest=150.0)) as manager:
        started = clock.wall()
        await allocate(manager, new_demand(1))
        for left in (60.0, 60.0, 50.0):
            assert (await manager.renew("lease", ttl=9.0)).deadline == pytest.approx(clock.wall() + left)
            clock.suspend(50.0)
        assert clock.wall() == started + 150
        with pytest.raises(ExpiredError, match="it lasted 150 s, the longest that the owner allows"):
            await manager.renew("lease", ttl=9.0)


async def test_for_ever_is_a_choice_and_so_it_is_for_direct_allocations(
    open_ledger: Any, new_demand: NewDemand, clock: Any, mock_clock: Any
) -> None:
    direct = ResourceAllocation(lease_id="direct", holder="me", resources=new_demand(1))
    async with open_ledger(allocation_terms=AllocationTerms(keep_alive=None)) as manager:
        assert (await allocate(manager, new_demand(1))).deadline is None
        assert (await manager.renew("lease", ttl=60.0)).deadline is None
    async with open_ledger() as manager:
        assert (await manager.allocate_resources(direct)).deadline is None
        other = ResourceAllocation(lease_id="bounded", holder="me", resources=new_demand(1))
        bounded = await manager.allocate_resources(other, terms=AllocationTerms(keep_alive=60.0))
        assert bounded.deadline == clock.wall() + 60
        clock.suspend(1e6)
        assert {lease.lease_id for lease in manager.leases()} == {"lease", "direct"}


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan"), float("inf")])
def test_terms_that_make_no_sense(seconds: float) -> None:
    with pytest.raises(ValueError, match="keep_alive must be more than 0 s"):
        AllocationTerms(keep_alive=seconds)
    with pytest.raises(ValueError, match="longest must be more than 0 s"):
        AllocationTerms(longest=seconds)


def test_a_client_that_cannot_renew_gets_a_bounded_time() -> None:
    assert AllocationTerms().without_renewal() == AllocationTerms(keep_alive=None, longest=86400.0)
    assert AllocationTerms(longest=60.0).without_renewal() == AllocationTerms(keep_alive=None, longest=60.0)
    for_ever = AllocationTerms(keep_alive=None)
    assert for_ever.without_renewal() == for_ever


@pytest.mark.parametrize("reboots", [False, True])
async def test_a_provider_that_was_away_ends_nothing_at_once(
    open_ledger: Any, new_demand: NewDemand, clock: Any, mock_clock: Any, reboots: bool
) -> None:
    def leave(seconds: float) -> None:
        if reboots:
            clock.reboot(f"{clock.boot_id}+", away=seconds)
        else:
            clock.suspend(seconds)

    async with open_ledger() as manager:
        await allocate(manager, new_demand(1), "renews")
        await allocate(manager, new_demand(1), "silent")
        await commit(manager, new_demand(1), "commitment")
        await allocate(manager, new_demand(1), "bounded", AllocationTerms(keep_alive=900.0, longest=2000.0))
    leave(5000.0)
    async with open_ledger() as manager:
        leases = {lease.lease_id: lease for lease in manager.leases()}
        assert leases.keys() == {"renews", "silent"}, "commitments and longest times end as they said"
        ends = [lease.deadline for lease in leases.values()]
        assert ends == [pytest.approx(clock.wall() + FIFTEEN_MINUTES)] * 2
        assert [one[1] for one in await histories(manager)].count("grace") == 2
        assert not (await manager.renew("renews", ttl=60.0)).grace
    # Once: an allocation that was not renewed since gets no second grace, a renewed one does.
    leave(5000.0)
    async with open_ledger() as manager:
        assert {lease.lease_id for lease in manager.leases()} == {"renews"}
        clock.suspend(FIFTEEN_MINUTES)
        assert manager.leases() == ()
