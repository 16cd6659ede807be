"""Starts the processes of the owner's policies. None of them outlives the peer.

Rules:

1. Each process gets its own session and a minimal environment, without a shell. Its process group is killed when its
   block ends.
2. A separate program, the reaper, kills them when the peer itself is killed, including those that left their group.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import trio

from dms_host.tasks import shielded

from ..errors import PolicyError
from . import reaper as reaper

__all__ = ["PolicyProcesses", "open_processes"]

_START_SECONDS: Final = 30.0
_END_SECONDS: Final = 5.0


class PolicyProcesses:
    """Starts processes; made by `open_processes`."""

    def __init__(self, mark: str, watching: trio.Process) -> None:
        self._watching = watching
        # The interpreter of a virtual environment finds our packages through this path.
        packages = os.pathsep.join(path for path in sys.path if path)
        self._environment = {
            "PATH": os.defpath,
            "LANG": "C.UTF-8",
            reaper.MARK: mark,
        }
        self._python = {**self._environment, "PYTHONPATH": packages}

    @asynccontextmanager
    async def start(
        self, command: Sequence[str], *, folder: str = "/", python: bool = False, stderr: int = subprocess.DEVNULL
    ) -> AsyncIterator[trio.Process]:
        """Starts a process with pipes for standard input and output; its group is killed when the block ends.

        With `python` it can import the packages of this process. Raises OSError if it cannot be started, and
        PolicyError `policy_failed` if the reaper has ended.
        """
        if self._watching.poll() is not None:
            raise PolicyError("the reaper of its processes has ended; restart the peer", code="policy_failed")
        process = await trio.lowlevel.open_process(
            list(command),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            cwd=folder,
            env=self._python if python else self._environment,
            start_new_session=True,
        )
        try:
            yield process
        finally:
            await _end(process)


@asynccontextmanager
async def open_processes() -> AsyncIterator[PolicyProcesses]:
    """Starts the reaper; all processes end with the block. Raises PolicyError `policy_unusable`."""
    mark = secrets.token_hex(16)
    async with _reaper(mark) as watching:
        yield PolicyProcesses(mark, watching)


@asynccontextmanager
async def _reaper(mark: str) -> AsyncIterator[trio.Process]:
    command = [sys.executable, "-I", "-S", str(Path(reaper.__file__)), mark]
    try:
        process = await trio.lowlevel.open_process(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True, env={}
        )
    except OSError as error:
        raise PolicyError(f"cannot start a process: {error.strerror}", code="policy_unusable") from error
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        ready = b""
        with trio.move_on_after(_START_SECONDS):
            ready = bytes(await process.stdout.receive_some(1))
        if not ready:
            raise PolicyError("cannot start the reaper of the policies' processes", code="policy_unusable")
        yield process
    finally:
        with shielded(_END_SECONDS):
            # The end of its input makes it kill what is left, and exit.
            await process.stdin.aclose()
            await process.wait()
        await _end(process)


async def _end(process: trio.Process) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    with shielded(_END_SECONDS):
        await process.wait()
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                await pipe.aclose()
