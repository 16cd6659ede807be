"""Watches containers: their state, their exit, and what the kernel counts while they run."""

from __future__ import annotations

import logging
import math
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

import trio

from dms_protocols.messages.job import JobExit

from ..executor import ExecutorError, FoundJob, JobSpec
from ..process_groups import counted_group, process_groups, start_of_process
from .containers import Container, Containers, is_started, process_of
from .create_body import LABEL
from .exits import MemoryEvidence, SurroundingGroup, container_exit, read_evidence

__all__ = ["ContainerWatch"]

_log = logging.getLogger(__name__)

Value = TypeVar("Value")

_SAMPLE_SECONDS: Final = 1.0
_LOOK_SECONDS: Final = 10.0
_PAUSE: Final = 0.05
_LOST_SECONDS: Final = 10.0
_DISK_EXCEEDED: Final = "disk-exceeded"
_LOST: Final = "lost"


class ContainerWatch:
    """Watches the containers of one engine; notes of jobs are in `folder`. `disk_bounded`: see ContainerStarter."""

    def __init__(self, containers: Containers, folder: Path) -> None:
        self._containers = containers
        self._folder = folder
        self._threads = trio.CapacityLimiter(8)
        self._evidence: dict[str, MemoryEvidence] = {}
        self.surrounds = False
        self.disk_bounded: bool | None = None

    async def found(self, name: str, container: Container) -> FoundJob:
        """A container as a job."""
        labels = container["Config"]["Labels"]
        process = number = process_of(container)
        started = None if number is None else await self.blocking(lambda: start_of_process(number))
        group = None if number is None else await self.blocking(lambda: counted_group(number))
        state: Literal["created", "running", "exited"] = "exited" if is_started(container) else "created"
        if process is not None and started is None and await self.blocking((self._folder / name / _LOST).exists):
            process = None
        if process is not None:
            state = "running"
        return FoundJob(
            name=name,
            lease_id=labels.get(f"{LABEL}lease", ""),
            fence=int(labels.get(f"{LABEL}fence", 0)),
            digest=bytes.fromhex(labels.get(f"{LABEL}digest", "")),
            created=float(labels.get(f"{LABEL}created", 0)),
            state=state,
            exit=await self._exit(name, container) if state == "exited" else None,
            pid=process,
            started=started,
            cgroup=group,
        )

    async def _exit(self, name: str, container: Container) -> JobExit:
        evidence = self._evidence.get(name, MemoryEvidence())
        if self.surrounds:
            evidence |= await self.blocking(SurroundingGroup(name).evidence)
        limit = int((container.get("HostConfig") or {}).get("Memory") or 0)
        if await self.blocking((self._folder / name / _LOST).exists):
            message = "its processes are gone, and its engine has not seen it"
            return JobExit(kind="lost", message=message, oom_kills=evidence.oom_kills)
        exceeded = await self.blocking((self._folder / name / _DISK_EXCEEDED).exists)
        return container_exit(container["State"], evidence, limit or 2**63, exceeded)

    async def wait(self, spec: JobSpec) -> FoundJob | None:
        """Returns when the job has exited: by the engine's word, and beside that by looking at its process."""
        told = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._listen, spec.name, told)
            watch = _Watch(self, spec, told)
            try:
                found = await watch.run()
            except ExecutorError as error:
                # Raised outside, so that it is not in a group.
                watch.problem = error
                found = None
            nursery.cancel_scope.cancel()
        if watch.problem is not None:
            raise watch.problem
        return found

    async def _listen(self, name: str, told: trio.Event) -> None:
        # An engine that restarts breaks this off: then the looks see the end.
        try:
            await self._containers.wait(name)
        except ExecutorError:
            return
        told.set()

    async def look(self, spec: JobSpec) -> tuple[Container, FoundJob] | None:
        """The container with its size, and as a job; None when it is gone."""
        container = await self._containers.find(spec.name, size=True)
        return None if container is None else (container, await self.found(spec.name, container))

    async def sample(self, name: str, process: int) -> bool:
        """Reads what the kernel counted of a running job; whether its process is there."""

        def read() -> MemoryEvidence | None:
            if start_of_process(process) is None:
                return None
            groups = process_groups(process)
            return read_evidence(groups.get("memory", groups.get("")))

        evidence = await self.blocking(read)
        if evidence is not None:
            # The most that a group had is read at the end, of the surrounding one.
            kills = MemoryEvidence(evidence.oom_kills, 0)
            self._evidence[name] = self._evidence.get(name, MemoryEvidence()) | kills
        return evidence is not None

    async def note_lost(self, name: str) -> None:
        """Notes that the processes of a job are gone while its engine says that it runs."""
        await self.blocking(lambda: self._note(name, _LOST))

    async def bound_disk(self, spec: JobSpec, container: Container) -> None:
        """Ends a job that wrote more than its lease has, where the storage does not bound it."""
        written = container.get("SizeRw")
        if self.disk_bounded or not isinstance(written, int) or written <= spec.resources.disk.size:
            return
        _log.warning("%s wrote %d bytes, more than the disk of its lease: it is ended", spec.name, written)
        await self.blocking(lambda: self._note(spec.name, _DISK_EXCEEDED))
        await self._containers.kill(spec.name, signal.SIGKILL)

    def _note(self, name: str, note: str) -> None:
        folder = self._folder / name
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        (folder / note).touch()

    def forget(self, name: str) -> None:
        """Drops what was counted of a job that is removed."""
        self._evidence.pop(name, None)

    async def blocking(self, run: Callable[[], Value]) -> Value:
        """Runs what blocks in a thread."""
        # The stubs of trio that libp2p installs lose the type.
        found: Any = await trio.to_thread.run_sync(run, limiter=self._threads)
        return found  # type: ignore[no-any-return]


class _Watch:
    """One wait for the exit of one job."""

    def __init__(self, watch: ContainerWatch, spec: JobSpec, told: trio.Event) -> None:
        self._watch = watch
        self._spec = spec
        self._told = told
        self._process: int | None = None
        self._gone_since = math.inf
        self.problem: ExecutorError | None = None

    async def run(self) -> FoundJob | None:
        look_at = 0.0
        while True:
            alive = self._process is not None and await self._watch.sample(self._spec.name, self._process)
            if self._told.is_set() or not alive or trio.current_time() >= look_at:
                looked = await self._watch.look(self._spec)
                if looked is None:
                    return None
                container, found = looked
                if found.state == "exited":
                    return found
                # A container whose watcher was killed is said to run for ever.
                gone = found.state == "running" and found.started is None
                self._gone_since = min(self._gone_since, trio.current_time()) if gone else math.inf
                if trio.current_time() - self._gone_since > _LOST_SECONDS:
                    await self._watch.note_lost(self._spec.name)
                    continue
                self._process = found.pid
                await self._watch.bound_disk(self._spec, container)
                look_at = trio.current_time() + _LOOK_SECONDS
            if self._told.is_set():
                # The engine may say so a moment before an inspection does.
                await trio.sleep(_PAUSE)
            else:
                with trio.move_on_after(_SAMPLE_SECONDS):
                    await self._told.wait()
