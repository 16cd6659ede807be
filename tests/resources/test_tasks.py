from typing import Any

import pytest
import trio
import trio.testing

from dms_resources.tasks import new_worker, open_background


class BlockError(Exception):
    pass


class WorkError(Exception):
    pass


@pytest.mark.parametrize("error", [BlockError(), KeyboardInterrupt(), SystemExit(3)], ids=lambda error: repr(error))
async def test_what_the_block_raises_comes_out_as_it_is(error: BaseException) -> None:
    with pytest.raises(type(error)) as raised:
        async with open_background(trio.sleep_forever):
            raise error
    assert raised.value is error


async def test_the_work_is_cancelled_and_waited_for_at_the_end_of_the_block() -> None:
    ended: list[str] = []

    async def work() -> None:
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await trio.lowlevel.checkpoint()
            ended.append("work")

    async with open_background(work, work) as nursery:
        nursery.start_soon(work)
        await trio.testing.wait_all_tasks_blocked()
        assert ended == []
    assert ended == ["work"] * 3


async def test_work_that_fails_cancels_the_block_and_is_raised_in_a_group() -> None:
    async def fail() -> None:
        raise WorkError

    with pytest.raises(ExceptionGroup) as raised:
        async with open_background(fail):
            await trio.sleep_forever()
    assert [type(error) for error in raised.value.exceptions] == [WorkError]


async def test_a_cancellation_from_outside_ends_block_and_work() -> None:
    with trio.CancelScope() as scope:
        async with open_background(trio.sleep_forever):
            scope.cancel()
            await trio.sleep_forever()
    assert scope.cancelled_caught


async def test_a_worker_runs_calls_in_a_thread_and_passes_their_errors_on() -> None:
    import threading

    seen: list[Any] = []
    work = new_worker(1)
    await work(lambda: seen.append(threading.current_thread()))
    assert seen[0] is not threading.current_thread()

    def fail() -> None:
        raise OSError("full")

    with pytest.raises(OSError, match="full"):
        await work(fail)
