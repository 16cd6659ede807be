from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import trio
import trio.testing

from dms_protocols.errors import AccessError, ConnectionLostError, FrameError, RemoteError
from dms_protocols.jobs.client import JOB_CLIENT_LIMITS, JobClient
from dms_protocols.jobs.service import MAX_START_BYTES, job_limits, job_operations
from dms_protocols.messages.job import (
    MAX_FILES_BYTES,
    MAX_JOB_BYTES,
    Execution,
    Job,
    JobAnswer,
    JobExit,
    JobFile,
    JobOutput,
    JobPort,
    job_digest,
)
from dms_protocols.rpc.access import NOBODY, Access, AccessRule, AccessRules
from dms_protocols.rpc.answer_checks import AnswerError
from dms_protocols.rpc.client import open_client
from dms_protocols.rpc.client_limits import ClientLimits
from dms_protocols.rpc.limits import ServiceLimits, Shares
from dms_protocols.rpc.operations import Caller, Operations
from dms_protocols.rpc.service import serve_stream
from dms_protocols.rpc.shares import SharesInUse
from dms_protocols.tokens.checks import TokenChecker
from dms_protocols.wire.conversion import from_map, to_map
from memory_jobs import MemoryJob, MemoryJobs

LEASE = "lease-1"
FENCE = 7
HOLDER = "requester"
JOB = Job(execution=Execution(type="memory", cmd=("serve",)), ports=(JobPort(private=80),))


class Hosting:
    """A provider of jobs in memory, for any number of callers."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.jobs = MemoryJobs({LEASE: (FENCE, HOLDER)}, nursery, lambda job: None)
        self.operations = job_operations(self.jobs)
        self.limits = job_limits(ServiceLimits())
        self.shares = SharesInUse()
        self.access: Access | None = None
        self._nursery = nursery

    @property
    def job(self) -> MemoryJob:
        return self.jobs.jobs[LEASE]

    def stream(self, peer_id: str = HOLDER) -> trio.abc.HalfCloseableStream:
        ours, theirs = trio.testing.memory_stream_pair()
        self._nursery.start_soon(self._serve, theirs, peer_id)
        return ours

    async def _serve(self, stream: trio.abc.HalfCloseableStream, peer_id: str) -> None:
        with self.shares.stream(peer_id) as share:
            await serve_stream(stream, self.operations, Caller(peer_id), self.limits, None, share, self.access)

    @asynccontextmanager
    async def client(self, peer_id: str = HOLDER, limits: ClientLimits = JOB_CLIENT_LIMITS) -> AsyncIterator[JobClient]:
        async with open_client(self.stream(peer_id), limits) as client:
            yield JobClient(client)


@pytest.fixture
async def hosting(nursery: trio.Nursery) -> Hosting:
    """A provider with one allocated lease."""
    return Hosting(nursery)


async def code_of(awaitable: Any) -> str:
    with pytest.raises(RemoteError) as caught:
        await awaitable
    return str(caught.value.code)


async def read(jobs: JobClient, **options: Any) -> bytes:
    async with jobs.logs(LEASE, **options) as pieces:
        return b"".join([piece.data async for piece in pieces])


async def test_a_job_from_its_start_to_its_exit(hosting: Hosting) -> None:
    async with hosting.client() as jobs:
        started = await jobs.start(LEASE, fence=FENCE, job=JOB)
        assert (started.state, started.digest) == ("running", job_digest(JOB))
        assert hosting.job.job == JOB
        hosting.job.write(b"ready\n")
        assert (await jobs.status(LEASE)).output == 6
        hosting.job.end(3)
        assert (await jobs.wait(LEASE)).exit == JobExit(kind="code", code=3)
        assert await read(jobs) == b"ready\n"


async def test_a_repeated_start_answers_with_the_job_as_it_is(hosting: Hosting) -> None:
    async with hosting.client() as jobs:
        await jobs.start(LEASE, fence=FENCE, job=JOB)
        hosting.job.end()
        assert (await jobs.start(LEASE, fence=FENCE, job=JOB)).state == "exited"
        other = msgspec.structs.replace(JOB, network="outbound")
        assert await code_of(jobs.start(LEASE, fence=FENCE, job=other)) == "job_conflict"


async def test_only_the_holder_of_the_lease_may(hosting: Hosting) -> None:
    async with hosting.client() as jobs, hosting.client("stranger") as others:
        assert await code_of(others.start(LEASE, fence=FENCE, job=JOB)) == "not_holder"
        await jobs.start(LEASE, fence=FENCE, job=JOB)
        hosting.job.write(b"secret")
        assert await code_of(others.start(LEASE, fence=FENCE, job=JOB)) == "not_holder"
        assert await code_of(others.status(LEASE)) == "not_holder"
        assert await code_of(others.stop(LEASE)) == "not_holder"
        assert await code_of(others.wait(LEASE)) == "not_holder"
        assert await code_of(read(others)) == "not_holder"
        assert (await jobs.status(LEASE)).state == "running"


async def test_what_cannot_be_started_says_why(hosting: Hosting) -> None:
    async with hosting.client() as jobs:
        assert await code_of(jobs.status(LEASE)) == "no_job"
        assert await code_of(read(jobs)) == "no_job"
        assert await code_of(jobs.start("other", fence=FENCE, job=JOB)) == "not_allocated"
        assert await code_of(jobs.start(LEASE, fence=FENCE + 1, job=JOB)) == "stale_fence"
        with pytest.raises(RemoteError) as caught:
            await jobs.start(LEASE, fence=FENCE, job=Job(execution=Execution(type="docker", image="a:1")))
        assert (caught.value.code, caught.value.details["hint"]) == ("no_executor", "ask for memory")


async def test_stopping_passes_the_grace_on_and_is_repeatable(hosting: Hosting) -> None:
    async with hosting.client() as jobs:
        await jobs.start(LEASE, fence=FENCE, job=JOB)
        first = await jobs.stop(LEASE, grace=2.5)
        assert hosting.job.grace == 2.5
        assert await jobs.stop(LEASE) == first == await jobs.wait(LEASE)


# Documents


@pytest.mark.parametrize(
    ("where", "field"),
    [
        ((), "privileged"),
        (("execution",), "privileged"),
        (("execution",), "HostConfig"),
        (("ports", 0), "address"),
        (("files", 0), "path"),
    ],
)
async def test_a_field_that_is_not_known_is_refused_with_its_place(
    hosting: Hosting, raw_peer: Any, where: tuple[Any, ...], field: str
) -> None:
    document = to_map(msgspec.structs.replace(JOB, files=(JobFile(name="a", content=b"x"),)))
    inner = document
    for step in where:
        inner = inner[step]
    inner[field] = True
    peer = raw_peer(hosting.stream())
    await peer.send({"id": 1, "op": "job_start", "lease_id": LEASE, "fence": FENCE, "job": document})
    error = (await peer.receive())["error"]
    assert error["code"] == "bad_message"
    assert error["path"].startswith("job")
    assert field in error["message"]
    assert not hosting.jobs.jobs


@pytest.mark.parametrize(
    "document",
    [
        {"execution": {}},
        {"execution": {"type": ""}},
        {"execution": {"type": "memory", "environment": ["HOME"]}},
        {"execution": {"type": "memory", "environment": ["A*=1"]}},
        {"execution": {"type": "memory", "environment": ["A\n=1"]}},
        {"execution": {"type": "memory", "cmd": ["a\0b"]}},
        {"execution": {"type": "memory", "cmd": "sh -c"}},
        {"execution": {"type": "memory"}, "ports": [{"private": 0}]},
        {"execution": {"type": "memory"}, "ports": [{"private": 80, "public": 65536}]},
        {"execution": {"type": "memory"}, "ports": [{"private": 1, "public": 9}, {"private": 2, "public": 9}]},
        {"execution": {"type": "memory"}, "files": [{"name": "../x", "content": b""}]},
        {"execution": {"type": "memory"}, "files": [{"name": ".x", "content": b""}]},
        {"execution": {"type": "memory"}, "files": [{"name": "x", "content": b""}] * 2},
        {"execution": {"type": "memory"}, "network": "host"},
        {"execution": {"type": "memory"}, "remove": 1},
    ],
    ids=str,
)
async def test_documents_that_are_refused(hosting: Hosting, raw_peer: Any, document: dict[str, Any]) -> None:
    peer = raw_peer(hosting.stream())
    await peer.send({"id": 1, "op": "job_start", "lease_id": LEASE, "fence": FENCE, "job": document})
    assert (await peer.receive())["error"]["code"] == "bad_message"
    assert not hosting.jobs.jobs


async def test_the_largest_job_fits_and_a_larger_one_does_not(hosting: Hosting) -> None:
    half = MAX_FILES_BYTES // 2
    files = (JobFile(name="a", content=b"a" * half), JobFile(name="b", content=b"b" * (MAX_FILES_BYTES - half)))
    words = ("w" * 30_000, "w" * 30_000)
    largest = Job(execution=Execution(type="memory", cmd=words), files=files)
    async with hosting.client() as jobs:
        await jobs.start(LEASE, fence=FENCE, job=largest)
        assert hosting.job.job == largest
        more = msgspec.structs.replace(largest, execution=Execution(type="memory", cmd=(*words, "w" * 5_600)))
        assert await code_of(jobs.start(LEASE, fence=FENCE, job=more)) == "bad_message"
        huge = msgspec.structs.replace(largest, execution=Execution(type="memory", cmd=("w" * 32_768,) * 5))
        with pytest.raises(FrameError):
            await jobs.start(LEASE, fence=FENCE, job=huge)
        # The stream still works.
        assert (await jobs.status(LEASE)).state == "running"
    assert MAX_START_BYTES > MAX_JOB_BYTES + MAX_FILES_BYTES


async def test_too_many_bytes_in_files_are_refused(hosting: Hosting, raw_peer: Any) -> None:
    content = b"x" * (MAX_FILES_BYTES // 2 + 1)
    document = {
        "execution": {"type": "memory"},
        "files": [{"name": "a", "content": content}, {"name": "b", "content": content}],
    }
    peer = raw_peer(hosting.stream())
    await peer.send({"id": 1, "op": "job_start", "lease_id": LEASE, "fence": FENCE, "job": document})
    assert (await peer.receive())["error"]["code"] == "bad_message"


def test_the_digest_is_that_of_the_document_however_it_was_written() -> None:
    document = {
        "remove": False,
        "execution": {"cmd": ["serve"], "type": "memory", "image": ""},
        "ports": [{"private": 80}],
    }
    assert job_digest(from_map(document, Job)) == job_digest(JOB)
    assert job_digest(msgspec.structs.replace(JOB, remove=True)) != job_digest(JOB)


# Frames


async def test_frames_that_never_end_are_counted_and_cut(hosting: Hosting) -> None:
    hosting.shares = SharesInUse(Shares(peer=msgspec.structs.replace(Shares().peer, bytes_in_flight=256 * 1024)))
    begun = b"\x80\x80\x40" + b"x" * (200 * 1024)
    first, second, other = hosting.stream("hoarder"), hosting.stream("hoarder"), hosting.stream("other")
    await first.send_all(begun)
    await trio.testing.wait_all_tasks_blocked()
    await other.send_all(begun)
    await second.send_all(begun)
    assert b"busy" in await second.receive_some()
    await trio.testing.wait_all_tasks_blocked()
    # Operations of others continue, and what was cut off is not counted any more.
    with trio.move_on_after(0.01) as scope:
        await other.receive_some()
    assert scope.cancelled_caught
    await first.aclose()
    await trio.testing.wait_all_tasks_blocked()
    async with hosting.client("hoarder") as jobs:
        assert await code_of(jobs.status(LEASE)) == "no_job"


async def test_many_jobs_are_watched_on_one_stream(hosting: Hosting, autojump_clock: Any) -> None:
    async with hosting.client() as jobs, trio.open_nursery() as nursery:
        await jobs.start(LEASE, fence=FENCE, job=JOB)
        for _ in range(40):
            nursery.start_soon(jobs.wait, LEASE)
        await trio.testing.wait_all_tasks_blocked()
        hosting.job.end()


# Output


async def test_output_is_read_from_any_byte_and_followed_to_the_end(hosting: Hosting) -> None:
    received = bytearray()

    async def follow() -> None:
        async with hosting.client() as other, other.logs(LEASE, offset=4, follow=True) as pieces:
            async for piece in pieces:
                received.extend(piece.data)

    async with hosting.client() as jobs, trio.open_nursery() as nursery:
        await jobs.start(LEASE, fence=FENCE, job=JOB)
        hosting.job.write(b"one two")
        nursery.start_soon(follow)
        await trio.testing.wait_all_tasks_blocked()
        assert received == b"two"
        hosting.job.write(b" three")
        await trio.testing.wait_all_tasks_blocked()
        assert received == b"two three"
        assert await read(jobs, offset=8) == b"three"
        hosting.job.write(b" four")
        hosting.job.end()
    assert received == b"two three four"


async def test_a_silent_job_is_followed_for_longer_than_a_call_may_take(hosting: Hosting, autojump_clock: Any) -> None:
    async def speak() -> None:
        await trio.sleep(3600)
        hosting.job.write(b"hello")
        hosting.job.end()

    async with hosting.client() as jobs, trio.open_nursery() as nursery:
        await jobs.start(LEASE, fence=FENCE, job=JOB)
        nursery.start_soon(speak)
        assert await read(jobs, follow=True) == b"hello"


async def test_a_slow_reader_misses_nothing(hosting: Hosting, autojump_clock: Any) -> None:
    written = bytes(range(256)) * 40
    received = bytearray()
    async with hosting.client() as jobs:
        await jobs.start(LEASE, fence=FENCE, job=JOB)
        hosting.job.write(written)
        hosting.job.end()
        async with jobs.logs(LEASE, follow=True) as pieces:
            async for piece in pieces:
                await trio.sleep(0.1)
                received.extend(piece.data)
    assert received == written


async def test_output_that_is_not_kept_is_counted(hosting: Hosting) -> None:
    async with hosting.client() as jobs:
        await jobs.start(LEASE, fence=FENCE, job=JOB)
        hosting.job.write(b"0123456789")
        hosting.job.forget(3, 6)
        assert (await jobs.status(LEASE)).dropped == 3
        async with jobs.logs(LEASE, offset=1) as pieces:
            assert [(one.offset, one.dropped, one.data) async for one in pieces] == [(1, 0, b"12"), (6, 3, b"6789")]
        async with jobs.logs(LEASE, offset=4) as pieces:
            assert [(one.offset, one.dropped, one.data) async for one in pieces] == [(6, 2, b"6789")]


# Providers that lie


class Lying:
    """Answers a holder of jobs with what a test chooses."""

    def __init__(self, hosting: Hosting, **answers: Any) -> None:
        self.operations = Operations()
        for name, operation in hosting.operations.items():
            if name not in answers:
                self.operations._add(operation)
                continue
            answer = answers[name]
            if operation.kind == "watch":
                self.operations.watch(operation.request_type, self._events(answer))
            else:
                self.operations.quick(operation.request_type, lambda request, caller, answer=answer: answer)

    def _events(self, events: Any) -> Any:
        @asynccontextmanager
        async def watch(request: Any, caller: Caller) -> Any:
            async def each() -> Any:
                for event in events:
                    yield event

            yield each()

        return watch


@pytest.mark.parametrize(
    "lie",
    [
        {"lease_id": "another"},
        {"fence": FENCE + 1},
        {"digest": b"\0" * 32},
        {"state": "exited"},
        {"exit": JobExit(kind="code", code=0)},
        {"dropped": 1},
    ],
    ids=str,
)
async def test_a_state_that_does_not_fit_the_start_is_not_believed(hosting: Hosting, lie: dict[str, Any]) -> None:
    status = await hosting.jobs.start(LEASE, FENCE, JOB, holder=HOLDER)
    hosting.operations = Lying(hosting, job_start=JobAnswer(job=msgspec.structs.replace(status, **lie))).operations
    async with hosting.client() as jobs:
        with pytest.raises(AnswerError):
            await jobs.start(LEASE, fence=FENCE, job=JOB)


@pytest.mark.parametrize(
    "pieces",
    [
        [JobOutput(offset=1, data=b"")],
        [JobOutput(offset=0, data=b""), JobOutput(offset=0, data=b"ab"), JobOutput(offset=1, data=b"b")],
        [JobOutput(offset=0, data=b""), JobOutput(offset=5, data=b"ab", dropped=4)],
    ],
    ids=["begin", "overlap", "gap"],
)
async def test_output_out_of_order_is_not_believed(hosting: Hosting, pieces: list[JobOutput]) -> None:
    hosting.operations = Lying(hosting, job_logs=pieces).operations
    async with hosting.client() as jobs:
        with pytest.raises(AnswerError):
            await read(jobs)


async def test_a_watch_that_ends_before_the_job_is_no_exit(hosting: Hosting) -> None:
    status = await hosting.jobs.start(LEASE, FENCE, JOB, holder=HOLDER)
    hosting.operations = Lying(hosting, job_watch=[JobAnswer(job=status)]).operations
    async with hosting.client() as jobs:
        with pytest.raises(ConnectionLostError):
            await jobs.wait(LEASE)


# Rules and grants


async def test_one_rule_closes_all_operations_on_jobs(hosting: Hosting) -> None:
    tokens = TokenChecker("provider", {}, frozenset())
    hosting.access = Access(AccessRules(operations={"job_start": NOBODY}), tokens)
    async with hosting.client() as jobs:
        for call in (
            jobs.start(LEASE, fence=FENCE, job=JOB), jobs.status(LEASE), jobs.stop(LEASE), jobs.wait(LEASE), read(jobs),
        ):  # fmt: skip
            assert await code_of(call) == "forbidden"
    hosting.access = Access(AccessRules(operations={"job_start": AccessRule(peers=frozenset({HOLDER}))}), tokens)
    async with hosting.client() as jobs:
        assert await code_of(jobs.status(LEASE)) == "no_job"


class Revoked:
    """Every grant is revoked."""

    def check_revoked(self, accounts: object) -> None:
        assert accounts == ("grant",)
        raise AccessError("revoked", code="token_revoked")


class Ledger:
    """Has one lease, which depends on a grant."""

    def lease(self, lease_id: str) -> Any:
        return SimpleNamespace(holder=HOLDER, accounts=("grant",))


async def test_no_job_is_started_with_a_revoked_grant(hosting: Hosting) -> None:
    hosting.operations = job_operations(hosting.jobs, manager=Ledger(), tokens=Revoked())
    async with hosting.client() as jobs, hosting.client("stranger") as others:
        assert await code_of(jobs.start(LEASE, fence=FENCE, job=JOB)) == "token_revoked"
        # A stranger does not learn it.
        assert await code_of(others.start(LEASE, fence=FENCE, job=JOB)) == "not_holder"
