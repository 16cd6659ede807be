"""Starts the container of a job, and verifies it. Each step may be repeated after a crash, and finds what is there."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path
from typing import Final

import trio

from ..executor import ExecutorError, JobSpec
from ..process_groups import start_of_process
from ..settings import DockerSettings
from .containers import Container, Containers, is_ours, is_started, process_of
from .create_body import LABEL, ContainerPlan, create_body
from .devices import plan_devices
from .engine import EngineAnswer
from .exits import SurroundingGroup
from .images import Images
from .networks import JobNetworks
from .probing import EngineFacts
from .references import ImageReference
from .verification import wrong_start
from .watching import ContainerWatch

__all__ = ["ContainerStarter", "job_network"]

_CREATE_TRIES: Final = 5
_PAUSE: Final = 0.05
_VERIFY_TRIES: Final = 3
_START_TRIES: Final = 2


def job_network(spec: JobSpec) -> str:
    """The engine's name of a job's network: `outbound` has one of its own for each job."""
    return {"none": "none", "full": "bridge", "outbound": spec.name}[spec.job.network]


class ContainerStarter:
    """Creates and starts containers; files of jobs are in `folder`.

    It learns from trying whether the storage of the engine bounds the disk of a container, and tells `watch`.
    """

    def __init__(
        self,
        settings: DockerSettings,
        folder: Path,
        containers: Containers,
        images: Images,
        networks: JobNetworks,
        watch: ContainerWatch,
    ) -> None:
        self._settings = settings
        self._folder = folder
        self._containers = containers
        self._images = images
        self._networks = networks
        self._watch = watch

    async def start(self, spec: JobSpec, image: ImageReference, facts: EngineFacts) -> None:
        """Starts the job unless it was started before. Raises ExecutorError `failed`, `refused` or `unavailable`."""
        if spec.job.network == "outbound":
            # Before each start: somebody may have flushed the rules.
            await self._watch.blocking(self._networks.set_filter)
        container = await self._create(spec, image, facts)
        if not is_started(container):
            if facts.surrounds:
                await self._watch.blocking(SurroundingGroup(spec.name).make)
            for _ in range(_START_TRIES):
                answer = await self._containers.start(spec.name)
                container = await self._containers.find(spec.name) or {}
                if is_started(container):
                    break
                # It never ran, so it may be tried again: runtimes fail now and then on a busy machine.
                await trio.sleep(_PAUSE)
            else:
                raise ExecutorError(f"the engine cannot start it: {answer.message}", code="failed")
        await self._verify(spec, container, facts)

    async def _verify(self, spec: JobSpec, container: Container, facts: EngineFacts) -> None:
        process = process_of(container)
        if process is None:
            return
        plan = await self._watch.blocking(lambda: plan_devices(spec.devices, facts.is_podman))
        # A process that is exiting has left its groups already, while it is still there.
        for _ in range(_VERIFY_TRIES):
            problem = await self._watch.blocking(lambda: wrong_start(process, spec, self._settings, plan))
            if not problem or process_of(await self._containers.find(spec.name) or {}) != process:
                return
            await trio.sleep(_PAUSE)
            if await self._watch.blocking(lambda: start_of_process(process)) is None:
                return
        await self._containers.kill(spec.name, signal.SIGKILL)
        raise ExecutorError(f"the engine does not hold the lease: {problem}", code="failed")

    async def _create(self, spec: JobSpec, name: ImageReference, facts: EngineFacts) -> Container:
        """The container of the job, created if there is none. Tries some times: a name may be in use by a removal."""
        problem = ""
        for attempt in range(_CREATE_TRIES):
            found = await self._containers.find(spec.name)
            if found is not None:
                _check_ours(found, spec)
                return found
            await trio.sleep(_PAUSE * attempt)
            answer = await self._try_create(spec, await self._plan(spec, name, facts))
            problem = answer.message
        raise ExecutorError(f"the engine cannot create it: {problem}", code="failed")

    async def _plan(self, spec: JobSpec, name: ImageReference, facts: EngineFacts) -> ContainerPlan:
        image = await self._images.find(name)
        if image is None:
            raise ExecutorError(f"the image {name} is not there", code="failed")
        if not image.has_command and not spec.job.execution.cmd and not spec.job.execution.entrypoint:
            raise ExecutorError("neither the job nor its image has a command", code="refused")
        devices = await self._watch.blocking(lambda: plan_devices(spec.devices, facts.is_podman))
        if spec.job.network == "outbound":
            await self._networks.make(spec.name, facts.is_podman)
        return ContainerPlan(
            image=image.id,
            network=job_network(spec),
            volumes=image.volumes,
            cgroup_parent=SurroundingGroup(spec.name).path if facts.surrounds else "",
            device_requests=devices.requests,
            devices=devices.devices,
            files=await self._watch.blocking(lambda: self._write_files(spec)),
            disk=spec.resources.disk.size if self._watch.disk_bounded is not False else 0,
        )

    async def _try_create(self, spec: JobSpec, plan: ContainerPlan) -> EngineAnswer:
        answer = await self._containers.create(spec.name, create_body(spec, self._settings, plan))
        if plan.disk and answer.succeeded:
            self._watch.disk_bounded = True
        elif plan.disk and await self._containers.find(spec.name) is None:
            # Whether a storage driver bounds the disk is only known from trying.
            bare = create_body(spec, self._settings, plan._replace(disk=0))
            answer = await self._containers.create(spec.name, bare)
            if answer.succeeded:
                self._watch.disk_bounded = False
        return answer

    def _write_files(self, spec: JobSpec) -> str:
        """Writes the job's files, readable for whatever user it has; the folders above them are the peer's only."""
        if not spec.job.files:
            return ""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        target = self._folder / spec.name / "files"
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


def _check_ours(found: Container, spec: JobSpec) -> None:
    labels = (found.get("Config") or {}).get("Labels") or {}
    if not is_ours(found, spec) or labels.get(f"{LABEL}digest") != spec.digest.hex():
        raise ExecutorError(f"a different container {spec.name} is there", code="refused")
