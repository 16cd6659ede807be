"""Queries a vendor's library repeatedly, through one process that stays."""

from __future__ import annotations

import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import trio

from .devices import GPUReport
from .process import DEADLINE, KILL_DEADLINE, command_line, environment, parse_report

__all__ = ["GPUWatch", "open_gpu_watch"]

_LARGEST_REPORT: Final = 4 * 2**20


@asynccontextmanager
async def open_gpu_watch(vendor: str, deadline: float = DEADLINE) -> AsyncIterator[GPUWatch]:
    """Yield a watch on a vendor's devices. Its process starts with the first query and ends with the block."""
    watch = GPUWatch(vendor, deadline)
    try:
        yield watch
    finally:
        await watch.end_process()


class GPUWatch:
    """One vendor's library in a process of its own. Only one task at a time may query it.

    `deadline` is how many seconds an answer may take. It may be changed between two queries.
    """

    def __init__(self, vendor: str, deadline: float) -> None:
        self._vendor = vendor
        self.deadline = deadline
        self._process: trio.Process | None = None
        self._ending: trio.Process | None = None

    @property
    def process_id(self) -> int | None:
        """The id of the process; None before the first query and after a failed one."""
        return self._process.pid if self._process is not None else None

    async def report(self) -> GPUReport:
        """One report within the deadline. The process of a library that does not answer is killed. Never raises for it.

        If cancelled, it ends the process, so that a late answer is not taken for the next one.
        """
        if self._ending is not None and self._ending.poll() is None:
            return self._failure(f"hangs, and its process {self._ending.pid} cannot be ended")
        report: GPUReport | None = None
        try:
            with trio.move_on_after(self.deadline):
                report = await self._ask()
        except (OSError, trio.BrokenResourceError, trio.ClosedResourceError) as error:
            report = self._failure(f"cannot be asked: {error}")
        finally:
            if report is None or report.failed:
                await self.end_process()
        return report or self._failure(f"did not answer within {self.deadline:g} s")

    async def _ask(self) -> GPUReport:
        if self._process is None:
            self._process = await trio.lowlevel.open_process(
                command_line(self._vendor, self.deadline, "--watch"),
                env=environment(),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        await process.stdin.send_all(b"\n")
        answer = bytearray()
        while not answer.endswith(b"\n") and len(answer) <= _LARGEST_REPORT:
            part = await process.stdout.receive_some()
            if not part:
                return parse_report(self._vendor, b"", await process.wait())
            answer += part
        return parse_report(self._vendor, bytes(answer), 0)

    async def end_process(self) -> None:
        """Kill the process and wait at most a second for its end. No second process is started beside one
        that stays.
        """
        process, self._process = self._process, None
        if process is None:
            return
        with trio.CancelScope(deadline=trio.current_time() + KILL_DEADLINE, shield=True):
            process.kill()
            for stream in (process.stdin, process.stdout):
                if stream is not None:
                    await trio.aclose_forcefully(stream)
            await process.wait()
        self._ending = process if process.returncode is None else None

    def _failure(self, what: str) -> GPUReport:
        return GPUReport.failure(f"{self._vendor}'s GPU library {what}")
