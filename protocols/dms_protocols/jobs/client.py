"""The asking side of `/dms/job/1.0.0`; what comes back is compared with the question before it is believed."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Final

import msgspec

from ..errors import ConnectionLostError
from ..messages.job import (
    MAX_OUTPUT_BYTES,
    Job,
    JobAnswer,
    JobLogsRequest,
    JobOutput,
    JobStatus,
    JobStatusRequest,
    JobWatchRequest,
    StartJobRequest,
    StopJobRequest,
    job_digest,
)
from ..rpc.answer_checks import check_job, check_output
from ..rpc.client import Client
from ..rpc.client_limits import ClientLimits
from .service import MAX_START_BYTES

__all__ = ["JOB_CLIENT_LIMITS", "JobClient"]

JOB_CLIENT_LIMITS: Final = ClientLimits(request_bytes=MAX_START_BYTES, frame_bytes=2 * MAX_OUTPUT_BYTES)
"""The limits of a client of this protocol: a start with files is large, and every answer is small."""

_TIMEOUT = 10.0
# The events with output of one request. With the first event, which has none, they fit into what a client keeps for a
# slow reader, so that none is dropped.
_PAGE: Final = ClientLimits().watch_events - 1


class JobClient:
    """Asks `/dms/job/1.0.0` of one provider, over a client with JOB_CLIENT_LIMITS.

    Every call has a deadline of `timeout` seconds, shows the `token` where one is given, and raises what `Client.call`
    raises, and AnswerError for an answer that does not fit its question.
    """

    def __init__(self, client: Client, *, timeout: float = _TIMEOUT, token: bytes | None = None) -> None:
        self._client = client
        self._timeout = timeout
        self._token = token

    async def start(self, lease_id: str, *, fence: int, job: Job) -> JobStatus:
        """Start a job on an allocated lease. Asking again with the same job answers with the job as it is."""
        request = StartJobRequest(lease_id=lease_id, fence=fence, job=job)
        return await self._call(request, lease_id, fence=fence, digest=job_digest(job))

    async def status(self, lease_id: str) -> JobStatus:
        """The job of a lease, also of one that ended a while ago; RemoteError `no_job` if there is none."""
        return await self._call(JobStatusRequest(lease_id=lease_id), lease_id)

    async def stop(self, lease_id: str, *, grace: float = 10.0) -> JobStatus:
        """End the job: SIGTERM, and SIGKILL after `grace` seconds. Returns at once; `wait` returns when it has exited.

        The lease stays allocated.
        """
        return await self._call(StopJobRequest(lease_id=lease_id, grace=grace), lease_id)

    @asynccontextmanager
    async def watch(self, lease_id: str) -> AsyncIterator[AsyncIterator[JobStatus]]:
        """The job now and after each change of its state, until it has exited. A slow reader sees the newest."""
        request = JobWatchRequest(lease_id=lease_id)
        async with (
            self._client.watch(request, JobAnswer, timeout=self._timeout, token=self._token) as answers,
            aclosing(_checked(answers, lease_id)) as changes,
        ):
            yield changes

    async def wait(self, lease_id: str) -> JobStatus:
        """Wait, without a deadline, until the job has exited. May be cancelled."""
        async with self.watch(lease_id) as changes:
            async for status in changes:
                if status.exit is not None:
                    return status
        raise ConnectionLostError("the provider stopped watching the job before it exited")

    @asynccontextmanager
    async def logs(
        self, lease_id: str, *, offset: int = 0, follow: bool = False
    ) -> AsyncIterator[AsyncIterator[JobOutput]]:
        """The output from byte `offset` on, in order and without gaps; with `follow` until the job has exited.

        A slow reader slows the provider down; no output is lost in between. Each piece says how much before it the
        provider does not keep any more.
        """
        async with aclosing(self._pages(lease_id, offset, follow)) as pieces:
            yield pieces

    async def _pages(self, lease_id: str, offset: int, follow: bool) -> AsyncGenerator[JobOutput, None]:
        full = True
        while full:
            count, first = 0, True
            request = JobLogsRequest(lease_id=lease_id, offset=offset, follow=follow, limit=_PAGE)
            async with self._client.watch(request, JobOutput, timeout=self._timeout, token=self._token) as events:
                async for piece in events:
                    offset = check_output(piece, offset)
                    if not first:
                        count += 1
                        yield piece
                    first = False
            full = count >= _PAGE

    async def _call(
        self, request: msgspec.Struct, lease_id: str, *, fence: int | None = None, digest: bytes | None = None
    ) -> JobStatus:
        answer = await self._client.call(request, JobAnswer, timeout=self._timeout, token=self._token)
        check_job(answer.job, lease_id, fence=fence, digest=digest)
        return answer.job


async def _checked(answers: AsyncIterator[JobAnswer], lease_id: str) -> AsyncGenerator[JobStatus, None]:
    async for answer in answers:
        check_job(answer.job, lease_id)
        yield answer.job
