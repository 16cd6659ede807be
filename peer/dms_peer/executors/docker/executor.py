"""Runs jobs as containers (docs/executors.md).

The name of a job is that of its container, and labels say the rest: so a job is found again after a crash of the peer,
of the engine, or of both. Nothing that matters is kept in memory.
"""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import trio
import trio.abc

from dms_protocols.messages.job import JobConsumption

from ..executor import Capabilities, ExecutorError, FoundJob, JobSpec, OnPull, OutputPiece
from ..process_groups import consumption, counted_group, process_groups
from ..settings import DockerSettings
from .containers import Containers, has_job_labels, is_ours, process_of
from .create_body import refused_variable
from .engine import Engine, open_engine
from .exits import SurroundingGroup
from .images import Images
from .namespaces import connect_inside, open_namespace
from .networks import JobNetworks
from .output import open_output
from .probing import EngineFacts, notes_for_owner, read_facts
from .references import ImageReference, is_allowed, parse_image
from .starting import ContainerStarter
from .watching import ContainerWatch

__all__ = ["DockerExecutor", "open_docker"]

_PROBE_SECONDS: Final = 30.0
_PAUSE: Final = 0.05
_LONGEST_PAUSE: Final = 2.0
_KILL_SECONDS: Final = 10.0


class DockerExecutor:
    """An executor whose jobs are containers; made by `open_docker`."""

    def __init__(self, name: str, settings: DockerSettings, folder: Path, engine: Engine) -> None:
        self._name = name
        self._settings = settings
        self._folder = folder
        self._engine = engine
        self._containers = Containers(engine)
        self._images = Images(engine, settings)
        self._networks = JobNetworks(engine)
        self._watch = ContainerWatch(self._containers, folder)
        self._starter = ContainerStarter(settings, folder, self._containers, self._images, self._networks, self._watch)
        self._facts: EngineFacts | None = None

    @property
    def name(self) -> str:
        """The name by which requests ask for it."""
        return self._name

    async def probe(self) -> Capabilities:
        """Asks the engine what it is. What it enforces is read from the kernel at the start of each job."""
        self._facts = None
        try:
            with trio.fail_after(_PROBE_SECONDS):
                facts = await self._known_facts()
        except (ExecutorError, trio.TooSlowError) as error:
            return Capabilities(works=False, problem=str(error) or "the engine does not answer")
        notes = notes_for_owner(facts, self._settings, self._watch.disk_bounded)
        return Capabilities(works=True, version=f"{facts.kind} {facts.version} (API {facts.api})", notes=tuple(notes))

    async def _known_facts(self) -> EngineFacts:
        if self._facts is None:
            self._facts = await read_facts(self._engine)
            self._watch.surrounds = self._facts.surrounds
        return self._facts

    def check(self, spec: JobSpec) -> None:
        """Raises ExecutorError `refused` for an image, a network or a variable that the owner does not allow."""
        self._reference(spec)
        unfiltered = spec.job.network == "outbound" and self._facts is not None and not self._facts.filters
        if spec.job.network not in self._settings.networks or unfiltered:
            allowed = ", ".join(one for one in self._settings.networks if one != spec.job.network) or "nothing"
            raise _refused(f"the network {spec.job.network!r} is not offered; jobs may have: {allowed}")
        if variable := refused_variable(spec):
            raise _refused(f"the variable {variable[:64]} is not a job's to set")
        if not spec.resources.ram.size or not spec.resources.cpu.cores:
            raise _refused("the lease has no CPU or no memory, and a container needs both")
        for port in spec.job.ports:
            if port.public and port.public not in spec.ports:
                raise _refused(f"port {port.public} is not the lease's")
            if port.public and spec.job.network == "none":
                raise _refused(f"port {port.public} cannot be published without a network; reach it by a tunnel")
        folder = spec.job.execution.working_directory
        if folder and not folder.startswith("/"):
            raise _refused(f"the working directory {folder[:64]!r} is not an absolute path")

    def _reference(self, spec: JobSpec) -> ImageReference:
        try:
            image = parse_image(spec.job.execution.image)
        except ValueError as error:
            raise _refused(str(error)) from None
        if not is_allowed(image, self._settings.images):
            raise _refused(f"the image {image} is not on the owner's list")
        return image

    async def prepare(self, spec: JobSpec, on_progress: OnPull) -> None:
        """Pulls the image unless it is there."""
        await self._images.get(self._reference(spec), on_progress)

    async def start(self, spec: JobSpec) -> FoundJob:
        """Creates and starts the container, unless it was started before; verifies what the kernel enforces."""
        await self._starter.start(spec, self._reference(spec), await self._known_facts())
        found = await self.find(spec)
        if found is None:
            raise ExecutorError("it was removed while it started", code="failed")
        return found

    async def find(self, spec: JobSpec) -> FoundJob | None:
        """The job as its engine and the kernel show it."""
        await self._known_facts()
        container = await self._containers.find(spec.name)
        if container is None or not is_ours(container, spec):
            return None
        return await self._watch.found(spec.name, container)

    async def list(self, peer_id: str, home_id: str) -> list[FoundJob]:
        """All containers of this peer and home."""
        await self._known_facts()
        found: list[FoundJob] = []
        for name in await self._containers.names(peer_id, home_id):
            container = await self._containers.find(name)
            # What somebody else labelled as ours is not ours to end.
            if container is not None and has_job_labels(container):
                found.append(await self._watch.found(name, container))
        return found

    async def wait(self, spec: JobSpec) -> FoundJob | None:
        """Returns when the job has exited: by the engine's word, and beside that by looking at its process."""
        await self._known_facts()
        return await self._watch.wait(spec)

    @asynccontextmanager
    async def output(self, spec: JobSpec, offset: int) -> AsyncIterator[AsyncIterator[OutputPiece]]:
        """The output from byte `offset` on, until the job has exited."""
        async with open_output(self._engine, self._containers, spec.name, offset, self._settings.output_rate) as pieces:
            yield pieces

    async def signal(self, spec: JobSpec, number: int) -> None:
        """Sends a signal to the job's first process; SIGKILL ends all of it."""
        container = await self._containers.find(spec.name)
        if container is not None and is_ours(container, spec) and process_of(container) is not None:
            await self._containers.kill(spec.name, number)

    async def remove(self, spec: JobSpec) -> None:
        """Kills what runs, and removes the container and all that belongs to it; tries until nothing is left."""
        facts = await self._known_facts()
        pause = _PAUSE
        force_at = trio.current_time() + _KILL_SECONDS
        while True:
            container = await self._containers.find(spec.name)
            if container is None or not is_ours(container, spec):
                break
            process = process_of(container)
            if process is not None:
                await self._containers.kill(spec.name, signal.SIGKILL)
            if process is None or trio.current_time() > force_at:
                # By force too where the watcher of a container was killed, so that it is said to run for ever.
                await self._containers.remove(spec.name, force=process is not None)
            await trio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)
        group = SurroundingGroup(spec.name)
        while facts.surrounds and not await self._watch.blocking(group.is_empty):
            await trio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)
        while spec.job.network == "outbound" and not await self._networks.remove(spec.name):
            await trio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)
        if facts.surrounds:
            await self._watch.blocking(group.remove)
        await self._watch.blocking(lambda: shutil.rmtree(self._folder / spec.name, ignore_errors=True))
        self._watch.forget(spec.name)

    async def usage(self, spec: JobSpec) -> JobConsumption | None:
        """What the kernel has counted of a running job."""
        container = await self._containers.find(spec.name)
        process = process_of(container) if container is not None else None
        if process is None:
            return None

        def read() -> JobConsumption | None:
            folders = tuple(str(folder) for folder in process_groups(process).values())
            return consumption(folders, counted_group(process) or "")

        return await self._watch.blocking(read)

    async def connect(self, spec: JobSpec, port: int) -> trio.abc.HalfCloseableStream:
        """Connects inside the job's network namespace, whatever network it has."""
        container = await self._containers.find(spec.name)
        process = process_of(container) if container is not None and is_ours(container, spec) else None
        if process is None:
            raise ExecutorError("the job does not run", code="failed")
        namespace = await self._watch.blocking(lambda: open_namespace(process))
        try:
            # The number may have gone to another process before it was opened: then the container has another one now.
            if process_of(await self._containers.find(spec.name) or {}) != process:
                raise ExecutorError("the job does not run", code="failed")
            connection = await self._watch.blocking(lambda: connect_inside(namespace, port))
        finally:
            os.close(namespace)
        return trio.SocketStream(trio.socket.from_stdlib_socket(connection))


def _refused(problem: str) -> ExecutorError:
    return ExecutorError(problem, code="refused")


@asynccontextmanager
async def open_docker(name: str, settings: DockerSettings, folder: Path) -> AsyncIterator[DockerExecutor]:
    """Opens an executor; files of jobs are in `folder`. Nothing is asked yet; jobs go on when the block ends."""
    async with open_engine(settings.socket) as engine:
        yield DockerExecutor(name, settings, folder, engine)
