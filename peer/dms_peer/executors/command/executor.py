"""Runs jobs by a program of the owner's (docs/executors.md).

Each job has a folder in the home and a supervisor, a process that outlives the peer. This module starts supervisors,
reads what they wrote, and kills what is to be killed; it keeps nothing in memory.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any, Final, TypeVar

import trio
import trio.abc

from dms_protocols.messages.job import JobConsumption

from ..executor import Capabilities, ExecutorError, FoundJob, JobSpec, OnPull, OutputPiece
from ..process_groups import consumption
from ..settings import CommandSettings
from . import processes
from .groups import GroupParents, find_parents, make_groups
from .job_folder import JobFolder, JobRecord
from .output_reader import OutputReader

__all__ = ["CommandExecutor"]

Value = TypeVar("Value")

_READ: Final = 256 * 1024
_PAUSE: Final = 0.02
_LONGEST_PAUSE: Final = 0.5
_LAUNCH_SECONDS: Final = 30.0
_LAST_WORDS: Final = 15.0
_CONNECT_SECONDS: Final = 10.0
# Only our packages are on the path of a supervisor: it starts within some 50 ms.
_SUPERVISE: Final = """
import sys
sys.path.insert(0, sys.argv.pop(1))
from dms_peer.executors.command.supervisor import main
sys.exit(main())
"""


class CommandExecutor:
    """An executor whose jobs are programs of the owner's; their folders are in `folder`, which is made."""

    def __init__(self, name: str, settings: CommandSettings, folder: Path) -> None:
        self._name = name
        self._settings = settings
        self._folder = folder
        self._threads = trio.CapacityLimiter(8)
        self._parents: GroupParents | None = None
        self._starting = trio.Lock()

    @property
    def name(self) -> str:
        """The name by which requests ask for it."""
        return self._name

    async def probe(self) -> Capabilities:
        """Looks whether the program can be run, and which limits the kernel lets the peer set."""
        program = self._settings.command[0]
        if not os.access(program, os.X_OK):
            return Capabilities(works=False, problem=f"{program} is not an executable file")
        try:
            parents = await self._blocking(self._group_parents)
            await self._blocking(self._make_folder)
        except OSError as error:
            return Capabilities(works=False, problem=f"{self._folder} cannot be used: {error.strerror}")
        return Capabilities(works=True, notes=tuple(_notes(self._settings, parents)))

    def check(self, spec: JobSpec) -> None:
        """Refuses nothing: the program decides which jobs it runs, before it is ready."""

    async def prepare(self, spec: JobSpec, on_progress: OnPull) -> None:
        """Does nothing: the program prepares what it needs."""

    async def start(self, spec: JobSpec) -> FoundJob:
        """Starts the program, unless it was started before, and waits until it is ready or has exited."""
        folder = self._job(spec)
        async with self._starting:
            found = await self._find(folder)
            if found is not None and found.digest != spec.digest:
                raise ExecutorError(f"a different job {spec.name} is there", code="refused")
            if found is None:
                await self._blocking(lambda: self._write(spec, folder))
            if (found is None or found.state == "created") and not await self._blocking(folder.is_supervised):
                await self._launch(folder)
        pause = _PAUSE
        while True:
            found = await self._find(folder)
            if found is None:
                raise ExecutorError(f"{spec.name} was removed while it started", code="failed")
            if found.state != "created":
                return found
            await trio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    async def find(self, spec: JobSpec) -> FoundJob | None:
        """The job as it is now."""
        return await self._find(self._job(spec))

    async def list(self, peer_id: str, home_id: str) -> list[FoundJob]:
        """All jobs of this peer and home."""
        found = []
        for name in await self._blocking(self._names):
            folder = JobFolder(self._folder / name)
            record = await self._blocking(folder.record)
            if record is not None and (record.peer_id, record.home_id) == (peer_id, home_id):
                job = await self._find(folder)
                found += [job] if job is not None else []
        return found

    async def wait(self, spec: JobSpec) -> FoundJob | None:
        """Returns when the supervisor has seen the exit, or has ended itself."""
        folder = self._job(spec)
        while True:
            found = await self._find(folder)
            if found is None or found.state == "exited":
                return found
            descriptor = await self._blocking(folder.open_supervisor)
            if descriptor is None:
                # It has not begun, or it has just ended.
                await trio.sleep(_LONGEST_PAUSE)
                continue
            try:
                await trio.lowlevel.wait_readable(descriptor)
            finally:
                trio.lowlevel.notify_closing(descriptor)
                os.close(descriptor)

    @asynccontextmanager
    async def output(self, spec: JobSpec, offset: int) -> AsyncIterator[AsyncIterator[OutputPiece]]:
        """The output from byte `offset` on, until the job has exited."""
        reader = OutputReader(self._job(spec).path, offset)
        try:
            async with aclosing(self._pieces(reader)) as pieces:
                yield pieces
        finally:
            reader.close()

    async def _pieces(self, reader: OutputReader) -> AsyncGenerator[OutputPiece, None]:
        pause = _PAUSE
        while True:
            pieces, ended = await self._blocking(lambda: reader.read(_READ))
            if ended:
                return
            for piece in pieces:
                yield piece
            pause = _PAUSE if pieces else min(2 * pause, _LONGEST_PAUSE)
            await trio.sleep(0 if pieces else pause)

    async def signal(self, spec: JobSpec, number: int) -> None:
        """Sends a signal to the program; SIGKILL to everything that it started."""
        folder = self._job(spec)
        if number == signal.SIGKILL:
            await self._blocking(folder.kill)
        else:
            await self._blocking(lambda: folder.send_signal(number))

    async def remove(self, spec: JobSpec) -> None:
        """Kills what runs, and removes the folder and the cgroups; tries until nothing is left."""
        folder = self._job(spec)
        pause = _PAUSE
        give_up = trio.current_time() + _LAST_WORDS
        while True:
            gone = await self._blocking(folder.kill)
            if gone and await self._blocking(folder.remove):
                return
            if gone and trio.current_time() > give_up:
                await self._blocking(folder.end_supervisor)
            await trio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    async def usage(self, spec: JobSpec) -> JobConsumption | None:
        """What the job's cgroups have counted; None where it has none."""
        record = await self._blocking(self._job(spec).record)
        if record is None:
            return None
        return await self._blocking(lambda: consumption(record.groups, record.group_name))

    async def connect(self, spec: JobSpec, port: int) -> trio.abc.HalfCloseableStream:
        """Connects to where the program said that this port of the job is."""
        for endpoint in await self._blocking(self._job(spec).endpoints):
            if endpoint.get("port") == port:
                return await _open_endpoint(endpoint)
        raise ExecutorError(f"the program named no endpoint for port {port}", code="failed")

    def _job(self, spec: JobSpec) -> JobFolder:
        return JobFolder(self._folder / spec.name)

    async def _find(self, folder: JobFolder) -> FoundJob | None:
        return await self._blocking(folder.find)

    async def _blocking(self, run: Callable[[], Value]) -> Value:
        # The stubs of trio that libp2p installs lose the type.
        found: Any = await trio.to_thread.run_sync(run, limiter=self._threads)
        return found  # type: ignore[no-any-return]

    def _group_parents(self) -> GroupParents:
        if self._parents is None:
            self._parents = find_parents(self._settings.cgroup)
        return self._parents

    def _make_folder(self) -> None:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def _names(self) -> tuple[str, ...]:
        try:
            return tuple(sorted(os.listdir(self._folder)))
        except FileNotFoundError:
            return ()

    def _write(self, spec: JobSpec, folder: JobFolder) -> None:
        settings = self._settings
        try:
            self._make_folder()
            groups = make_groups(
                self._group_parents(), spec.name, spec.resources, settings.processes, limit=settings.limit
            )
            record = JobRecord(
                name=spec.name,
                peer_id=spec.peer_id,
                home_id=spec.home_id,
                lease_id=spec.lease_id,
                fence=spec.fence,
                digest=spec.digest.hex(),
                created=spec.created,
                argv=settings.command,
                environment=_environment(settings, spec),
                groups=groups.folders,
                group_name=groups.name,
                ready_seconds=settings.ready_seconds,
                output_bytes=settings.output_bytes,
                output_rate=settings.output_rate,
            )
            folder.prepare(spec, record, groups)
        except OSError as error:
            raise ExecutorError(f"cannot prepare {spec.name}: {error}", code="failed") from error

    async def _launch(self, folder: JobFolder) -> None:
        """Starts a supervisor, which detaches itself; does nothing where another one was faster."""
        command = [sys.executable, "-I", "-S", "-c", _SUPERVISE, str(Path(__file__).parents[3]), str(folder.path)]
        nothing = subprocess.DEVNULL
        try:
            with trio.fail_after(_LAUNCH_SECONDS):
                await trio.run_process(command, stdin=b"", stdout=nothing, stderr=nothing, check=False, env={}, cwd="/")
        except (OSError, trio.TooSlowError) as error:
            raise ExecutorError(f"cannot start a supervisor: {error}", code="failed") from error


def _environment(settings: CommandSettings, spec: JobSpec) -> dict[str, str]:
    chosen = dict(entry.split("=", 1) for entry in settings.environment)
    return {"PATH": os.defpath, "LANG": "C.UTF-8", **chosen, processes.JOB_MARK: spec.name}


def _notes(settings: CommandSettings, parents: GroupParents) -> list[str]:
    notes = []
    if not settings.limit:
        notes.append("the program limits the jobs itself (limit: false)")
    elif parents.missing:
        notes.append(f"not limited by the kernel: {', '.join(parents.missing)}; the program has to limit them")
    if not parents.folders:
        notes.append("no cgroup can be made: a job's processes are found by descent and a mark, which a job can leave")
    notes.append("disk, network and GPUs are limited by the program alone")
    return notes


async def _open_endpoint(endpoint: dict[str, Any]) -> trio.abc.HalfCloseableStream:
    host, target = endpoint.get("host", "127.0.0.1"), endpoint.get("target", endpoint.get("port"))
    if not isinstance(host, str) or not isinstance(target, int) or not 0 < target < 65536:
        raise ExecutorError("the program named an endpoint that is none", code="failed")
    try:
        with trio.fail_after(_CONNECT_SECONDS):
            return await trio.open_tcp_stream(host, target)
    except (OSError, trio.TooSlowError, ValueError) as error:
        raise ExecutorError(f"nothing answers at {host}:{target}: {error}", code="failed") from error
