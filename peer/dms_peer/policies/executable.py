"""A policy that is a program. The peer starts it for each question; it reads the question on standard input and writes
its answer to standard output.

The answer counts if the exit code is 0. If the program fails, its standard error goes to the log.
"""

from __future__ import annotations

import contextlib
import os
import subprocess

import trio

from dms_protocols.bidding.policies import Decisions, PolicyRequest

from ..errors import PolicyError
from .documents import LARGEST_ANSWER, question_document, read_answer
from .processes import PolicyProcesses
from .settings import ExecutableSettings

__all__ = ["ExecutablePolicy"]

_STDERR_KEPT = 400


class ExecutablePolicy:
    """Queries a program. `decide` raises OSError and PolicyError."""

    def __init__(self, settings: ExecutableSettings, processes: PolicyProcesses) -> None:
        self._settings = settings
        self._processes = processes

    async def decide(self, request: PolicyRequest) -> Decisions:
        """Starts the program and reads its decisions. May be cancelled: then its process group is killed."""
        settings = self._settings
        async with self._processes.start(settings.command, folder=settings.folder, stderr=subprocess.PIPE) as process:
            run = _Run(process)
            await run.exchange(question_document(request))
        if run.too_long:
            raise PolicyError(f"it wrote more than {LARGEST_ANSWER} bytes", code="policy_failed")
        if process.returncode != 0:
            said = run.stderr.decode("utf-8", "replace")
            raise PolicyError(f"it ended with {process.returncode}: {said!r}", code="policy_failed")
        return read_answer(bytes(run.answer), request)


class _Run:
    """One process, from its question to its exit."""

    def __init__(self, process: trio.Process) -> None:
        self._process = process
        self.answer = bytearray()
        self.stderr = bytearray()
        self.too_long = False

    async def exchange(self, question: bytes) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._write, question)
            nursery.start_soon(self._listen)
            await self._read()
            if not self.too_long:
                await self._process.wait()
            # A child of the program may have inherited the other pipes and keep them open for ever.
            nursery.cancel_scope.cancel()
        if isinstance(self._process.stderr, trio.lowlevel.FdStream):
            with contextlib.suppress(BlockingIOError):
                self._keep(os.read(self._process.stderr.fileno(), LARGEST_ANSWER))

    async def _write(self, question: bytes) -> None:
        pipe = self._process.stdin
        assert pipe is not None
        # The program may answer before it has read the whole question.
        with contextlib.suppress(trio.BrokenResourceError):
            await pipe.send_all(question + b"\n")
        await pipe.aclose()

    async def _read(self) -> None:
        pipe = self._process.stdout
        assert pipe is not None
        while data := await pipe.receive_some(LARGEST_ANSWER):
            self.answer += data
            if len(self.answer) > LARGEST_ANSWER:
                self.too_long = True
                return

    async def _listen(self) -> None:
        pipe = self._process.stderr
        assert pipe is not None
        while data := await pipe.receive_some(LARGEST_ANSWER):
            self._keep(data)

    def _keep(self, data: bytes) -> None:
        self.stderr = (self.stderr + data)[-_STDERR_KEPT:]
