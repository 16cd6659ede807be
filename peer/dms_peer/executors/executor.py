"""The interface of an executor, which runs jobs and limits them to what their leases have.

An executor keeps no state of its own that matters: what runs is known by names and labels in the engine or the
operating system. `dms_peer.jobs` drives it, one task for each job, and every call may be repeated: after an error, or
after a crash of the peer at any moment, the caller looks up what is there and goes on.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Literal, Protocol

import trio.abc

from dms_protocols.messages.job import Job, JobConsumption, JobExit
from dms_resources.components import GPU, Port, Resources

from ..errors import PeerError

__all__ = ["Capabilities", "Executor", "ExecutorError", "FoundJob", "JobSpec", "OutputPiece"]


class ExecutorError(PeerError):
    """An executor cannot do what it was asked for.

    Codes: `unavailable` (the engine does not answer: nothing is known, nothing was ended), `refused` (the owner's
    settings or the engine refuse this job, and always will), `failed` (the job could not be started).
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class JobSpec:
    """A job to run, with everything that bounds it.

    `name` is unique on the machine: it is made of peer, lease and fencing number, and makes a repeated start harmless.
    `resources` and `ports` are what the lease was granted; `devices` are its GPUs as the machine has them. `digest` is
    that of the job document. `created` is in Unix seconds.
    """

    name: str
    peer_id: str
    home_id: str
    lease_id: str
    fence: int
    digest: bytes
    job: Job
    resources: Resources
    ports: tuple[Port, ...]
    devices: tuple[GPU, ...]
    created: float


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundJob:
    """A job as the executor finds it. `state` `created` means that it has not begun, or is not ready: `start` goes on.

    `exit` is set once it has exited. `pid` and `started` (seconds after boot) identify its first process, `cgroup` is
    the name of its group as in `/proc/PID/cgroup`, where they are known.
    """

    name: str
    lease_id: str
    fence: int
    digest: bytes
    created: float
    state: Literal["created", "running", "exited"]
    exit: JobExit | None = None
    pid: int | None = None
    started: float | None = None
    cgroup: str | None = None


@dataclass(frozen=True, slots=True)
class OutputPiece:
    """Bytes that a job wrote, in order. `dropped` bytes before them were not kept and cannot be read any more."""

    stream: Literal["stdout", "stderr"]
    data: bytes
    dropped: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """Whether an executor works now, and what it enforces.

    `problem` says why it does not work; `notes` are sentences for the owner, such as that no disk limit is enforced.
    """

    works: bool
    problem: str = ""
    version: str = ""
    notes: tuple[str, ...] = ()


class Executor(Protocol):
    """Runs jobs. Every method may be cancelled; what was begun then goes on, and is found by `find` and `list`."""

    @property
    def name(self) -> str:
        """The name by which requests ask for it, such as "docker"."""
        ...

    async def probe(self) -> Capabilities:
        """Tries whether jobs can be run and limited now. Raises nothing but cancellation."""
        ...

    def check(self, spec: JobSpec) -> None:
        """Raises ExecutorError `refused` for a job that this executor will not run, such as an image that the owner
        does not allow. From memory, without waiting."""
        ...

    async def prepare(self, spec: JobSpec, on_progress: OnPull) -> None:
        """Gets what the job needs, such as its image. Does nothing where it is there. Raises ExecutorError."""
        ...

    async def start(self, spec: JobSpec) -> FoundJob:
        """Starts the job, unless a job of this name exists, and returns it as found.

        The job is verified before it is returned as running: its limits and devices are read back. Raises
        ExecutorError.
        """
        ...

    async def find(self, spec: JobSpec) -> FoundJob | None:
        """The job as it is now, None when there is none of this name. Raises ExecutorError `unavailable`."""
        ...

    async def list(self, peer_id: str, home_id: str) -> list[FoundJob]:
        """All jobs of this peer and home, whatever their state. Raises ExecutorError `unavailable`."""
        ...

    async def wait(self, spec: JobSpec) -> FoundJob | None:
        """Returns when the job has exited (None: it is not there). Raises ExecutorError `unavailable`."""
        ...

    def output(self, spec: JobSpec, offset: int) -> AbstractAsyncContextManager[AsyncIterator[OutputPiece]]:
        """The output from byte `offset` on, until the job has exited and all of it was read.

        Raises ExecutorError `unavailable`.
        """
        ...

    async def signal(self, spec: JobSpec, number: int) -> None:
        """Sends a signal to the job: SIGTERM to its first process, SIGKILL to all of it.

        Does nothing when it is gone. Raises ExecutorError `unavailable`.
        """
        ...

    async def remove(self, spec: JobSpec) -> None:
        """Removes what is left of an exited or unstarted job, its files included; a running one is killed first.

        When it returns no process of the job is left. Raises ExecutorError `unavailable`.
        """
        ...

    async def usage(self, spec: JobSpec) -> JobConsumption | None:
        """What the job uses now; None where it is not known. Raises ExecutorError `unavailable`."""
        ...

    async def connect(self, spec: JobSpec, port: int) -> trio.abc.HalfCloseableStream:
        """A connection to a port on which the job listens, also where the job has no network.

        Raises ExecutorError `unavailable`, or `failed` where nothing listens.
        """
        ...


class OnPull(Protocol):
    """Is told of the progress of a preparation, for people."""

    def __call__(self, message: str) -> None:
        """`message` says what is fetched, and how far. Must not wait."""
        ...
