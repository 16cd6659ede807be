"""Answers `/dms/job/1.0.0` from what runs the jobs of a provider.

Rules:

1. A job is started, seen and stopped by the holder of its lease alone: the peer whose id the transport vouches for.
2. A start is answered when the job is accepted and durable. A repeated start of the same job is answered with the job
   as it is; another job on the same lease is refused with `job_conflict`.
3. A job document has at most 64 KiB without the contents of its files, and the files at most 1 MiB together. Requests
   of this protocol may therefore be larger than others, and count as bytes in flight while they arrive.
4. When a grant of the lease's token is revoked, no job is started on the lease any more. A job that runs can still be
   seen and stopped.
5. Output is addressed by bytes from the start of the job. It is read again from any byte that is still kept.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from dataclasses import replace
from typing import Final, Protocol

import msgspec
import trio

from dms_resources.manager import ResourceManager

from ..errors import MessageError
from ..messages.job import (
    MAX_FILES_BYTES,
    MAX_JOB_BYTES,
    Job,
    JobAnswer,
    JobLogsRequest,
    JobOutput,
    JobStatus,
    JobStatusRequest,
    JobWatchRequest,
    StartJobRequest,
    StopJobRequest,
)
from ..rpc.limits import ServiceLimits
from ..rpc.operations import Caller, Operations
from ..tokens.checks import TokenChecker
from ..wire.conversion import to_bytes

__all__ = ["MAX_START_BYTES", "JobService", "job_limits", "job_operations"]

MAX_START_BYTES: Final = MAX_JOB_BYTES + MAX_FILES_BYTES + 64 * 1024
"""Bytes of the largest request: a job document with all its files, and a token."""

# Each job of a requester may be watched and have its output followed on the one stream to its provider.
_WATCHES: Final = 64


class JobService(Protocol):
    """What runs the jobs of a provider.

    Each method raises JobError `no_job` if the lease has no job, and NotHolderError if the lease belongs to another
    holder. `holder` is a peer id. Everything may be cancelled at any time.
    """

    async def start(self, lease_id: str, fence: int, job: Job, *, holder: str) -> JobStatus:
        """Accepts a job on an allocated lease, durably, and returns its state.

        Idempotent by lease, fence and digest of the job. Raises JobError `job_conflict` for another job on the same
        lease, `no_executor`, `job_refused` or `executor_unavailable`; StaleFenceError, NotAllocatedError and other
        LeaseErrors for the lease; and StorageError.
        """
        ...

    def status(self, lease_id: str, *, holder: str) -> JobStatus:
        """Returns the job of a lease, also of one that ended a while ago. From memory."""
        ...

    def watch(self, lease_id: str, *, holder: str) -> AbstractAsyncContextManager[AsyncIterator[JobStatus]]:
        """Yields the job now and after each change of its state, until it has exited.

        The errors are raised when the context is entered.
        """
        ...

    def logs(
        self, lease_id: str, *, holder: str, offset: int, follow: bool
    ) -> AbstractAsyncContextManager[AsyncIterator[JobOutput]]:
        """Yields the output from byte `offset` on, in order; with `follow` until the job has exited.

        Where bytes from `offset` on are not kept any more, the next piece says in `dropped` how many. An `offset`
        beyond the end yields nothing before the output reaches it. The errors are raised when the context is entered.
        """
        ...

    async def stop(self, lease_id: str, *, holder: str, grace: float) -> JobStatus:
        """Ends the job: SIGTERM, and SIGKILL after `grace` seconds, or the owner's longest. Returns at once.

        A job that has exited, or ends already, stays as it is.
        """
        ...

    async def connect(self, lease_id: str, *, holder: str, port: int) -> trio.abc.HalfCloseableStream:
        """Connects to a port that the job document names.

        Raises JobError `port_closed` for any other port, or if nothing listens on it, `job_not_running`, and
        `executor_unavailable`.
        """
        ...


def job_limits(limits: ServiceLimits) -> ServiceLimits:
    """The limits of a stream of this protocol: as given, with larger requests for files, and more watches."""
    return replace(
        limits,
        frame_bytes=max(limits.frame_bytes, MAX_START_BYTES),
        skip_bytes=max(limits.skip_bytes, 2 * MAX_START_BYTES),
        watches=max(limits.watches, _WATCHES),
    )


def job_operations(
    jobs: JobService, *, manager: ResourceManager | None = None, tokens: TokenChecker | None = None
) -> Operations:
    """The operations on jobs, for streams with `job_limits`.

    `manager` has the leases and `tokens` knows which grants were revoked; with both, no job is started on a lease whose
    grant was revoked.
    """
    handlers = _Jobs(jobs, manager, tokens)
    operations = Operations()
    operations.slow(StartJobRequest, handlers.start)
    operations.quick(JobStatusRequest, handlers.status)
    operations.watch(JobWatchRequest, handlers.watch)
    operations.watch(JobLogsRequest, handlers.logs)
    operations.slow(StopJobRequest, handlers.stop)
    return operations


class _Jobs:
    def __init__(self, jobs: JobService, manager: ResourceManager | None, tokens: TokenChecker | None) -> None:
        self._jobs = jobs
        self._manager = manager
        self._tokens = tokens

    async def start(self, request: StartJobRequest, caller: Caller) -> JobAnswer:
        _check_size(request.job)
        self._check_grants(request.lease_id, caller)
        return JobAnswer(
            job=await self._jobs.start(request.lease_id, request.fence, request.job, holder=caller.peer_id)
        )

    def status(self, request: JobStatusRequest, caller: Caller) -> JobAnswer:
        return JobAnswer(job=self._jobs.status(request.lease_id, holder=caller.peer_id))

    @asynccontextmanager
    async def watch(self, request: JobWatchRequest, caller: Caller) -> AsyncIterator[AsyncIterator[JobAnswer]]:
        async with (
            self._jobs.watch(request.lease_id, holder=caller.peer_id) as changes,
            aclosing(_answers(changes)) as answers,
        ):
            yield answers

    @asynccontextmanager
    async def logs(self, request: JobLogsRequest, caller: Caller) -> AsyncIterator[AsyncIterator[JobOutput]]:
        async with (
            self._jobs.logs(
                request.lease_id, holder=caller.peer_id, offset=request.offset, follow=request.follow
            ) as pieces,
            aclosing(_first_of(pieces, request.offset, request.limit)) as some,
        ):
            yield some

    async def stop(self, request: StopJobRequest, caller: Caller) -> JobAnswer:
        return JobAnswer(job=await self._jobs.stop(request.lease_id, holder=caller.peer_id, grace=request.grace))

    def _check_grants(self, lease_id: str, caller: Caller) -> None:
        if self._manager is None or self._tokens is None:
            return
        lease = self._manager.lease(lease_id)
        if lease is not None and lease.holder == caller.peer_id:
            self._tokens.check_revoked(lease.accounts)


def _check_size(job: Job) -> None:
    files = tuple(msgspec.structs.replace(file, content=b"") for file in job.files)
    size = len(to_bytes(msgspec.structs.replace(job, files=files)))
    if size > MAX_JOB_BYTES:
        raise MessageError(
            f"job: {size} bytes without the contents of its files, {MAX_JOB_BYTES} are allowed", path="job"
        )


async def _answers(changes: AsyncIterator[JobStatus]) -> AsyncGenerator[JobAnswer, None]:
    async for status in changes:
        yield JobAnswer(job=status)


async def _first_of(pieces: AsyncIterator[JobOutput], offset: int, limit: int) -> AsyncGenerator[JobOutput, None]:
    # A client waits only so long for the first event, and a job may be silent for hours.
    yield JobOutput(offset=offset, data=b"")
    count = 0
    async for piece in pieces:
        yield piece
        count += 1
        if count == limit:
            return
