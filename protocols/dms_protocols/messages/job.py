"""`/dms/job/1.0.0`: one job on an allocated lease: start it, follow it, read its output, stop it.

A job belongs to one lease and one fencing number. The provider runs at most one job for each of them. If the same job
is started again, the answer is the current state of the job. If another job is started, the request is refused with
`job_conflict`. The fields of a job document have the DMS's names.
"""

from __future__ import annotations

import hashlib
import re
from typing import Annotated, Final, Literal, TypeAlias

from msgspec import Meta, Struct

from dms_resources.components import Amount, Port

from ..wire.conversion import sealed_bytes

__all__ = [
    "MAX_FILES_BYTES",
    "MAX_JOB_BYTES",
    "MAX_OUTPUT_BYTES",
    "Execution",
    "Job",
    "JobAnswer",
    "JobConsumption",
    "JobExit",
    "JobFile",
    "JobLogsRequest",
    "JobOutput",
    "JobPort",
    "JobStatus",
    "JobStatusRequest",
    "JobWatchRequest",
    "StartJobRequest",
    "StopJobRequest",
    "job_digest",
]

MAX_JOB_BYTES: Final = 64 * 1024
"""Bytes of an encoded job document, without the contents of its files."""

MAX_FILES_BYTES: Final = 1 << 20
"""Bytes of all files of a job together."""

MAX_OUTPUT_BYTES: Final = 64 * 1024
"""Bytes of output in one event."""

_VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*=", re.ASCII)
_FILE_NAME: Final = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}", re.ASCII)

LeaseID: TypeAlias = Annotated[str, Meta(min_length=1, max_length=256)]
Word: TypeAlias = Annotated[str, Meta(max_length=32768)]
JobState: TypeAlias = Literal["pending", "pulling", "starting", "running", "ending", "exited"]
"""`pending` until an executor accepts the job, `pulling` its image, `starting`, `running`, `ending` until all its
processes are gone, `exited`.
"""
Network: TypeAlias = Literal["none", "outbound", "full"]
"""What a job can connect to: `none` nothing, `outbound` public addresses, `full` also the owner's networks."""


class Execution(Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """What is executed. `type` names the executor. The entries of `environment` have the form NAME=VALUE."""

    type: Annotated[str, Meta(min_length=1, max_length=128)]
    image: Annotated[str, Meta(max_length=512)] = ""
    cmd: Annotated[tuple[Word, ...], Meta(max_length=1024)] = ()
    entrypoint: Annotated[tuple[Word, ...], Meta(max_length=1024)] = ()
    environment: Annotated[tuple[Word, ...], Meta(max_length=1024)] = ()
    working_directory: Annotated[str, Meta(max_length=4096)] = ""

    def __post_init__(self) -> None:
        for entry in self.environment:
            if not _VARIABLE.match(entry):
                raise ValueError("an entry of the environment is NAME=VALUE, with a name of letters, digits and _")
        texts = (self.image, self.working_directory, *self.cmd, *self.entrypoint, *self.environment)
        if any("\0" in text for text in texts):
            raise ValueError("a NUL character")


class JobPort(Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """A port on which the job listens. `public` is the leased port that forwards to it; 0 if only tunnels reach it."""

    private: Port
    public: Annotated[int, Meta(ge=0, le=65535)] = 0


class JobFile(Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """A file that the job finds under `name` in the directory /dms. It is read-only; `executable` is for scripts."""

    name: Annotated[str, Meta(max_length=64)]
    content: Annotated[bytes, Meta(max_length=MAX_FILES_BYTES)]
    executable: bool = False

    def __post_init__(self) -> None:
        if not _FILE_NAME.fullmatch(self.name):
            raise ValueError("a file's name is 1 to 64 letters, digits, dots, _ and -, and does not begin with a dot")


class Job(Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """A job document. `network` is what the job needs to connect to. With `remove`, its lease is released when the job
    ends.

    Unknown fields are refused here, unlike in other messages: a field that a provider does not know may be a limit.
    """

    execution: Execution
    ports: Annotated[tuple[JobPort, ...], Meta(max_length=64)] = ()
    files: Annotated[tuple[JobFile, ...], Meta(max_length=64)] = ()
    network: Network = "none"
    remove: bool = False

    def __post_init__(self) -> None:
        if len({file.name for file in self.files}) != len(self.files):
            raise ValueError("two files have the same name")
        if sum(len(file.content) for file in self.files) > MAX_FILES_BYTES:
            raise ValueError(f"the files have more than {MAX_FILES_BYTES} bytes together")
        public = [port.public for port in self.ports if port.public]
        if len(set(public)) != len(public):
            raise ValueError("two ports are published at the same one")


class JobExit(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How a job ended.

    `kind` is `code` (the program ended by itself with `code`), `signal` (the provider or the kernel ended it with
    `signal`), `memory` (it used more memory than its lease has), `stopped` (by its holder), `evicted` (by the owner),
    `expired` (its lease ended), `lost` (the provider did not see its end) or `failed` (it never ran). `oom_kills`
    counts the processes of the job that the kernel killed because memory was exhausted. `message` is for people.
    """

    kind: Literal["code", "signal", "memory", "stopped", "evicted", "expired", "lost", "failed"]
    code: int | None = None
    signal: int | None = None
    oom_kills: Amount = 0
    message: Annotated[str, Meta(max_length=512)] = ""

    def describe(self) -> str:
        """How it ended, in a few words for people: "exited with 3", "out of memory"."""
        match self.kind:
            case "code":
                return f"exited with {self.code}"
            case "signal":
                return f"ended by signal {self.signal}"
            case "memory":
                return "out of memory"
            case _:
                return self.kind


class JobConsumption(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The consumption of a job: seconds of processor time since its start, and bytes of memory now."""

    cpu_seconds: float
    memory: Amount


class JobStatus(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The current state of a job.

    `since` is when the state began, `created` when the job was accepted (Unix seconds). `exit` is set when the job has
    exited. `reason` explains the state to people: what is pulled, why it ends. `output` is the number of bytes of
    output so far. `dropped` is how many of them, after the beginning, are no longer kept. `ports` are the published
    ports.
    """

    lease_id: str
    fence: Amount
    digest: Annotated[bytes, Meta(min_length=32, max_length=32)]
    executor: str
    state: JobState
    created: float
    since: float
    exit: JobExit | None = None
    reason: Annotated[str, Meta(max_length=512)] = ""
    output: Amount = 0
    dropped: Amount = 0
    ports: tuple[JobPort, ...] = ()
    usage: JobConsumption | None = None


class StartJobRequest(Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="op", tag="job_start"):
    """Starts a job on an allocated lease. The answer is JobAnswer, as soon as the job is accepted and durable."""

    lease_id: LeaseID
    fence: Amount
    job: Job


class JobStatusRequest(Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="op", tag="job_status"):
    """Requests the job of a lease, also for some time after its end. The answer is JobAnswer."""

    lease_id: LeaseID


class JobWatchRequest(Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="op", tag="job_watch"):
    """Watches a job: JobAnswer now and at each change of its state, until it has exited."""

    lease_id: LeaseID


class JobLogsRequest(Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="op", tag="job_logs"):
    """Requests the output from byte `offset` on, in events of JobOutput; with `follow`, until the job has exited.

    The first event is sent at once and has no data. At most `limit` events with data follow (0: no limit). A client
    that cannot keep up requests a few at a time, and continues from the offset that it has reached.
    """

    lease_id: LeaseID
    offset: Amount = 0
    follow: bool = False
    limit: Annotated[int, Meta(ge=0, le=1024)] = 0


class StopJobRequest(Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="op", tag="job_stop"):
    """Stops a job: SIGTERM, then SIGKILL after `grace` seconds or the owner's longest. The answer is JobAnswer, at
    once.

    The lease stays allocated.
    """

    lease_id: LeaseID
    grace: Annotated[float, Meta(ge=0, le=3600)] = 10.0


class JobAnswer(Struct, frozen=True, kw_only=True):
    """The current state of the job."""

    job: JobStatus


class JobOutput(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A piece of output that begins at byte `offset` of all output of the job.

    The numbers count the bytes of standard output and standard error together; `stream` says to which of them this
    piece belongs. `dropped` bytes before `offset` are no longer kept.
    """

    offset: Amount
    data: Annotated[bytes, Meta(max_length=MAX_OUTPUT_BYTES)]
    stream: Literal["stdout", "stderr"] = "stdout"
    dropped: Amount = 0


def job_digest(job: Job) -> bytes:
    """The SHA-256 of a job's deterministic encoding. A provider recognizes a repeated start by it."""
    return hashlib.sha256(sealed_bytes(job)).digest()
