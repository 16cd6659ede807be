"""The command executor with a program that runs the `cmd` of jobs."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from dms_peer.executors.command.executor import CommandExecutor
from dms_peer.executors.executor import JobSpec
from dms_peer.executors.settings import CommandSettings
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
