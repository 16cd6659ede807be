"""The command of a reservation ends with the process that runs it, however that process ends. Real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import trio

from dms_peer.cli.child_process import run_child

RUNNER = """
import sys, trio
from dms_peer.cli.child_process import run_child
sys.exit(trio.run(run_child, sys.argv[1:], {}))
"""
# A command that starts another process, prints both ids, and continues.
FAMILY = """
import os, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
open(sys.argv[1], "w").write(f"{os.getpid()} {child.pid}\\n")
time.sleep(600)
"""


@pytest.fixture
def ids(tmp_path: Path) -> Path:
    """A pipe with a name, into which the command writes its ids."""
    os.mkfifo(tmp_path / "ids")
    return tmp_path / "ids"


async def family(ids: Path) -> list[int]:
    """The ids that the command writes."""
    with trio.fail_after(20):
        text = await trio.to_thread.run_sync(ids.read_text, abandon_on_cancel=True)
    return [int(word) for word in text.split()]


def runs(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


async def all_gone(processes: list[int]) -> None:
    with trio.fail_after(20):
        for process in processes:
            try:
                descriptor = os.pidfd_open(process)
            except ProcessLookupError:
                continue
            try:
                await trio.lowlevel.wait_readable(descriptor)
            finally:
                os.close(descriptor)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
async def test_the_command_and_what_it_started_die_with_the_runner(ids: Path, number: signal.Signals) -> None:
    runner = await trio.lowlevel.open_process(
        [sys.executable, "-c", RUNNER, sys.executable, "-c", FAMILY, str(ids)], stdin=subprocess.DEVNULL
    )
    processes = await family(ids)
    assert all(map(runs, processes))
    os.kill(runner.pid, number)
    await runner.wait()
    if number == signal.SIGKILL:
        await all_gone(processes)
    else:
        # SIGTERM is for the command: processes that it left behind when it ended are not ended.
        await all_gone(processes[:1])
        os.kill(processes[1], signal.SIGKILL)


async def test_a_cancelled_block_ends_what_the_command_started(ids: Path) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run_child, [sys.executable, "-c", FAMILY, str(ids)], {})
        processes = await family(ids)
        nursery.cancel_scope.cancel()
    assert not any(map(runs, processes))


async def test_a_command_that_ignores_sigterm_dies_with_a_killed_runner(ids: Path) -> None:
    stubborn = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + FAMILY.replace("600", "60")
    runner = await trio.lowlevel.open_process(
        [sys.executable, "-c", RUNNER, sys.executable, "-c", stubborn, str(ids)], stdin=subprocess.DEVNULL
    )
    processes = await family(ids)
    os.kill(runner.pid, signal.SIGKILL)
    await runner.wait()
    await all_gone(processes)


async def test_what_a_command_leaves_behind_when_it_ends_stays(ids: Path) -> None:
    leaving = FAMILY.replace("\ntime.sleep(600)\n", "\n")
    codes: list[int] = []

    async def run() -> None:
        codes.append(await run_child([sys.executable, "-c", leaving, str(ids)], {}))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        _, left = await family(ids)
    assert codes == [0]
    assert runs(left)
    os.kill(left, signal.SIGKILL)
