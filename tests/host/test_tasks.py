"""Background tasks, shields, and the bounded dictionary."""

from __future__ import annotations

import pytest
import trio

from dms_host.bounded import BoundedDict
from dms_host.tasks import open_background, shielded


async def test_background_tasks_end_with_their_block() -> None:
    ended = []

    async def work() -> None:
        try:
            await trio.sleep_forever()
        finally:
            ended.append("work")

    async with open_background(work):
        await trio.testing.wait_all_tasks_blocked()
        assert not ended
    assert ended == ["work"]


async def test_an_exception_of_the_block_is_raised_as_it_is() -> None:
    with pytest.raises(KeyError):
        async with open_background(trio.sleep_forever):
            raise KeyError("the block's")


async def test_an_exception_of_a_background_task_ends_the_block() -> None:
    async def work() -> None:
        raise KeyError("the task's")

    with pytest.RaisesGroup(KeyError):
        async with open_background(work):
            await trio.sleep_forever()


async def test_a_shield_ends_by_itself_and_not_before(autojump_clock) -> None:
    with trio.CancelScope() as outer:
        outer.cancel()
        with shielded(5) as inner:
            await trio.sleep(4)
            assert trio.current_time() == 4
            await trio.sleep_forever()
        assert inner.cancelled_caught
        assert trio.current_time() == 5


def test_a_bounded_dict_forgets_its_oldest_entry() -> None:
    bounded: BoundedDict[str, int] = BoundedDict(2)
    bounded["a"], bounded["b"] = 1, 2
    bounded["a"] = 3
    bounded.move_to_end("a")
    bounded["c"] = 4
    assert dict(bounded) == {"a": 3, "c": 4}
    with pytest.raises(ValueError, match="at least one"):
        BoundedDict(0)
