"""Jobs on leases at other peers, as their requester sees them.

Rules:

1. A job is known by provider, lease and fencing number. A requester that knows these finds it again, on another day as
   well.
2. Every call may be repeated. A call that ends because the provider cannot be reached is tried again until the provider
   was silent for `job_patience` seconds; output goes on at the byte that was reached.
3. A refusal of the provider is raised at once, as JobRequestError with the provider's code.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from functools import partial
from typing import Final, TypeVar

import trio

from dms_protocols.jobs.client import JobClient
from dms_protocols.messages.job import Job, JobOutput, JobStatus
from dms_resources.tasks import open_background

from .errors import JobRequestError
from .forwarding import LOOPBACK, Forward, open_forward
from .limits import RequesterLimits
from .peers import CallError, PeerCalls, PeerRef

__all__ = ["RemoteJob"]

_T = TypeVar("_T")

# What a provider says that another attempt may change.
_PASSING: Final = frozenset({"busy", "deadline_exceeded", "internal", "executor_unavailable"})
# What another attempt does not change, although the provider did not say it.
_LASTING: Final = frozenset({"bad_answer", "bad_message", "frame_too_large", "protocol_not_supported", "self_dial"})
_BEGUN: Final = frozenset({"running", "ending", "exited"})


class RemoteJob:
    """A job on a lease of this requester's. Every method may be cancelled, and raises JobRequestError."""

    def __init__(
        self,
        calls: PeerCalls,
        peer: PeerRef,
        lease_id: str,
        *,
        node_id: str = "",
        limits: RequesterLimits | None = None,
    ) -> None:
        self.node_id = node_id
        self.lease_id = lease_id
        self.last: JobStatus | None = None
        """The state of the job as the provider last told it."""
        self._calls = calls
        self._peer = peer
        self._limits = limits or RequesterLimits()

    @property
    def peer_id(self) -> str:
        """The provider."""
        return self._peer.peer_id

    async def start(self, fence: int, job: Job) -> JobStatus:
        """Starts the job on its lease, which must be allocated; returns when the provider has accepted it.

        Starting the same job again changes nothing.
        """

        async def start(client: JobClient, heard: Callable[[], None]) -> JobStatus:
            return await client.start(self.lease_id, fence=fence, job=job)

        return self._noted(await self._persist(start, budget=self._limits.start_budget))

    async def status(self) -> JobStatus:
        """The state of the job now."""

        async def ask(client: JobClient, heard: Callable[[], None]) -> JobStatus:
            return await client.status(self.lease_id)

        return self._noted(await self._persist(ask))

    async def stop(self, *, grace: float = 10.0) -> JobStatus:
        """Ends the job: SIGTERM, then SIGKILL after `grace` seconds or the owner's longest. Returns at once."""

        async def stop(client: JobClient, heard: Callable[[], None]) -> JobStatus:
            return await client.stop(self.lease_id, grace=grace)

        return self._noted(await self._persist(stop))

    async def wait(self, on_change: Callable[[JobStatus], None] = lambda status: None) -> JobStatus:
        """Waits until the job has exited, without a deadline. `on_change` is told of each state; it must not wait."""
        return await self._watch(lambda status: status.exit is not None, on_change)

    async def wait_started(self, on_change: Callable[[JobStatus], None] = lambda status: None) -> JobStatus:
        """Waits until the job runs, or has ended without. `on_change` is told of each state; it must not wait."""
        return await self._watch(lambda status: status.state in _BEGUN, on_change)

    @asynccontextmanager
    async def logs(self, *, offset: int = 0, follow: bool = True) -> AsyncIterator[AsyncIterator[JobOutput]]:
        """The output from byte `offset` on: `async with job.logs() as pieces: async for piece in pieces`.

        With `follow` until the job has exited. In order and without gaps; each piece says how many bytes before it the
        provider no longer keeps.
        """
        send, receive = trio.open_memory_channel[JobOutput](0)
        failures: list[JobRequestError] = []

        async def read() -> None:
            async with send:
                try:
                    await self._read(send, offset, follow)
                except JobRequestError as error:
                    failures.append(error)

        async with open_background(read), receive:
            yield _Output(receive, failures)

    def forward(
        self,
        port: int,
        *,
        local_port: int = 0,
        address: str = LOOPBACK,
        on_failure: Callable[[str], None] = lambda message: None,
    ) -> AbstractAsyncContextManager[Forward]:
        """Makes a port on which the job listens reachable on this machine while the block runs: `Forward.port`.

        The port need not be published. Local port 0 takes any free one. Raises PeerError `listen_failed`.
        """
        return open_forward(
            partial(self._calls.tunnel, self._peer, self.lease_id, port, budget=self._limits.tunnel_budget),
            port=local_port,
            address=address,
            on_failure=on_failure,
        )

    # Inside

    async def _watch(self, is_enough: Callable[[JobStatus], bool], on_change: Callable[[JobStatus], None]) -> JobStatus:
        async def watch(client: JobClient, heard: Callable[[], None]) -> JobStatus | None:
            async with client.watch(self.lease_id) as changes:
                async for status in changes:
                    heard()
                    on_change(self._noted(status))
                    if is_enough(status):
                        return status
            return None

        return await self._persist(watch)

    async def _read(self, send: trio.MemorySendChannel[JobOutput], offset: int, follow: bool) -> None:
        position = offset

        async def read(client: JobClient, heard: Callable[[], None]) -> bool | None:
            nonlocal position
            began = position
            async with client.logs(self.lease_id, offset=position, follow=follow) as pieces:
                heard()
                async for piece in pieces:
                    heard()
                    position = piece.offset + len(piece.data)
                    await send.send(piece)
            if not follow:
                return True
            status = self._noted(await client.status(self.lease_id))
            # A provider that ends a followed output of a running job is stopping: it is asked again.
            return True if status.exit is not None and (position >= status.output or position == began) else None

        with suppress(trio.BrokenResourceError):
            await self._persist(read)

    async def _persist(
        self,
        work: Callable[[JobClient, Callable[[], None]], Awaitable[_T | None]],
        *,
        budget: float | None = None,
    ) -> _T:
        """Does the work over a client until it returns something, again after each failure that may pass."""
        budget = budget or self._limits.call_budget
        pause, heard_at = self._limits.retry_delay, trio.current_time()

        def heard() -> None:
            nonlocal pause, heard_at
            pause, heard_at = self._limits.retry_delay, trio.current_time()

        while True:
            try:
                async with self._calls.jobs(self._peer, budget=budget) as client:
                    result = await work(client, heard)
                if result is not None:
                    return result
            except CallError as error:
                if not _may_pass(error) or trio.current_time() - heard_at >= self._limits.job_patience:
                    raise _request_error(error, self.peer_id) from error
                wait = error.remote.retry_after if error.remote is not None else None
                pause = max(pause, min(wait or 0.0, self._limits.retry_delay_most))
            await trio.sleep(pause)
            pause = min(2 * pause, self._limits.retry_delay_most)

    def _noted(self, status: JobStatus) -> JobStatus:
        self.last = status
        return status


class _Output:
    """The output that a background task reads; ends with its failure, if there is one."""

    def __init__(self, pieces: trio.MemoryReceiveChannel[JobOutput], failures: list[JobRequestError]) -> None:
        self._pieces = pieces
        self._failures = failures

    def __aiter__(self) -> AsyncIterator[JobOutput]:
        return self

    async def __anext__(self) -> JobOutput:
        try:
            return await self._pieces.receive()
        except trio.EndOfChannel:
            if self._failures:
                raise self._failures[0] from None
            raise StopAsyncIteration from None


def _may_pass(error: CallError) -> bool:
    return error.code in _PASSING if error.remote is not None else error.code not in _LASTING


def _request_error(error: CallError, peer_id: str) -> JobRequestError:
    hint = error.remote.details.get("hint", "") if error.remote is not None else ""
    if error.code == "protocol_not_supported":
        return JobRequestError(
            f"{peer_id} runs no jobs", code=error.code, hint="its owner has no executor; choose another provider"
        )
    return JobRequestError(error.message, code=error.code, hint=hint if isinstance(hint, str) else "")
