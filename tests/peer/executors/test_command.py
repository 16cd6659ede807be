"""The executor `command`: programs that become ready, end, are killed, and continue without the peer."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from dms_peer.executors.executor import ExecutorError
from dms_protocols.messages.job import JobExit, JobFile, JobPort
from executor_jobs import DEADLINE, is_running, job_spec, joined, own_program, read_all, shell

Running = Callable[..., Any]


async def test_a_job_runs_and_its_output_and_exit_code_are_kept(running: Running) -> None:
    spec = job_spec(*shell("echo out; echo err >&2; exit 3"))
    async with running(spec) as executor, running() as restarted:
        found = await executor.start(spec)
        assert (found.name, found.lease_id, found.fence, found.digest) == (spec.name, "lease", 1, spec.digest)
        with trio.fail_after(DEADLINE):
            ended = await executor.wait(spec)
        assert ended is not None
        assert (ended.state, ended.exit) == ("exited", JobExit(kind="code", code=3))
        for one in (executor, restarted):
            pieces = await read_all(one, spec)
            assert (joined(pieces), joined(pieces, "stderr")) == (b"out\n", b"err\n")
        assert joined(await read_all(executor, spec, offset=4)) in (b"", b"out\n")
        await executor.remove(spec)
        assert await executor.find(spec) is None
        assert await executor.list(spec.peer_id, spec.home_id) == []


async def test_a_repeated_start_finds_the_job_and_another_job_is_refused(running: Running, tmp_path: Path) -> None:
    spec = job_spec(*shell(f"echo x >> {tmp_path}/starts; exec sleep 60"))
    async with running(spec) as executor:
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(executor.start, spec)
        found = await executor.start(spec)
        assert (found.state, (tmp_path / "starts").read_text()) == ("running", "x\n")
        with pytest.raises(ExecutorError) as caught:
            await executor.start(job_spec(*shell("true")))
        assert caught.value.code == "refused"
        assert [job.name for job in await executor.list(spec.peer_id, spec.home_id)] == [spec.name]
        assert await executor.list(spec.peer_id, "another home") == []


async def test_a_signal_reaches_the_program_and_its_number_is_the_exit(running: Running) -> None:
    polite, stubborn = (
        job_spec(*shell(text), name=name)
        for name, text in (
            ("polite", "trap 'echo bye; exit 0' TERM; echo up; while :; do sleep 0.05; done"),
            ("stubborn", "trap '' TERM; echo up; while :; do sleep 0.05; done"),
        )
    )
    async with running(polite, stubborn) as executor:
        for spec in (polite, stubborn):
            await executor.start(spec)
            await _says(executor, spec, b"up\n")
            await executor.signal(spec, signal.SIGTERM)
        with trio.fail_after(DEADLINE):
            ended = await executor.wait(polite)
        assert ended is not None
        assert ended.exit == JobExit(kind="code", code=0)
        assert joined(await read_all(executor, polite)) == b"up\nbye\n"
        await executor.signal(stubborn, signal.SIGKILL)
        with trio.fail_after(DEADLINE):
            ended = await executor.wait(stubborn)
        assert ended is not None
        assert ended.exit == JobExit(kind="signal", signal=9)
        # A signal to a job that is gone is no error.
        await executor.signal(stubborn, signal.SIGTERM)


async def _says(executor, spec, text: bytes) -> None:  # type: ignore[no-untyped-def]
    with trio.fail_after(DEADLINE):
        async with executor.output(spec, 0) as pieces:
            said = b""
            async for piece in pieces:
                said += piece.data
                if text in said:
                    return
    raise AssertionError(said)


DETACHED = """
import os, sys, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        print(os.getpid(), flush=True)
        time.sleep(600)
    os._exit(0)
os.wait()
time.sleep({seconds})
"""


@pytest.mark.parametrize("groups", [True, False])
@pytest.mark.parametrize("how", ["exit", "kill", "remove"])
async def test_nothing_that_a_job_started_outlives_it(
    running: Running, monkeypatch: pytest.MonkeyPatch, groups: bool, how: str
) -> None:
    if not groups:
        _without_groups(monkeypatch)
    program = DETACHED.format(seconds=0 if how == "exit" else 600)
    spec = job_spec(sys.executable, "-ISc", program)
    async with running(spec) as executor:
        found = await executor.start(spec)
        assert bool(found.cgroup) is groups or found.state == "exited"
        await _says(executor, spec, b"\n")
        async with executor.output(spec, 0) as pieces:
            child = int((await anext(pieces)).data)
        if how == "kill":
            assert is_running(child)
            await executor.signal(spec, signal.SIGKILL)
        if how == "remove":
            await executor.remove(spec)
        else:
            with trio.fail_after(DEADLINE):
                await executor.wait(spec)
        assert not is_running(child)


def _without_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    from dms_peer.executors.command import executor, groups

    monkeypatch.setattr(executor, "find_parents", lambda chosen: groups.GroupParents({}, {}))


async def test_a_job_lives_on_when_the_peer_is_killed(running: Running, tmp_path: Path) -> None:
    spec = job_spec(*shell("trap 'echo bye; exit 7' TERM; echo up; while :; do sleep 0.05; done"))
    peer = f"""
import sys, trio
sys.path[:0] = {[*sys.path, str(Path(__file__).parent)]!r}
from pathlib import Path
from executor_jobs import RUN_CMD, job_spec
from dms_peer.executors.command.executor import CommandExecutor
from dms_peer.executors.settings import CommandSettings
spec = job_spec(*{spec.job.execution.cmd!r})
settings = CommandSettings(command=(sys.executable, "-I", "-S", str(RUN_CMD)))
executor = CommandExecutor("command", settings, Path({str(tmp_path / "executors")!r}))
async def main():
    await executor.start(spec)
    print("started", flush=True)
    await trio.sleep_forever()
trio.run(main)
"""
    async with running(spec) as executor:
        process = await trio.lowlevel.open_process([sys.executable, "-c", peer], stdout=subprocess.PIPE)
        assert process.stdout is not None
        with trio.fail_after(DEADLINE):
            said = b""
            while not said.endswith(b"\n"):
                part = await process.stdout.receive_some(100)
                assert part, said
                said += part
            process.kill()
            await process.wait()
        await process.stdout.aclose()
        (found,) = await executor.list(spec.peer_id, spec.home_id)
        assert (found.state, found.pid is not None) == ("running", True)
        assert (await executor.start(spec)).pid == found.pid
        await executor.signal(spec, signal.SIGTERM)
        with trio.fail_after(DEADLINE):
            ended = await executor.wait(spec)
        assert ended is not None
        assert ended.exit == JobExit(kind="code", code=7)
        assert joined(await read_all(executor, spec)) == b"up\nbye\n"


async def test_without_its_supervisor_a_job_is_lost_and_nothing_of_it_runs(running: Running, tmp_path: Path) -> None:
    spec = job_spec(*shell("echo up; sleep 600"))
    async with running(spec) as executor:
        found = await executor.start(spec)
        await _says(executor, spec, b"up\n")
        supervisor = json.loads((tmp_path / "executors" / spec.name / "supervisor.json").read_text())["pid"]
        os.kill(supervisor, signal.SIGKILL)
        with trio.fail_after(DEADLINE):
            ended = await executor.wait(spec)
        assert ended is not None
        assert ended.exit is not None
        assert ended.exit.kind == "lost"
        assert found.pid is not None
        assert not is_running(found.pid)
        assert await executor.find(spec) == ended


async def test_after_a_reboot_the_processes_are_other_ones(running: Running, tmp_path: Path) -> None:
    spec = job_spec(*shell("exit 0"))
    async with running(spec) as executor:
        await executor.start(spec)
        await executor.wait(spec)
        folder = tmp_path / "executors" / spec.name
        (folder / "exit.json").unlink()
        # The number of a process that is not the job's, as after a reboot.
        process = {"pid": os.getpid(), "started": 1, "boot": "another boot"}
        (folder / "process.json").write_text(json.dumps(process))
        found = await executor.find(spec)
        assert found is not None
        assert found.exit is not None
        assert found.exit.kind == "lost"


@pytest.mark.parametrize(
    ("program", "message"),
    [
        ("print('hello')", "its first line of output is not a JSON object"),
        ("print('[]')", "its first line of output is not a JSON object"),
        ("print('{}')", 'its first line of output has neither "ready": true nor "error"'),
        ("print('[' * 5000)", "its first line of output is not a JSON object"),
        ("""print('{"error": "no such image"}')""", "no such image"),
        ("print('x' * 100_000)", "its first line has more than 65536 bytes"),
        ("import time; time.sleep(600)", "it was not ready within 1 s"),
        ("pass", "it exited before it was ready"),
    ],
)
async def test_a_program_that_is_not_ready_has_failed(
    running: Running, tmp_path: Path, program: str, message: str
) -> None:
    spec = job_spec("x")
    async with running(spec, command=own_program(tmp_path, program), ready_seconds=1.0) as executor:
        with trio.fail_after(DEADLINE):
            found = await executor.start(spec)
        assert found.exit == JobExit(kind="failed", message=message)


async def test_a_program_that_cannot_be_executed_has_failed(running: Running, tmp_path: Path) -> None:
    program = tmp_path / "program"
    program.write_text("no interpreter")
    spec = job_spec("x")
    async with running(spec, command=(str(program),)) as executor:
        assert not (await executor.probe()).works
        program.chmod(0o700)
        found = await executor.start(spec)
        assert found.exit is not None
        assert (found.exit.kind, "cannot run" in found.exit.message) == ("failed", True)


async def test_the_program_gets_the_job_as_json_and_a_clean_environment(
    running: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DMS_SECRET", "of the peer")
    program = own_program(
        tmp_path,
        """
import json, os, sys
document = json.load(sys.stdin)
print('{"ready": true}', flush=True)
files = {one["name"]: [open(one["path"]).read(), os.access(one["path"], os.X_OK)] for one in document.pop("files")}
json.dump([document, dict(os.environ), files, os.getcwd()], sys.stdout)
""",
    )
    hostile = ("--privileged", "a\nb", 'quote"', "$(id)", "\x1b[31m")
    files = (JobFile(name="run.sh", content=b"one", executable=True), JobFile(name="key", content=b"two"))
    spec = job_spec(*hostile, environment=("A=B\nC=D",), files=files, ports=(JobPort(private=80, public=20000),))
    async with running(spec, command=program, environment=("MODE=x",)) as executor:
        await executor.start(spec)
        document, environment, read, folder = json.loads(joined(await read_all(executor, spec)))
    assert document["job"]["execution"]["cmd"] == list(hostile)
    assert document["job"]["ports"] == [{"private": 80, "public": 20000}]
    assert document["lease"]["lease_id"] == "lease"
    assert document["lease"]["resources"]["ram"] == {"size": spec.resources.ram.size}
    assert environment == {"PATH": os.defpath, "LANG": "C.UTF-8", "MODE": "x", "DMS_JOB": spec.name}
    assert read == {"run.sh": ["one", True], "key": ["two", False]}
    assert folder == document["directory"]


async def test_a_port_of_the_job_is_where_the_program_says(running: Running, tmp_path: Path) -> None:
    program = own_program(
        tmp_path,
        """
import json, socket
server = socket.create_server(("127.0.0.1", 0))
endpoints = [{"port": 80, "target": server.getsockname()[1]}, {"port": 81, "target": "no number"}]
print(json.dumps({"ready": True, "endpoints": endpoints}), flush=True)
one, _ = server.accept()
one.sendall(b"hello " + one.recv(100))
""",
    )
    spec = job_spec("x", ports=(JobPort(private=80), JobPort(private=81), JobPort(private=82)))
    async with running(spec, command=program) as executor:
        await executor.start(spec)
        with trio.fail_after(DEADLINE):
            stream = await executor.connect(spec, 80)
            await stream.send_all(b"you")
            assert await stream.receive_some(100) == b"hello you"
            await stream.aclose()
        for port in (81, 82):
            with pytest.raises(ExecutorError) as caught:
                await executor.connect(spec, port)
            assert caught.value.code == "failed"
