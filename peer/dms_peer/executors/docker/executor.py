"""Runs jobs as containers (docs/executors.md).

The name of a job is that of its container, and labels say the rest: so a job is found again after a crash of the peer,
of the engine, or of both. Nothing that matters is kept in memory.
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

import trio
import trio.abc

from dms_protocols.messages.job import JobConsumption, JobExit

from ..executor import Capabilities, ExecutorError, FoundJob, JobSpec, OnPull, OutputPiece
from ..process_groups import consumption, counted_group, process_groups, start_of_process
from ..settings import DockerSettings
from .containers import Container, Containers, is_ours, is_started, process_of
from .create_body import LABEL, ContainerPlan, create_body, refused_variable
from .devices import plan_devices
from .engine import Engine, open_engine
from .exits import MemoryEvidence, SurroundingGroup, container_exit, read_evidence
from .images import Images
from .namespaces import connect_inside, open_namespace
from .output import open_output
from .references import ImageReference, is_allowed, parse_image
from .verification import wrong_start

__all__ = ["DockerExecutor", "open_docker"]

_log = logging.getLogger(__name__)

Value = TypeVar("Value")

_CREATE_TRIES: Final = 5
_SAMPLE_SECONDS: Final = 1.0
_LOOK_SECONDS: Final = 10.0
_PAUSE: Final = 0.05
_LONGEST_PAUSE: Final = 2.0
_KILL_SECONDS: Final = 10.0
_READ: Final = 64 * 1024
_DISK_EXCEEDED: Final = "disk-exceeded"


class DockerExecutor:
    """An executor whose jobs are containers; made by `open_docker`."""

    def __init__(self, name: str, settings: DockerSettings, folder: Path, engine: Engine) -> None:
        self._name = name
        self._settings = settings
        self._folder = folder
        self._engine = engine
        self._containers = Containers(engine)
        self._images = Images(engine, settings)
        self._threads = trio.CapacityLimiter(8)
        self._evidence: dict[str, MemoryEvidence] = {}
        self._podman = False
        self._surrounds = False
        self._disk_bounded: bool | None = None
        self._looked = False

    @property
    def name(self) -> str:
        """The name by which requests ask for it."""
        return self._name

    async def probe(self) -> Capabilities:
        """Asks the engine what it is. What it enforces is read from the kernel at the start of each job."""
        try:
            with trio.fail_after(30):
                version, notes = await self._look()
        except (ExecutorError, trio.TooSlowError) as error:
            return Capabilities(works=False, problem=str(error) or "the engine does not answer")
        return Capabilities(works=True, version=version, notes=tuple(notes))

    async def _look(self) -> tuple[str, list[str]]:
        api = await self._engine.version()
        answers = await self._engine.look("/version"), await self._engine.call("GET", "/info")
        said, info = (one.content if isinstance(one.content, dict) else {} for one in answers)
        if not all(one.succeeded for one in answers):
            raise ExecutorError(f"the engine fails: {answers[1].message}", code="unavailable")
        components = [str(one.get("Name", "")) for one in said.get("Components") or []]
        self._podman = any("podman" in one.lower() for one in components)
        rootless = bool(info.get("Rootless")) or any(
            "rootless" in str(one) for one in info.get("SecurityOptions") or []
        )
        self._surrounds = info.get("CgroupDriver") == "cgroupfs" and not rootless and os.geteuid() == 0
        self._looked = True
        notes = []
        if not rootless:
            notes.append("who may open its socket is root on this machine; a rootless engine is safer")
        if os.geteuid():
            notes.append("tunnels into jobs need CAP_SYS_ADMIN, which the peer has not")
        if not self._settings.images:
            notes.append("no image is allowed: name some under `images`")
        if self._disk_bounded is False:
            notes.append("the disk of a job is watched, not bounded: a job that writes more than its lease is ended")
        engine = "Podman" if self._podman else "Docker"
        return f"{engine} {said.get('Version', '')} (API {api})", notes

    def check(self, spec: JobSpec) -> None:
        """Raises ExecutorError `refused` for an image, a network or a variable that the owner does not allow."""
        self._reference(spec)
        if spec.job.network not in self._settings.networks:
            allowed = ", ".join(self._settings.networks) or "nothing"
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
        if not self._looked:
            await self._look()
        container = await self._create(spec)
        if not is_started(container):
            await self._blocking(lambda: self._surround(spec))
            answer = await self._containers.start(spec.name)
            container = await self._containers.find(spec.name) or {}
            if not is_started(container):
                raise ExecutorError(f"the engine cannot start it: {answer.message}", code="failed")
        process = process_of(container)
        if process is not None:
            plan = await self._blocking(lambda: plan_devices(spec.devices, self._podman))
            problem = await self._blocking(lambda: wrong_start(process, spec, self._settings, plan))
            # A job that has exited meanwhile leaves nothing to read.
            if problem and await self._blocking(lambda: start_of_process(process)) is not None:
                await self._containers.kill(spec.name, signal.SIGKILL)
                raise ExecutorError(f"the engine does not hold the lease: {problem}", code="failed")
        found = await self.find(spec)
        if found is None:
            raise ExecutorError("it was removed while it started", code="failed")
        return found

    async def _create(self, spec: JobSpec) -> Container:
        """The container of the job, created if there is none. Tries some times: a name may be in use by a removal."""
        problem = ""
        for attempt in range(_CREATE_TRIES):
            found = await self._containers.find(spec.name)
            if found is not None:
                self._check_ours(found, spec)
                return found
            image = await self._images.find(self._reference(spec))
            if image is None:
                raise ExecutorError(f"the image {spec.job.execution.image[:200]} is not there", code="failed")
            if not image.has_command and not spec.job.execution.cmd and not spec.job.execution.entrypoint:
                raise _refused("neither the job nor its image has a command")
            await trio.sleep(_PAUSE * attempt)
            devices = await self._blocking(lambda: plan_devices(spec.devices, self._podman))
            files = await self._blocking(lambda: self._write_files(spec))
            plan = ContainerPlan(
                image=image.id,
                network=_NETWORK_MODES[spec.job.network],
                volumes=image.volumes,
                cgroup_parent=SurroundingGroup(spec.name).path if self._surrounds else "",
                device_requests=devices.requests,
                devices=devices.devices,
                files=files,
                disk=spec.resources.disk.size if self._disk_bounded is not False else 0,
            )
            answer = await self._containers.create(spec.name, create_body(spec, self._settings, plan))
            if plan.disk:
                if answer.succeeded:
                    self._disk_bounded = True
                elif await self._containers.find(spec.name) is None:
                    # Whether a storage driver bounds the disk is only known from trying.
                    bare = plan._replace(disk=0)
                    answer = await self._containers.create(spec.name, create_body(spec, self._settings, bare))
                    self._disk_bounded = False if answer.succeeded else self._disk_bounded
            problem = answer.message
        raise ExecutorError(f"the engine cannot create it: {problem}", code="failed")

    def _check_ours(self, found: Container, spec: JobSpec) -> None:
        labels = (found.get("Config") or {}).get("Labels") or {}
        if not is_ours(found, spec) or labels.get(f"{LABEL}digest") != spec.digest.hex():
            raise _refused(f"a different container {spec.name} is there")

    def _surround(self, spec: JobSpec) -> None:
        if self._surrounds:
            SurroundingGroup(spec.name).make()

    def _write_files(self, spec: JobSpec) -> str:
        """Writes the job's files, readable for whatever user it has; the folders above them are the peer's only."""
        if not spec.job.files:
            return ""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        target = self._job_folder(spec) / "files"
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        target.chmod(0o755)
        for file in spec.job.files:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            descriptor = os.open(target / file.name, flags, 0o600)
            with os.fdopen(descriptor, "wb") as stream:
                os.fchmod(descriptor, 0o555 if file.executable else 0o444)
                stream.write(file.content)
        return str(target.absolute())

    def _job_folder(self, spec: JobSpec) -> Path:
        return self._folder / spec.name

    async def find(self, spec: JobSpec) -> FoundJob | None:
        """The job as its engine and the kernel show it."""
        container = await self._containers.find(spec.name)
        if container is None or not is_ours(container, spec):
            return None
        return await self._found(spec.name, container)

    async def list(self, peer_id: str, home_id: str) -> list[FoundJob]:
        """All containers of this peer and home."""
        found: list[FoundJob] = []
        for name in await self._containers.names(peer_id, home_id):
            container = await self._containers.find(name)
            if container is not None:
                found.append(await self._found(name, container))
        return found

    async def _found(self, name: str, container: Container) -> FoundJob:
        labels = container["Config"]["Labels"]
        process = process_of(container)
        started = None if process is None else await self._blocking(lambda: start_of_process(process))
        group = None if process is None else await self._blocking(lambda: counted_group(process))
        state: Literal["created", "running", "exited"] = "exited" if is_started(container) else "created"
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
        if self._surrounds:
            evidence |= await self._blocking(SurroundingGroup(name).evidence)
        limit = int((container.get("HostConfig") or {}).get("Memory") or 0)
        exceeded = await self._blocking((self._folder / name / _DISK_EXCEEDED).exists)
        return container_exit(container["State"], evidence, limit or 2**63, exceeded)

    async def wait(self, spec: JobSpec) -> FoundJob | None:
        """Returns when the job has exited: by the engine's word, and beside that by looking at its process."""
        told = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._listen, spec.name, told)
            found = await self._watch(spec, told)
            nursery.cancel_scope.cancel()
        return found

    async def _listen(self, name: str, told: trio.Event) -> None:
        # An engine that restarts breaks this off: then the looks below see the end.
        try:
            await self._containers.wait(name)
        except ExecutorError:
            return
        told.set()

    async def _watch(self, spec: JobSpec, told: trio.Event) -> FoundJob | None:
        look_at = 0.0
        process: int | None = None
        dead_looks = 0
        while True:
            alive = process is not None and await self._sample(spec.name, process)
            if told.is_set() or not alive or trio.current_time() >= look_at:
                container = await self._containers.find(spec.name, size=True)
                if container is None:
                    return None
                found = await self._found(spec.name, container)
                if found.state != "running":
                    if found.state == "exited":
                        return found
                    process = None
                else:
                    # A container whose watcher was killed is said to run for ever.
                    dead_looks = dead_looks + 1 if found.started is None else 0
                    process = found.pid
                    if dead_looks > 2:
                        return await self._lost(spec, found)
                    await self._bound_disk(spec, container)
                look_at = trio.current_time() + _LOOK_SECONDS
            if told.is_set():
                # The engine may say so a moment before an inspection does.
                await trio.sleep(_PAUSE)
            else:
                with trio.move_on_after(_SAMPLE_SECONDS):
                    await told.wait()

    async def _sample(self, name: str, process: int) -> bool:
        """Reads what the kernel counted of a running job; whether its process is there."""

        def read() -> MemoryEvidence | None:
            if start_of_process(process) is None:
                return None
            groups = process_groups(process)
            return read_evidence(groups.get("memory", groups.get("")))

        evidence = await self._blocking(read)
        if evidence is not None:
            # The peak of a group counts caches too; only that of the surrounding group is read at the end.
            kills = MemoryEvidence(evidence.oom_kills, 0)
            self._evidence[name] = self._evidence.get(name, MemoryEvidence()) | kills
        return evidence is not None

    async def _lost(self, spec: JobSpec, found: FoundJob) -> FoundJob:
        message = "its processes are gone, and its engine has not seen it"
        return FoundJob(
            name=found.name,
            lease_id=found.lease_id,
            fence=found.fence,
            digest=found.digest,
            created=found.created,
            state="exited",
            exit=JobExit(kind="lost", message=message, oom_kills=self._evidence.get(spec.name, MemoryEvidence())[0]),
        )

    async def _bound_disk(self, spec: JobSpec, container: Container) -> None:
        """Ends a job that wrote more than its lease has, where the storage does not bound it."""
        written = container.get("SizeRw")
        if self._disk_bounded or not isinstance(written, int) or written <= spec.resources.disk.size:
            return
        _log.warning("%s wrote %d bytes, more than the disk of its lease: it is ended", spec.name, written)
        await self._blocking(lambda: self._note_disk_exceeded(spec))
        await self._containers.kill(spec.name, signal.SIGKILL)

    def _note_disk_exceeded(self, spec: JobSpec) -> None:
        folder = self._job_folder(spec)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        (folder / _DISK_EXCEEDED).touch()

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
        while self._surrounds and not await self._blocking(SurroundingGroup(spec.name).is_empty):
            await trio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)
        await self._blocking(lambda: self._forget(spec))

    def _forget(self, spec: JobSpec) -> None:
        if self._surrounds:
            SurroundingGroup(spec.name).remove()
        shutil.rmtree(self._job_folder(spec), ignore_errors=True)
        self._evidence.pop(spec.name, None)

    async def usage(self, spec: JobSpec) -> JobConsumption | None:
        """What the kernel has counted of a running job."""
        container = await self._containers.find(spec.name)
        process = process_of(container) if container is not None else None
        if process is None:
            return None

        def read() -> JobConsumption | None:
            folders = tuple(str(folder) for folder in process_groups(process).values())
            return consumption(folders, counted_group(process) or "")

        return await self._blocking(read)

    async def connect(self, spec: JobSpec, port: int) -> trio.abc.HalfCloseableStream:
        """Connects inside the job's network namespace, whatever network it has."""
        container = await self._containers.find(spec.name)
        process = process_of(container) if container is not None and is_ours(container, spec) else None
        if process is None:
            raise ExecutorError("the job does not run", code="failed")
        namespace = await self._blocking(lambda: open_namespace(process))
        try:
            # The number may have gone to another process before it was opened: then the container has another one now.
            if process_of(await self._containers.find(spec.name) or {}) != process:
                raise ExecutorError("the job does not run", code="failed")
            connection = await self._blocking(lambda: connect_inside(namespace, port))
        finally:
            os.close(namespace)
        return trio.SocketStream(trio.socket.from_stdlib_socket(connection))

    async def _blocking(self, run: Callable[[], Value]) -> Value:
        # The stubs of trio that libp2p installs lose the type.
        found: Any = await trio.to_thread.run_sync(run, limiter=self._threads)
        return found  # type: ignore[no-any-return]


_NETWORK_MODES: Final = {"none": "none", "full": "bridge", "outbound": "bridge"}


def _refused(problem: str) -> ExecutorError:
    return ExecutorError(problem, code="refused")


@asynccontextmanager
async def open_docker(name: str, settings: DockerSettings, folder: Path) -> AsyncIterator[DockerExecutor]:
    """Opens an executor; files of jobs are in `folder`. Nothing is asked yet; jobs go on when the block ends."""
    async with open_engine(settings.socket) as engine:
        yield DockerExecutor(name, settings, folder, engine)
