"""A watch begins with a snapshot, reports every change to a fast reader, one change to a slow reader, and blocks
nobody.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import trio
import trio.testing

from dms_resources.components import FreeResources
from dms_resources.demands import Demand
from dms_resources.units import Cores

NewDemand = Callable[..., Demand]


async def following(changes: AsyncIterator[FreeResources]) -> FreeResources:
    """The next change. If none comes, this fails instead of waiting for ever."""
    with trio.fail_after(100):
        return await anext(changes)


async def test_it_begins_with_a_snapshot_and_tells_every_change(
    open_ledger: Any, new_demand: NewDemand, autojump_clock: trio.testing.MockClock
) -> None:
    async with open_ledger() as manager, manager.watch() as changes:
        assert await following(changes) == manager.get_free_resources()
        await manager.commit_resources("lease", new_demand(2), holder="peer", ttl=60)
        assert (await following(changes)).cpu.cores == Cores.of(6)
        # A deadline is a change too, and it is reported when it is due.
        start = trio.current_time()
        assert (await following(changes)).cpu.cores == Cores.of(8)
        assert 59.9 < trio.current_time() - start < 60.1


async def test_changes_are_one_for_a_slow_reader_who_holds_nobody_up(open_ledger: Any, new_demand: NewDemand) -> None:
    async with open_ledger() as manager, manager.watch() as slow, manager.watch() as never_read:
        await following(slow)
        for number in range(100):
            await manager.commit_resources(f"lease-{number}", new_demand(0.01), holder="peer", ttl=60)
        assert (await following(slow)).cpu.cores == Cores.of(7)
        with trio.move_on_after(0) as scope:
            await following(slow)
        assert scope.cancelled_caught
        assert never_read is not slow


async def test_nothing_is_told_when_nothing_changed(open_ledger: Any, new_demand: NewDemand) -> None:
    async with open_ledger() as manager:
        await manager.commit_resources("lease", new_demand(1), holder="peer", ttl=60)
        seen: list[FreeResources] = []

        async def read() -> None:
            async with manager.watch() as changes:
                async for free in changes:
                    seen.append(free)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            await trio.testing.wait_all_tasks_blocked()
            await manager.commit_resources("lease", new_demand(1), holder="peer", ttl=60)
            manager.would_fit(new_demand(1))
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        assert len(seen) == 1


async def test_offers_drains_and_lost_devices_are_told(
    open_ledger: Any, new_machine: Callable[..., Any], new_gpu: Callable[..., Any]
) -> None:
    async with open_ledger() as manager, manager.watch() as changes:
        await following(changes)
        await manager.set_draining(True)
        assert (await following(changes)).draining
        manager.update_machine(new_machine(gpus=[new_gpu("gpu-b", 10)]))
        assert [gpu.uuid for gpu in (await following(changes)).gpus] == ["gpu-b"]
        await manager.offboard()
        assert not (await following(changes)).onboarded


async def test_a_watch_that_is_left_leaves_nothing_behind(open_ledger: Any, new_demand: NewDemand) -> None:
    async with open_ledger() as manager:
        async with trio.open_nursery() as nursery:
            for _ in range(50):
                nursery.start_soon(_read_for_ever, manager)
            await trio.testing.wait_all_tasks_blocked()
            assert manager._ledger.changed.statistics().tasks_waiting >= 50
            nursery.cancel_scope.cancel()
        await trio.testing.wait_all_tasks_blocked()
        # Only the sweeper is left.
        assert manager._ledger.changed.statistics().tasks_waiting == 1


async def _read_for_ever(manager: Any) -> None:
    async with manager.watch() as changes:
        async for _ in changes:
            pass
