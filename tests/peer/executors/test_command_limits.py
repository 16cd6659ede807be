"""The cgroups of the executor `command` enforce the lease, where they can be created."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from dms_peer.executors.command.groups import find_parents
from dms_resources.units import MIB
from executor_jobs import DEADLINE, job_spec, joined, read_all, shell

Running = Callable[..., Any]


@pytest.fixture(autouse=True)
def limited() -> None:
    """Skips if no cgroups with limits can be created. The other tests of this folder run everywhere."""
    if find_parents("").missing:
        pytest.skip("no cgroups with limits can be made here")


async def test_a_job_that_takes_more_memory_than_its_lease_is_killed_and_says_so(running: Running) -> None:
    spec = job_spec(sys.executable, "-ISc", "bytes = bytearray(200 << 20); print(len(bytes))", ram=32 * MIB)
    async with running(spec) as executor:
        await executor.start(spec)
        with trio.fail_after(DEADLINE):
            ended = await executor.wait(spec)
        assert ended is not None
        assert ended.exit is not None
        assert (ended.exit.kind, ended.exit.signal, ended.exit.oom_kills) == ("memory", 9, 1)
        assert joined(await read_all(executor, spec)) == b""


async def test_a_child_killed_for_memory_is_counted_and_the_code_is_the_jobs(running: Running) -> None:
    spec = job_spec(*shell(f"{sys.executable} -ISc 'bytearray(200 << 20)'; exit 3"), ram=32 * MIB)
    async with running(spec) as executor:
        await executor.start(spec)
        with trio.fail_after(DEADLINE):
            ended = await executor.wait(spec)
        assert ended is not None
        assert ended.exit is not None
        assert (ended.exit.kind, ended.exit.code, ended.exit.oom_kills) == ("code", 3, 1)


async def test_a_burner_of_four_cores_gets_what_its_lease_has(running: Running) -> None:
    burn = "import os, time\nfor _ in range(3): os.fork() or exec('while True: pass')\nwhile True: pass"
    spec = job_spec(sys.executable, "-ISc", burn, millicores=250)
    async with running(spec) as executor:
        await executor.start(spec)
        begun = trio.current_time()
        await trio.sleep(2)
        used = await executor.usage(spec)
        seconds = trio.current_time() - begun
        assert used is not None
        assert 0 < used.cpu_seconds < 0.25 * seconds + 0.2
        assert 0 < used.memory <= spec.resources.ram.size


async def test_a_fork_bomb_stays_within_its_processes(running: Running) -> None:
    spec = job_spec(*shell("for i in $(seq 60); do sleep 600 & done; echo done"))
    other = job_spec(*shell("echo here"), name="other")
    async with running(spec, other, processes=20) as executor:
        found = await executor.start(spec)
        assert found.cgroup is not None or found.state == "exited"
        await executor.start(other)
        assert joined(await read_all(executor, other)) == b"here\n"
        pieces = await read_all(executor, spec)
        assert b"fork" in joined(pieces, "stderr")


async def test_the_groups_of_a_job_go_with_it(running: Running, tmp_path: Path) -> None:
    spec = job_spec(*shell("sleep 600"))
    async with running(spec) as executor:
        found = await executor.start(spec)
        assert found.cgroup is not None
        assert found.cgroup.endswith(f"/dms-jobs/{spec.name}")
        memberships = await trio.Path(f"/proc/{found.pid}/cgroup").read_text()
        assert f":{found.cgroup}\n" in memberships
        await executor.remove(spec)
        groups = [folder / spec.name for folder in find_parents("").folders.values()]
        assert not any(folder.exists() for folder in groups)
        assert list((tmp_path / "executors").iterdir()) == []
