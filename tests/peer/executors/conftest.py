"""The command executor with a program that runs the `cmd` of jobs, and the docker executor on real engines."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from container_engines import IMAGE, RunningEngine, missing_for, open_container_engine
from dms_peer.executors.command.executor import CommandExecutor
from dms_peer.executors.docker.executor import DockerExecutor, open_docker
from dms_peer.executors.executor import JobSpec
from dms_peer.executors.settings import CommandSettings, DockerSettings
from executor_jobs import DEADLINE, RUN_CMD

Running = Callable[..., Any]


@pytest.fixture
def running(tmp_path: Path) -> Running:
    """Opens a command executor; removes the jobs that a test began when the block ends."""

    @asynccontextmanager
    async def opened(*specs: JobSpec, **settings: Any) -> AsyncIterator[CommandExecutor]:
        command = settings.pop("command", (sys.executable, "-I", "-S", str(RUN_CMD)))
        executor = CommandExecutor("command", CommandSettings(command=command, **settings), tmp_path / "executors")
        try:
            yield executor
        finally:
            with trio.CancelScope(shield=True), trio.fail_after(DEADLINE):
                for spec in specs:
                    await executor.remove(spec)

    return opened


@pytest.fixture(scope="session", params=["podman", "docker"])
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningEngine]:
    """A real engine, one of each kind in turn."""
    if missing := missing_for(request.param):
        pytest.skip(missing)
    with open_container_engine(request.param, tmp_path_factory.mktemp(request.param)) as opened:
        yield opened


Containers = Callable[..., Any]


@pytest.fixture
def containers(engine: RunningEngine, tmp_path: Path) -> Containers:
    """Opens a docker executor on the engine; removes the jobs that a test began when the block ends."""

    @asynccontextmanager
    async def opened(*specs: JobSpec, **settings: Any) -> AsyncIterator[DockerExecutor]:
        chosen = DockerSettings(**{"socket": str(engine.socket), "images": (IMAGE,), "processes": 64, **settings})
        async with open_docker("docker", chosen, tmp_path / "docker") as executor:
            try:
                yield executor
            finally:
                with trio.CancelScope(shield=True), trio.fail_after(DEADLINE):
                    for spec in specs:
                        await executor.remove(spec)

    return opened
