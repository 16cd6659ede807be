"""Querying a vendor's library repeatedly, through a process that stays."""

from __future__ import annotations

import os
from collections.abc import Callable

import psutil
import pytest
import trio

from dms_resources.machine.hardware.gpu import GPUReport
from dms_resources.machine.hardware.gpu.watch import open_gpu_watch

Behave = Callable[..., None]


def _children() -> list[int]:
    return [process.pid for process in psutil.Process().children()]


async def test_one_process_answers_every_question_and_ends_with_the_block(fake_nvml: Behave) -> None:
    fake_nvml(devices=2, used=10)
    async with open_gpu_watch("nvidia") as watch:
        first = await watch.report()
        process = watch.process_id
        fake_nvml(devices=2, used=20)
        second = await watch.report()
        assert watch.process_id == process
        assert _children() == [process]
    assert [first.devices[0].used, second.devices[0].used] == [10, 20]
    assert _children() == []


async def test_a_library_that_hangs_loses_its_process_and_is_asked_again_in_another(fake_nvml: Behave) -> None:
    async with open_gpu_watch("nvidia", 0.5) as watch:
        fake_nvml(devices=1, hang="nvmlDeviceGetCount_v2")
        assert await watch.report() == GPUReport.failure("nvidia's GPU library did not answer within 0.5 s")
        assert _children() == []
        fake_nvml(devices=1)
        watch.deadline = 30.0
        assert len((await watch.report()).devices) == 1


@pytest.mark.parametrize("function", ["nvmlInitWithFlags", "nvmlDeviceGetName"])
async def test_a_library_that_crashes_is_asked_again_in_another_process(fake_nvml: Behave, function: str) -> None:
    async with open_gpu_watch("nvidia") as watch:
        fake_nvml(devices=1, crash=function)
        assert await watch.report() == GPUReport.failure("nvidia's GPU library crashed (SIGSEGV)")
        fake_nvml(devices=1)
        assert len((await watch.report()).devices) == 1
    assert _children() == []


async def test_a_process_that_was_killed_from_outside_is_replaced(fake_nvml: Behave) -> None:
    fake_nvml(devices=1)
    async with open_gpu_watch("nvidia") as watch:
        await watch.report()
        assert watch.process_id is not None
        victim = psutil.Process(watch.process_id)
        victim.kill()
        await trio.to_thread.run_sync(os.waitid, os.P_PID, victim.pid, os.WEXITED | os.WNOWAIT)
        assert (await watch.report()).failed
        assert len((await watch.report()).devices) == 1


async def test_a_cancelled_question_ends_the_process(fake_nvml: Behave) -> None:
    fake_nvml(devices=1, hang="nvmlInitWithFlags")
    async with open_gpu_watch("nvidia") as watch:
        with trio.move_on_after(0.2) as scope:
            await watch.report()
        assert scope.cancelled_caught
        assert _children() == []
        # The late answer to the first query is not taken for the answer to the second.
        fake_nvml(devices=3)
        assert len((await watch.report()).devices) == 3


async def test_a_process_that_cannot_be_ended_is_not_joined_by_another(
    fake_nvml: Behave, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dms_resources.machine.hardware.gpu.watch.KILL_DEADLINE", 0.05)
    fake_nvml(devices=1, hang="nvmlInitWithFlags")
    victims: list[trio.Process] = []
    async with open_gpu_watch("nvidia", 0.2) as watch:
        with monkeypatch.context() as patch:
            patch.setattr(trio.Process, "kill", lambda process: victims.append(process))
            await watch.report()
        answer = await watch.report()
        assert answer == GPUReport.failure(
            f"nvidia's GPU library hangs, and its process {victims[0].pid} cannot be ended"
        )
        assert _children() == [victims[0].pid]
        victims[0].kill()
        await victims[0].wait()
        fake_nvml(devices=1)
        watch.deadline = 30.0
        assert len((await watch.report()).devices) == 1
