"""Events of leases: every one once, in order, from any point that is still kept."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any, ClassVar

import pytest
import trio
import trio.testing

import dms_resources.ledger.events as events_module
from dms_resources.demands import Demand
from dms_resources.errors import EventsGoneError, StorageError
from dms_resources.ledger.events import EventKind, LeaseEvent
from dms_resources.ledger.leases import LeaseRequest, ResourceAllocation
from dms_resources.ledger.storage import SQLiteStorage
from dms_resources.manager import AllocationTerms, ResourceManager

NewDemand = Callable[..., Demand]
DIGEST = "ab" * 32


@pytest.fixture
async def manager(open_ledger: Any) -> AsyncIterator[ResourceManager]:
    async with open_ledger() as opened:
        yield opened


async def last_number(manager: ResourceManager) -> int:
    ((number, _),) = await manager.history(limit=1)
    return number


async def events_so_far(manager: ResourceManager, after: int | None = 0) -> list[LeaseEvent]:
    """All events that a reader gets without a wait for new ones."""
    found: list[LeaseEvent] = []

    async def read() -> None:
        async with manager.events(after) as events:
            async for event in events:
                found.append(event)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    return found


async def take(manager: ResourceManager, demand: Demand, *names: str) -> None:
    for name in names:
        await manager.commit_resources(name, demand, holder="peer", ttl=60.0)


async def test_each_step_of_a_lease_is_an_event(manager: ResourceManager, new_demand: NewDemand) -> None:
    await manager.hold([LeaseRequest(lease_id="lease", holder="peer", demand=new_demand(1), ttl=5.0)])
    await take(manager, new_demand(1), "lease")
    await manager.renew("lease", ttl=60.0)
    lease = await manager.allocate_resources(ResourceAllocation(lease_id="lease", holder="peer"))
    await manager.attach_job("lease", DIGEST)
    await manager.evict(["lease"], reason="later", notice=60.0)
    await manager.withdraw_notices()
    await manager.evict(["lease"], reason="now")
    await manager.job_gone("lease", fence=lease.fence, how="exited with 3")
    events = await events_so_far(manager)
    assert [event.kind for event in events] == [
        EventKind.HELD,
        EventKind.GRANTED,
        EventKind.RENEWED,
        EventKind.ALLOCATED,
        EventKind.ATTACHED,
        EventKind.NOTICED,
        EventKind.WITHDRAWN,
        EventKind.ENDING,
        EventKind.GONE,
        EventKind.ENDED,
    ]
    assert {(event.lease_id, event.holder, event.fence) for event in events} == {("lease", "peer", lease.fence)}
    ending, gone, ended = events[-3:]
    assert (ending.reason, ending.detail) == (ended.reason, ended.detail) == ("evicted", "now")
    assert (gone.reason, gone.detail) == ("", "exited with 3")
    numbers = [event.number for event in events]
    assert numbers == sorted(set(numbers))


async def test_a_job_that_is_gone_on_a_standing_allocation_is_an_event(
    manager: ResourceManager, new_demand: NewDemand
) -> None:
    await take(manager, new_demand(1), "lease")
    lease = await manager.allocate_resources(ResourceAllocation(lease_id="lease", holder="peer"))
    await manager.attach_job("lease", DIGEST)
    after = await last_number(manager)
    for _ in range(2):
        await manager.job_gone("lease", fence=lease.fence)
    await manager.release("lease")
    assert [event.kind for event in await events_so_far(manager, after)] == [EventKind.GONE, EventKind.ENDED]


async def test_deadlines_and_graces_are_events(
    open_ledger: Any, clock: Any, new_demand: NewDemand, autojump_clock: trio.testing.MockClock
) -> None:
    async with open_ledger(allocation_terms=AllocationTerms(keep_alive=900.0)) as manager:
        await take(manager, new_demand(1), "commitment", "allocation")
        await manager.allocate_resources(ResourceAllocation(lease_id="allocation", holder="peer"))
        await trio.sleep(61.0)
        after = await last_number(manager)
    clock.suspend(1000.0)
    async with open_ledger(allocation_terms=AllocationTerms(keep_alive=900.0)) as manager:
        await trio.sleep(901.0)
        ends = [(event.kind, event.lease_id, event.reason) for event in await events_so_far(manager, after - 1)]
        assert ends == [
            (EventKind.ENDED, "commitment", "expired"),
            (EventKind.GRACED, "allocation", ""),
            (EventKind.ENDED, "allocation", "lost"),
        ]


async def test_without_a_point_events_begin_when_the_block_is_entered(
    manager: ResourceManager, new_demand: NewDemand
) -> None:
    await take(manager, new_demand(1), "before")
    async with manager.events() as events:
        await take(manager, new_demand(1), "within")
        assert (await anext(events)).lease_id == "within"


@pytest.mark.parametrize("kept", [2, 4096])
async def test_from_any_point_every_event_comes_once(
    manager: ResourceManager, new_demand: NewDemand, monkeypatch: pytest.MonkeyPatch, kept: int
) -> None:
    monkeypatch.setattr(manager._ledger.events, "_recent", type(manager._ledger.events._recent)(maxlen=kept))
    monkeypatch.setattr(events_module, "_PAGE", 3)
    names = [f"lease-{number}" for number in range(10)]
    await take(manager, new_demand(0.1), *names)
    whole = await events_so_far(manager, 0)
    assert [event.lease_id for event in whole] == names
    for after in range(await last_number(manager) + 1):
        assert await events_so_far(manager, after) == [event for event in whole if event.number > after]


async def test_events_go_on_where_they_were_after_a_restart(open_ledger: Any, new_demand: NewDemand) -> None:
    async with open_ledger() as manager:
        await take(manager, new_demand(1), "one", "two")
        first, *_ = await events_so_far(manager)
    async with open_ledger() as manager:
        await take(manager, new_demand(1), "three")
        assert [event.lease_id for event in await events_so_far(manager, first.number)] == ["two", "three"]
        assert await events_so_far(manager, await last_number(manager)) == []


async def test_a_reader_waits_for_what_comes(manager: ResourceManager, new_demand: NewDemand) -> None:
    found: dict[int, list[str]] = {0: [], 1: []}

    async def read(number: int) -> None:
        async with manager.events() as events:
            async for event in events:
                found[number].append(event.lease_id)

    async with trio.open_nursery() as nursery:
        for number in found:
            nursery.start_soon(read, number)
        for name in ("one", "two", "three"):
            await trio.testing.wait_all_tasks_blocked()
            await take(manager, new_demand(1), name)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert found == {0: ["one", "two", "three"], 1: ["one", "two", "three"]}


async def test_a_point_that_is_not_known_is_an_error(
    open_ledger: Any, new_demand: NewDemand, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dms_resources.ledger.storage.MOST_HISTORY", 3)
    async with open_ledger() as manager:
        await take(manager, new_demand(1), "one", "two", "three", "four")
        last = await last_number(manager)
    async with open_ledger() as manager:
        for after in (0, last - 4, last + 1):
            with pytest.raises(EventsGoneError) as caught:
                async with manager.events(after):
                    pass
            assert caught.value.code == "events_gone"
        assert len(await events_so_far(manager, last - 3)) == 3


async def test_a_reader_that_falls_behind_what_is_kept_gets_an_error(
    manager: ResourceManager, new_demand: NewDemand, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dms_resources.ledger.storage.MOST_HISTORY", 3)
    monkeypatch.setattr(manager._ledger.events, "_recent", type(manager._ledger.events._recent)(maxlen=2))
    async with manager.events() as events:
        await take(manager, new_demand(1), "one", "two")
        assert (await anext(events)).lease_id == "one"
        await take(manager, new_demand(0.1), *(f"lease-{number}" for number in range(9)))
        # The page that was read already is still good.
        assert (await anext(events)).lease_id == "two"
        with pytest.raises(EventsGoneError):
            await anext(events)


async def test_a_clock_that_was_set_back_leaves_no_gap(open_ledger: Any, clock: Any, new_demand: NewDemand) -> None:
    async with open_ledger() as manager:
        await take(manager, new_demand(1), "now")
        clock.jump(-100 * 86400.0)
        await take(manager, new_demand(1), "earlier")
        clock.jump(100 * 86400.0)
        await take(manager, new_demand(1), "later")
        await manager._ledger._forget(clock.wall() - 90 * 86400.0)
        assert [event.lease_id for event in await events_so_far(manager, 0)] == ["now", "earlier", "later"]


class FailingDisk(SQLiteStorage):
    """Fails before it writes, or after."""

    fails: ClassVar[str] = ""

    def write(self, changes: Any) -> None:
        if self.fails == "before":
            raise StorageError("the disk is full")
        super().write(changes)
        if self.fails == "after":
            raise StorageError("the disk went away")

    def reopen(self) -> Any:
        if self.fails:
            raise StorageError("the disk is still away")
        return super().reopen()


@pytest.mark.parametrize("fails", ["before", "after"])
async def test_only_what_is_durable_is_an_event(
    open_ledger: Any, new_demand: NewDemand, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    monkeypatch.setattr("dms_resources.manager.SQLiteStorage", FailingDisk)
    async with open_ledger() as manager:
        await take(manager, new_demand(1), "before")
        after = await last_number(manager)
        async with manager.events(after) as events:
            monkeypatch.setattr(FailingDisk, "fails", fails)
            with pytest.raises(StorageError):
                await take(manager, new_demand(1), "doubtful")
            assert await events_so_far(manager, after) == []
            # A reader of the file must not see what was not told.
            assert [event.lease_id for event in await events_so_far(manager, 0)] == ["before"]
            monkeypatch.setattr(FailingDisk, "fails", "")
            await take(manager, new_demand(1), "next")
            names = ["doubtful", "next"] if fails == "after" else ["next"]
            assert [(await anext(events)).lease_id for _ in names] == names
        assert [event.lease_id for event in await events_so_far(manager, 0)] == ["before", *names]
