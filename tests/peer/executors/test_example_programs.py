"""The programs in examples/executors: what they run, and what they refuse. The tools that they call are stand-ins."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from dms_protocols.messages.job import JobFile, JobPort
from dms_resources.units import GIB
from executor_jobs import DEADLINE, RUN_CMD, job_spec, joined, read_all

Running = Callable[..., Any]

EXAMPLES = RUN_CMD.parent


def tools(folder: Path, **scripts: str) -> str:
    """A folder with stand-ins, for PATH."""
    (folder / "bin").mkdir()
    for name, text in scripts.items():
        tool = folder / "bin" / name.replace("_", "-")
        tool.write_text(f"#!{sys.executable} -IS\nimport json, sys\n{text}")
        tool.chmod(0o755)
    return f"PATH={folder / 'bin'}:{os.defpath}"


async def test_run_cmd_refuses_a_job_without_a_command(running: Running) -> None:
    spec = job_spec()
    async with running(spec) as executor:
        found = await executor.start(spec)
        assert found.exit is not None
        assert (found.exit.kind, found.exit.message) == ("failed", "the job has no cmd")


async def test_run_cmd_keeps_the_mark_from_the_job(running: Running) -> None:
    spec = job_spec("env", environment=("DMS_JOB=another", "A=1"))
    async with running(spec) as executor:
        await executor.start(spec)
        shown = joined(await read_all(executor, spec)).decode().splitlines()
        assert f"DMS_JOB={spec.name}" in shown
        assert "A=1" in shown


async def test_systemd_run_gets_the_limits_and_no_option_of_the_job(running: Running, tmp_path: Path) -> None:
    path = tools(tmp_path, systemd_run="print(json.dumps(sys.argv[1:]))")
    command = (sys.executable, "-IS", str(EXAMPLES / "systemd_run.py"), "guest")
    spec = job_spec("--uid=root", "A=B", environment=("MODE=x",), ram=2 * GIB, millicores=1500)
    async with running(spec, command=command, environment=(path,)) as executor:
        await executor.start(spec)
        arguments = json.loads(joined(await read_all(executor, spec)))
    before, after = arguments[: arguments.index("--")], arguments[arguments.index("--") + 1 :]
    assert {"--scope", "--uid=guest", "--property=CPUQuota=150%", f"--property=MemoryMax={2 * GIB}"} <= {*before}
    assert "--property=IPAddressDeny=any" in before
    assert after == ["env", "MODE=x", "sh", "-c", 'exec "$@"', "job", "--uid=root", "A=B"]


@pytest.mark.parametrize("variable", ["LD_PRELOAD=/tmp/x.so", "SYSTEMD_LOG_LEVEL=debug", "DMS_JOB=x"])
async def test_systemd_run_refuses_variables_of_privileged_programs(
    running: Running, tmp_path: Path, variable: str
) -> None:
    command = (sys.executable, "-IS", str(EXAMPLES / "systemd_run.py"), "guest")
    spec = job_spec("true", environment=(variable,))
    async with running(spec, command=command) as executor:
        found = await executor.start(spec)
        assert found.exit is not None
        assert found.exit.kind == "failed"
        assert "are refused" in found.exit.message


@pytest.mark.skipif(os.geteuid() != 0, reason="the example runs as root")
async def test_ssh_user_makes_a_user_and_removes_it_when_it_is_stopped(running: Running, tmp_path: Path) -> None:
    log = f"open({str(tmp_path / 'log')!r}, 'a').write(json.dumps(sys.argv) + chr(10))\n"
    # The stand-ins create no user on the machine: the program gets an entry whose home is a folder of the test.
    path = tools(tmp_path, useradd=log, userdel=log, pkill=log)
    program = tmp_path / "program"
    text = (EXAMPLES / "ssh_user.py").read_text().split("\n", 1)[1]
    entry = f"pwd.struct_passwd(('u', 'x', 0, 0, '', {str(tmp_path / 'home')!r}, '/bin/sh'))"
    text = text.replace("pwd.getpwnam(user)", entry).replace("pwd.getpwall()", "[]")
    program.write_text(f"#!{sys.executable} -IS\n{text}")
    program.chmod(0o755)
    (tmp_path / "home").mkdir()
    files = (JobFile(name="authorized_keys", content=b"ssh-ed25519 AAAA guest\n"),)
    spec = job_spec(files=files, ports=(JobPort(private=22),))
    async with running(spec, command=(str(program),), environment=(path,)) as executor:
        found = await executor.start(spec)
        assert found.state == "running"
        keys = tmp_path / "home" / ".ssh" / "authorized_keys"
        assert (keys.read_bytes(), keys.stat().st_mode & 0o777) == (files[0].content, 0o600)
        await executor.signal(spec, signal.SIGTERM)
        with trio.fail_after(DEADLINE):
            await executor.wait(spec)
        (said,) = joined(await read_all(executor, spec)).decode().splitlines()
        user = said.removeprefix("user ")
        called = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
        assert [Path(one[0]).name for one in called] == ["useradd", "pkill", "userdel"]
        assert all(one[-1] == user for one in called)


async def test_ssh_user_refuses_a_job_without_keys(running: Running) -> None:
    spec = job_spec(ports=(JobPort(private=22),))
    async with running(spec, command=(sys.executable, "-IS", str(EXAMPLES / "ssh_user.py"))) as executor:
        found = await executor.start(spec)
        assert found.exit is not None
        assert found.exit.message == "the job has no file authorized_keys"
