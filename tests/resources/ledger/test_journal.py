"""Group commit: many changes, one write; acknowledged when durable; safe to cancel; a failed write undoes all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import pytest
import trio
import trio.testing

from dms_resources.demands import Demand
from dms_resources.errors import ConflictError, StorageError
from dms_resources.ledger.book import Change
from dms_resources.ledger.leases import LeaseState, ResourceAllocation
from dms_resources.ledger.storage import SQLiteStorage
from dms_resources.refusals import InsufficientError
from dms_resources.units import Cores

NewDemand = Callable[..., Demand]


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Counts the writes of the ledgers and fails on request."""

    class Disk:
        batches: ClassVar[list[int]] = []
        fails: BaseException | None = None
        fails_after = False
        fails_to_open: BaseException | None = None

    state, write, reopen = Disk(), SQLiteStorage.write, SQLiteStorage.reopen
    state.batches = []

    def counted_write(self: SQLiteStorage, changes: list[Change]) -> None:
        if state.fails is not None and not state.fails_after:
            raise state.fails
        write(self, changes)
        state.batches.append(len(changes))
        if state.fails is not None:
            raise state.fails

    def failing_reopen(self: SQLiteStorage) -> Any:
        if state.fails_to_open is not None:
            raise state.fails_to_open
        return reopen(self)

    monkeypatch.setattr(SQLiteStorage, "write", counted_write)
    monkeypatch.setattr(SQLiteStorage, "reopen", failing_reopen)
    return state


async def _commit_all(manager: Any, demand: Demand, count: int, answers: list[Any]) -> None:
    async def commit(number: int) -> None:
        try:
            answers.append(await manager.commit_resources(f"lease-{number}", demand, holder="peer", ttl=60))
        except Exception as error:
            answers.append(error)

    async with trio.open_nursery() as nursery:
        for number in range(count):
            nursery.start_soon(commit, number)


async def test_waiting_changes_are_one_write(
    open_ledger: Any, new_demand: NewDemand, new_worker: Any, disk: Any
) -> None:
    worker, answers = new_worker(), []
    async with open_ledger(worker=worker) as manager, trio.open_nursery() as nursery:
        disk.batches.clear()
        worker.stop()
        nursery.start_soon(_commit_all, manager, new_demand(0.01), 500, answers)
        await trio.testing.wait_all_tasks_blocked()
        # Decided, counted, and not yet acknowledged.
        assert not answers
        assert manager.get_free_resources().cpu.cores == Cores.of(3)
        worker.go()
        await trio.testing.wait_all_tasks_blocked()
        assert len(answers) == sum(disk.batches) == 500
        assert len(disk.batches) <= 2


async def test_nobody_is_promised_what_waits_for_the_disk(
    open_ledger: Any, new_demand: NewDemand, new_worker: Any
) -> None:
    worker, answers = new_worker(), []
    async with open_ledger(worker=worker) as manager, trio.open_nursery() as nursery:
        worker.stop()
        nursery.start_soon(_commit_all, manager, new_demand(8), 1, answers)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(InsufficientError):
            await manager.commit_resources("other", new_demand(1), holder="peer", ttl=60)
        worker.go()


async def test_a_repeated_call_waits_for_the_first(open_ledger: Any, new_demand: NewDemand, new_worker: Any) -> None:
    worker, answers = new_worker(), []
    async with open_ledger(worker=worker) as manager, trio.open_nursery() as nursery:
        worker.stop()
        for _ in range(2):
            nursery.start_soon(_commit_all, manager, new_demand(1), 1, answers)
            await trio.testing.wait_all_tasks_blocked()
        assert not answers
        worker.go()
        await trio.testing.wait_all_tasks_blocked()
        assert answers[0] == answers[1]


@pytest.mark.parametrize("steps", range(8))
async def test_a_cancelled_call_finished_or_never_began(
    open_ledger: Any, new_demand: NewDemand, clock: Any, steps: int
) -> None:
    async def slow(call: Callable[[], None]) -> None:
        await trio.lowlevel.checkpoint()
        call()
        await trio.lowlevel.checkpoint()

    async with open_ledger(worker=slow) as manager:
        await manager.commit_resources("job", new_demand(1), holder="peer", ttl=60)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(
                lambda: manager.commit_resources("lease", new_demand(2, gpus=[8]), holder="peer", ttl=60)
            )
            nursery.start_soon(lambda: manager.allocate_resources(ResourceAllocation(lease_id="job", holder="peer")))
            for _ in range(steps):
                await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()
        before = set(manager.leases())
    async with open_ledger(worker=slow) as manager:
        assert set(manager.leases()) == before
        assert manager.lease("job") is not None
        lease = manager.lease("lease")
        assert manager.get_free_resources().cpu.cores == Cores.of(7 if lease is None else 5)
        # It can be requested again.
        await manager.commit_resources("lease", new_demand(2, gpus=[8]), holder="peer", ttl=60)


async def test_a_call_that_is_cancelled_before_it_begins_does_nothing(open_ledger: Any, new_demand: NewDemand) -> None:
    async with open_ledger() as manager:
        version = manager.version
        with trio.CancelScope() as scope:
            scope.cancel()
            await manager.commit_resources("lease", new_demand(1), holder="peer", ttl=60)
        assert scope.cancelled_caught
        assert manager.version == version


async def test_a_cancelled_caller_does_not_stop_the_write(
    open_ledger: Any, new_demand: NewDemand, new_worker: Any
) -> None:
    worker, answers = new_worker(), []
    async with open_ledger(worker=worker) as manager, trio.open_nursery() as nursery:
        worker.stop()
        nursery.start_soon(_commit_all, manager, new_demand(1), 3, answers)
        await trio.testing.wait_all_tasks_blocked()
        with trio.move_on_after(0):
            await manager.commit_resources("lease-1", new_demand(1), holder="peer", ttl=60)
        worker.go()
        await trio.testing.wait_all_tasks_blocked()
        assert len(answers) == 3
        assert manager.is_committed("lease-1")


@pytest.mark.parametrize("after", [False, True])
async def test_a_failed_write_takes_back_all_that_followed_and_says_so(
    open_ledger: Any, new_demand: NewDemand, new_worker: Any, disk: Any, after: bool
) -> None:
    worker, answers = new_worker(), []
    async with open_ledger(worker=worker) as manager:
        await manager.commit_resources("kept", new_demand(1), holder="peer", ttl=60)
        async with trio.open_nursery() as nursery:
            disk.fails, disk.fails_after = StorageError("the disk is full", hint="free some"), after
            disk.fails_to_open = StorageError("still full")
            worker.stop()
            nursery.start_soon(_commit_all, manager, new_demand(1), 3, answers)
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(lambda: _commit_one(manager, "late", new_demand(1), answers))
            await trio.testing.wait_all_tasks_blocked()
            worker.go()
        assert [type(answer) for answer in answers] == [StorageError] * 4
        assert {answer.message for answer in answers} == {"the disk is full"}
        # It continues to answer, and refuses new commitments.
        assert manager.get_free_resources().cpu.cores == Cores.of(7)
        assert manager.storage_error is not None
        with pytest.raises(StorageError):
            await manager.commit_resources("next", new_demand(1), holder="peer", ttl=60)
        disk.fails = disk.fails_to_open = None
        await manager.commit_resources("next", new_demand(1), holder="peer", ttl=60)
        assert manager.storage_error is None
        # What was written before the error was not acknowledged, but exists: it may be requested again.
        assert {lease.lease_id for lease in manager.leases()} >= {"kept", "next"}
        assert manager.is_committed("lease-0") == after
        assert not manager.is_committed("late")
        fences = [lease.fence for lease in manager.leases()]
        assert len(set(fences)) == len(fences)
        await manager.commit_resources("lease-0", new_demand(1), holder="peer", ttl=60)


async def _commit_one(manager: Any, lease_id: str, demand: Demand, answers: list[Any]) -> None:
    try:
        answers.append(await manager.commit_resources(lease_id, demand, holder="peer", ttl=60))
    except StorageError as error:
        answers.append(error)


@pytest.mark.parametrize("error", [ValueError("a defect"), OSError(5, "Input/output error"), MemoryError()])
async def test_a_write_that_fails_in_any_way_is_never_acknowledged(
    open_ledger: Any, new_demand: NewDemand, disk: Any, error: BaseException
) -> None:
    async with open_ledger() as manager:
        disk.fails = error
        with pytest.raises(StorageError):
            await manager.commit_resources("lease", new_demand(1), holder="peer", ttl=60)
        disk.fails = None
        assert manager.get_free_resources().cpu.cores == Cores.of(8)
        await manager.commit_resources("lease", new_demand(1), holder="peer", ttl=60)


async def test_the_fence_of_a_promise_that_failed_is_not_given_out_again(
    open_ledger: Any, new_demand: NewDemand, disk: Any
) -> None:
    async with open_ledger() as manager:
        disk.fails = StorageError("full")
        seen: list[int] = []

        async def look_on() -> None:
            async with manager.watch() as changes:
                async for _ in changes:
                    seen.extend(lease.fence for lease in manager.leases())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(look_on)
            await trio.testing.wait_all_tasks_blocked()
            with pytest.raises(StorageError):
                await manager.commit_resources("lease", new_demand(1), holder="peer", ttl=60)
            nursery.cancel_scope.cancel()
        disk.fails = None
        lease = await manager.commit_resources("next", new_demand(1), holder="peer", ttl=60)
        assert lease.fence == 2


async def test_deadlines_that_passed_while_the_disk_failed_end_when_it_works(
    open_ledger: Any, new_demand: NewDemand, disk: Any, autojump_clock: trio.testing.MockClock
) -> None:
    async with open_ledger() as manager:
        await manager.commit_resources("lease", new_demand(8), holder="peer", ttl=60)
        disk.fails = disk.fails_to_open = StorageError("full")
        await trio.sleep(100)
        # A lease must not end on a disk that does not know it.
        assert manager.get_free_resources().cpu.cores == Cores.of(0)
        disk.fails = disk.fails_to_open = None
        await trio.sleep(40)
        assert manager.storage_error is None
        assert manager.get_free_resources().cpu.cores == Cores.of(8)


async def test_too_many_waiting_changes_are_refused(
    open_ledger: Any, new_demand: NewDemand, new_worker: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dms_resources.ledger.ledger._MOST_WAITING", 5)
    worker, answers = new_worker(), []
    async with open_ledger(worker=worker) as manager, trio.open_nursery() as nursery:
        worker.stop()
        nursery.start_soon(_commit_all, manager, new_demand(0.1), 20, answers)
        await trio.testing.wait_all_tasks_blocked()
        assert all(isinstance(answer, StorageError) for answer in answers)
        # One is being written, five wait: or the first did not get so far and is among the five.
        assert 20 - len(answers) in (5, 6)
        worker.go()


async def test_what_waits_at_the_end_is_written(open_ledger: Any, new_demand: NewDemand, new_worker: Any) -> None:
    worker, answers = new_worker(), []
    async with trio.open_nursery() as nursery, open_ledger(worker=worker) as manager:
        worker.stop()
        nursery.start_soon(_commit_all, manager, new_demand(1), 3, answers)
        await trio.testing.wait_all_tasks_blocked()
        worker.go()
    assert [answer.lease_id for answer in answers] == ["lease-0", "lease-1", "lease-2"] or len(answers) == 3
    async with open_ledger() as manager:
        assert len(manager.leases()) == 3


async def test_a_closed_ledger_says_so_and_keeps_nobody_waiting(open_ledger: Any, new_demand: NewDemand) -> None:
    async with open_ledger() as manager:
        await manager.commit_resources("lease", new_demand(1), holder="peer", ttl=60)
    with pytest.raises(StorageError, match="closed"):
        await manager.commit_resources("next", new_demand(1), holder="peer", ttl=60)
    with pytest.raises(StorageError, match="closed"):
        await manager.release("lease")


async def test_an_error_of_the_body_is_raised_as_it_is(open_ledger: Any) -> None:
    with pytest.raises(ZeroDivisionError):
        async with open_ledger():
            raise ZeroDivisionError


async def test_a_conflict_is_decided_among_waiting_changes(
    open_ledger: Any, new_demand: NewDemand, new_worker: Any
) -> None:
    worker, answers = new_worker(), []
    async with open_ledger(worker=worker) as manager, trio.open_nursery() as nursery:
        worker.stop()
        nursery.start_soon(_commit_all, manager, new_demand(1), 1, answers)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(ConflictError):
            await manager.commit_resources("lease-0", new_demand(2), holder="peer", ttl=60)
        worker.go()
    assert LeaseState.COMMITTED is answers[0].state
