"""Processes of the owner's policies, none of which outlives the peer.

Rules:

1. Each is started in a session of its own, without a shell and with a minimal environment, and is killed with its whole
   process group when its block ends.
2. A guardian ends them when the peer itself is killed, and also those that left their process group.
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
        # The interpreter of a virtual environment finds the packages of this one by the path.
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
        """A process with pipes for standard input and output, gone with its group when the block ends.

        With `python` it finds the packages that this process finds. Raises OSError where it cannot be started,
        and PolicyError `policy_failed` where nothing would end it with the peer.
        """
        if self._watching.poll() is not None:
            raise PolicyError("the guardian of its processes has ended; start the peer again", code="policy_failed")
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
    """Opens a way to start processes, which are all gone at its end. Raises PolicyError `policy_unusable`."""
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
        raise PolicyError(f"no process can be started: {error.strerror}", code="policy_unusable") from error
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        ready = b""
        with trio.move_on_after(_START_SECONDS):
            ready = bytes(await process.stdout.receive_some(1))
        if not ready:
            raise PolicyError("the guardian of the policies' processes cannot be started", code="policy_unusable")
        yield process
    finally:
        with shielded(_END_SECONDS):
            # It now does its work, and ends.
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
