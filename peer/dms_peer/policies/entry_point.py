"""A policy that is Python code: an entry point, run in worker processes.

Code that blocks or never returns would stop the whole peer, and a thread cannot be stopped. So some worker processes
are kept ready. A worker that does not answer in time is killed, and a new one is started in the background.
"""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Sequence
from typing import Any, Final, Protocol

import msgspec
import trio

from dms_protocols.bidding.policies import Decisions, PolicyRequest
from dms_protocols.logs import LimitedLog

from ..errors import PolicyError
from .documents import LARGEST_ANSWER, question_document, read_answer
from .processes import PolicyProcesses

__all__ = ["EntryPointPolicy"]

_log = LimitedLog(logging.getLogger(__name__))

_START_SECONDS: Final = 30.0
_PAUSE: Final = 0.2


class _Started(Protocol):
    """The task status of `Nursery.start`. The outdated stubs that libp2p installs hide trio's own type."""

    def started(self) -> None:
        """Reports that a worker is ready."""


class EntryPointPolicy:
    """Queries the entry point `name` in its workers, which `keep_worker` runs. `decide` raises PolicyError."""

    def __init__(self, name: str, processes: PolicyProcesses) -> None:
        self._name = name
        self._processes = processes
        self._usable = False
        self._ready, self._waiting = trio.open_memory_channel[_Worker](math.inf)

    async def decide(self, request: PolicyRequest) -> Decisions:
        """Returns the decisions of the entry point. May be cancelled: then the worker is killed."""
        worker = await self._waiting.receive()
        try:
            said = await worker.exchange(question_document(request))
        except BaseException:
            worker.broken.set()
            raise
        self._ready.send_nowait(worker)
        if "answer" not in said:
            raise PolicyError(str(said.get("error", "it answered nothing")), code="policy_failed")
        return read_answer(msgspec.json.encode(said["answer"]), request)

    async def keep_worker(self, *, task_status: _Started = trio.TASK_STATUS_IGNORED) -> None:
        """Keeps one worker ready until it is cancelled, and restarts it when it fails.

        Raises PolicyError `policy_unusable` if the first worker of the policy cannot be started.
        """
        while True:
            try:
                async with self._processes.start(_command(self._name), python=True) as process:
                    worker = _Worker(process)
                    await worker.wait_ready()
                    self._ready.send_nowait(worker)
                    if not self._usable:
                        self._usable = True
                        task_status.started()
                    await worker.broken.wait()
            except (OSError, PolicyError) as error:
                if not self._usable:
                    raise PolicyError(
                        f"cannot start the policy {self._name}: {error}",
                        code="policy_unusable",
                        hint="correct its code, or remove it from the terms",
                    ) from error
                _log.error("cannot start a worker of the policy %s: %.300s", self._name, error)
            # Code that crashes at every question must not keep the machine busy with restarts.
            await trio.sleep(_PAUSE)


class _Worker:
    """A process that answers one question at a time."""

    def __init__(self, process: trio.Process) -> None:
        self._process = process
        self.broken = trio.Event()

    async def wait_ready(self) -> None:
        with trio.move_on_after(_START_SECONDS):
            said = await self._read_line()
            if "error" in said:
                raise PolicyError(str(said["error"]), code="policy_unusable")
            return
        raise PolicyError(f"it is not ready after {_START_SECONDS:g} s", code="policy_unusable")

    async def exchange(self, question: bytes) -> dict[str, Any]:
        assert self._process.stdin is not None
        try:
            await self._process.stdin.send_all(question + b"\n")
        except trio.BrokenResourceError:
            raise PolicyError("its worker ended", code="policy_failed") from None
        return await self._read_line()

    async def _read_line(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = bytearray()
        while not line.endswith(b"\n"):
            part = await self._process.stdout.receive_some(LARGEST_ANSWER)
            if not part:
                raise PolicyError("its worker ended", code="policy_failed")
            line += part
            if len(line) > 2 * LARGEST_ANSWER:
                raise PolicyError(f"it answered with more than {LARGEST_ANSWER} bytes", code="policy_failed")
        try:
            return msgspec.json.decode(line, type=dict[str, Any])
        except msgspec.DecodeError as error:
            raise PolicyError(f"its worker sent invalid JSON: {error}", code="policy_failed") from None


def _command(name: str) -> Sequence[str]:
    return sys.executable, "-P", "-m", f"{__package__}.worker", name
