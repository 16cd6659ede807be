"""Jobs in real containers, of Podman and of Docker: their life, their limits, their output."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from container_engines import RunningEngine
from dms_peer.executors.executor import ExecutorError, JobSpec
from dms_protocols.messages.job import JobExit, JobFile, JobPort
from dms_resources.units import MIB
from executor_jobs import DEADLINE, container_spec, is_running, joined, read_all, shell

Containers = Callable[..., Any]

pytestmark = pytest.mark.containers


async def _ended(executor: Any, spec: JobSpec) -> JobExit:
    with trio.fail_after(DEADLINE):
        found = await executor.wait(spec)
    assert found is not None
    assert found.exit is not None
    exited: JobExit = found.exit
    return exited


async def _says(executor: Any, spec: JobSpec, text: bytes) -> None:
    with trio.fail_after(DEADLINE):
        async with executor.output(spec, 0) as pieces:
            said = b""
            async for piece in pieces:
                said += piece.data
                if text in said:
                    return
    raise AssertionError(said)


async def test_a_job_runs_and_is_found_again(containers: Containers) -> None:
    spec = container_spec(*shell("echo out; echo err >&2; exit 3"))
    async with containers(spec) as executor:
        assert (await executor.probe()).works
        assert await executor.find(spec) is None
        await executor.prepare(spec, lambda message: None)
        await executor.start(spec)
        assert await _ended(executor, spec) == JobExit(kind="code", code=3)
        async with containers() as restarted:
            (found,) = await restarted.list(spec.peer_id, spec.home_id)
            assert found == await executor.find(spec)
            assert (found.name, found.digest, found.created) == (spec.name, spec.digest, 1.0)
            assert await restarted.list(spec.peer_id, "another") == []
            pieces = await read_all(restarted, spec)
            assert (joined(pieces), joined(pieces, "stderr")) == (b"out\n", b"err\n")
            # The job has exited: a start does not begin it again.
            assert (await restarted.start(spec)).state == "exited"
            assert (await read_all(restarted, spec, offset=5))[0].data in (b"rr\n", b"ut\n", b"r\n", b"t\n")
        await executor.remove(spec)
        assert await executor.find(spec) is None


async def test_a_cancelled_start_is_found_and_goes_on(containers: Containers) -> None:
    spec = container_spec(*shell("sleep 600"))
    async with containers(spec) as executor:
        for after in (0.0, 0.01, 0.05):
            with trio.move_on_after(after):
                await executor.start(spec)
        found = await executor.start(spec)
        assert found.state == "running"
        assert [one.name for one in await executor.list(spec.peer_id, spec.home_id)] == [spec.name]
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(executor.start, spec)
        assert (await executor.find(spec)).pid == found.pid
        with pytest.raises(ExecutorError) as caught:
            await executor.start(container_spec(*shell("true")))
        assert caught.value.code == "refused"


async def test_signals_end_a_job_and_all_that_it_started(containers: Containers) -> None:
    polite = container_spec(
        *shell("trap 'echo bye; exit 0' TERM; echo up; while :; do sleep 0.05; done"), name="polite"
    )
    stubborn = container_spec(
        *shell("trap '' TERM; setsid sleep 600 & (setsid sleep 600 &) ; echo up; while :; do sleep 0.05; done"),
        name="stubborn",
    )
    async with containers(polite, stubborn) as executor:
        for spec in (polite, stubborn):
            await executor.start(spec)
            await _says(executor, spec, b"up\n")
            await executor.signal(spec, signal.SIGTERM)
        assert await _ended(executor, polite) == JobExit(kind="code", code=0)
        assert joined(await read_all(executor, polite)) == b"up\nbye\n"
        found = await executor.find(stubborn)
        group = Path("/sys/fs/cgroup/memory") / str(found.cgroup).lstrip("/") / "cgroup.procs"
        inside = [int(line) for line in group.read_text().split()] if group.exists() else [found.pid]
        await executor.signal(stubborn, signal.SIGKILL)
        assert (await _ended(executor, stubborn)).code == 137
        assert not any(map(is_running, inside))
        await executor.signal(stubborn, signal.SIGTERM)


async def test_a_job_that_takes_more_memory_than_its_lease_is_killed_and_says_so(containers: Containers) -> None:
    greedy = container_spec(*shell("exec dd if=/dev/zero of=/dev/null bs=300M count=1"), ram=32 * MIB)
    other = container_spec(*shell("sleep 600"), name="other")
    async with containers(greedy, other) as executor:
        await executor.start(other)
        await executor.start(greedy)
        exited = await _ended(executor, greedy)
        assert (exited.kind, exited.signal) == ("memory", 9)
        assert (await executor.find(other)).state == "running"


async def test_memory_behind_tmpfs_and_shm_counts(containers: Containers) -> None:
    spec = container_spec(*shell("dd if=/dev/zero of=/tmp/x bs=1M count=100; echo $?"), ram=32 * MIB)
    async with containers(spec, read_only=True, scratch=256 * MIB) as executor:
        await executor.start(spec)
        exited = await _ended(executor, spec)
        assert exited.kind == "memory" or exited.oom_kills > 0 or joined(await read_all(executor, spec)) == b"137\n"


async def test_a_burner_of_four_cores_gets_what_its_lease_has(containers: Containers) -> None:
    spec = container_spec(*shell("for i in 1 2 3 4; do while :; do :; done & done; wait"), millicores=250)
    async with containers(spec) as executor:
        found = await executor.start(spec)
        assert found.cgroup is not None
        first = await executor.usage(spec)
        begun = trio.current_time()
        await trio.sleep(2)
        second = await executor.usage(spec)
        seconds = trio.current_time() - begun
        used = second.cpu_seconds - first.cpu_seconds
        assert 0.05 * seconds < used < 0.25 * seconds + 0.15
        assert 0 < second.memory < spec.resources.ram.size


async def test_a_fork_bomb_leaves_the_machine_to_others(containers: Containers) -> None:
    bomb = container_spec(*shell("b() { b | b & }; b; sleep 600"), name="bomb")
    other = container_spec(*shell("echo here"), name="other")
    async with containers(bomb, other, processes=48) as executor:
        await executor.start(bomb)
        with trio.fail_after(DEADLINE):
            await executor.start(other)
            assert joined(await read_all(executor, other)) == b"here\n"


async def test_a_port_is_reached_inside_a_job_without_network(containers: Containers) -> None:
    text = "mkdir -p /tmp/w; echo hello > /tmp/w/index.html; httpd -p 127.0.0.1:80 -h /tmp/w; echo up; sleep 600"
    spec = container_spec(*shell(text), ports=(JobPort(private=80),))
    async with containers(spec) as executor:
        await executor.start(spec)
        await _says(executor, spec, b"up\n")
        stream = await executor.connect(spec, 80)
        await stream.send_all(b"GET /index.html HTTP/1.0\r\n\r\n")
        answer = b""
        with trio.fail_after(DEADLINE):
            while part := await stream.receive_some(4096):
                answer += part
        await stream.aclose()
        assert answer.endswith(b"hello\n")
        with pytest.raises(ExecutorError) as caught:
            await executor.connect(spec, 81)
        assert caught.value.code == "failed"


async def test_files_are_read_only_and_executable_as_asked(containers: Containers) -> None:
    files = (
        JobFile(
            name="run.sh", content=b"#!/bin/sh\ncat /dms/key; echo x > /dms/key || echo read-only", executable=True
        ),
        JobFile(name="key", content=b"secret\n"),
    )
    spec = container_spec("/dms/run.sh", files=files)
    async with containers(spec) as executor:
        await executor.start(spec)
        assert joined(await read_all(executor, spec)) == b"secret\nread-only\n"


async def test_output_is_whole_whatever_it_is(containers: Containers) -> None:
    spec = container_spec(*shell("seq 1 20000; head -c 40000 /dev/zero; printf end"))
    expected = b"".join(b"%d\n" % number for number in range(1, 20001)) + bytes(40000) + b"end"
    async with containers(spec) as executor:
        await executor.start(spec)
        # Read when it has exited: Podman 4.3 was seen to lose a line of a followed output on a busy machine.
        await _ended(executor, spec)
        assert joined(await read_all(executor, spec)) == expected
        assert joined(await read_all(executor, spec, offset=100_001)) == expected[100_001:]


async def test_a_command_that_is_not_there_is_the_jobs_failure(containers: Containers) -> None:
    spec = container_spec("/no/such/program")
    async with containers(spec) as executor:
        await executor.start(spec)
        # By the init of Docker, and by that of Podman.
        assert (await _ended(executor, spec)).code in (127, 1)


async def test_what_an_engine_cannot_start_has_failed(containers: Containers) -> None:
    spec = container_spec("/bin/true", working_directory="/bin/busybox/x")
    async with containers(spec) as executor:
        with pytest.raises(ExecutorError) as caught:
            await executor.start(spec)
        assert caught.value.code == "failed"


async def test_an_engine_that_is_killed_takes_no_job_along(engine: RunningEngine, containers: Containers) -> None:
    if engine.kind == "docker":
        pytest.skip("Docker keeps containers over a restart only with live-restore")
    spec = container_spec(*shell("trap 'exit 9' TERM; echo up; while :; do sleep 0.05; done"))
    async with containers(spec) as executor:
        found = await executor.start(spec)
        async with trio.open_nursery() as nursery:
            ended: list[Any] = []

            async def wait() -> None:
                try:
                    ended.append(await executor.wait(spec))
                except ExecutorError as error:
                    ended.append(error.code)

            nursery.start_soon(wait)
            await _says(executor, spec, b"up\n")
            engine.kill()
            with pytest.raises(ExecutorError) as caught:
                await executor.find(spec)
            assert caught.value.code == "unavailable"
            assert is_running(found.pid)
            await trio.to_thread.run_sync(engine.start)
            assert (await executor.find(spec)).pid == found.pid
            await executor.signal(spec, signal.SIGTERM)
        assert ended[0] == "unavailable" or ended[0].exit.code == 9
        assert (await _ended(executor, spec)).code == 9
