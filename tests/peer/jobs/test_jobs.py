"""Jobs from their start to their end, and across crashes of the peer at every step."""

from __future__ import annotations

from dataclasses import replace as changed
from typing import Any

import pytest
import trio
from msgspec.structs import replace

from dms_peer.jobs.manager import JobManager
from dms_peer.jobs.settings import JobSettings
from dms_protocols.errors import JobError
from dms_protocols.messages.job import Execution, Job, JobExit, JobFile, JobPort, JobStatus
from dms_resources.errors import NotAllocatedError, NotHolderError, StaleFenceError
from dms_resources.ledger.leases import LeaseState
from job_engine import Engine, Running

HOLDER = "12D3KooWBobBobBobBobBobBobBobBobBobBobBobBobBobBobBobB1"
DONE = JobExit(kind="code", code=0)


async def until(jobs: JobManager, state: str, lease_id: str = "lease") -> JobStatus:
    async with jobs.watch(lease_id, holder=HOLDER) as changes:
        async for status in changes:
            if status.state == state:
                return status
    raise AssertionError(f"it never was {state}")


async def output(jobs: JobManager, *, follow: bool = False, offset: int = 0) -> bytes:
    async with jobs.logs("lease", holder=HOLDER, offset=offset, follow=follow) as pieces:
        return b"".join([piece.data async for piece in pieces])


async def until_free(peer: Any) -> None:
    async with peer.manager.watch() as changes:
        async for _ in changes:
            if not peer.manager.leases():
                return


async def test_a_job_runs_writes_and_exits(peer: Any, engine: Engine, job: Job, mock_clock: Any) -> None:
    mock_clock.autojump_threshold = 0
    async with peer.up():
        lease = await peer.allocate()
        first = await peer.jobs.start("lease", lease.fence, job, holder=HOLDER)
        assert (first.state, first.executor, first.fence) == ("pending", "docker", lease.fence)
        running = await until(peer.jobs, "running")
        (name,) = engine.running
        assert engine.jobs[name].spec.resources == lease.resources
        engine.write(name, b"hello\n")
        engine.write(name, b"oh\n", "stderr")
        engine.finish(name, JobExit(kind="code", code=7))
        assert await output(peer.jobs, follow=True) == b"hello\noh\n"
        done = await until(peer.jobs, "exited")
        assert done.exit == JobExit(kind="code", code=7)
        assert done.output == 9
        assert done.since >= running.since
        assert peer.manager.lease("lease").state is LeaseState.ALLOCATED
        await trio.sleep(1)
        assert engine.jobs == {}
        await peer.manager.release("lease", holder=HOLDER)
        # Nothing of it is left, so it is free at once.
        assert peer.manager.leases() == ()


async def test_a_repeated_start_is_the_same_job_and_another_is_refused(
    peer: Any, engine: Engine, job: Job, mock_clock: Any
) -> None:
    mock_clock.autojump_threshold = 0
    async with peer.up():
        lease = await peer.allocate()
        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(lambda: peer.jobs.start("lease", lease.fence, job, holder=HOLDER))
        await until(peer.jobs, "running")
        again = await peer.jobs.start("lease", lease.fence, job, holder=HOLDER)
        assert again.state == "running"
        other = replace(job, execution=replace(job.execution, cmd=("rm", "-rf")))
        with pytest.raises(JobError) as caught:
            await peer.jobs.start("lease", lease.fence, other, holder=HOLDER)
        assert caught.value.code == "job_conflict"
        assert sum(engine.starts.values()) == 1
        engine.finish(*engine.running, DONE)
        await until(peer.jobs, "exited")
        # Also when it has exited: nobody gets a second run for one start.
        assert (await peer.jobs.start("lease", lease.fence, job, holder=HOLDER)).exit == DONE
        assert sum(engine.starts.values()) == 1


async def test_only_the_holder_of_an_allocation_may_do_anything(
    peer: Any, engine: Engine, job: Job, mock_clock: Any
) -> None:
    mock_clock.autojump_threshold = 0
    async with peer.up():
        lease = await peer.allocate()
        with pytest.raises(NotHolderError):
            await peer.jobs.start("lease", lease.fence, job, holder="another")
        with pytest.raises(StaleFenceError):
            await peer.jobs.start("lease", lease.fence - 1, job, holder=HOLDER)
        with pytest.raises(NotAllocatedError):
            await peer.jobs.start("unknown", lease.fence, job, holder=HOLDER)
        await peer.jobs.start("lease", lease.fence, job, holder=HOLDER)
        await until(peer.jobs, "running")
        for attempt in (
            lambda: peer.jobs.stop("lease", holder="another", grace=0),
            lambda: peer.jobs.connect("lease", port=80, holder="another"),
        ):
            with pytest.raises((JobError, NotHolderError)):
                await attempt()
        with pytest.raises(JobError) as caught:
            peer.jobs.status("lease", holder="another")
        # As if it were not there.
        assert caught.value.code == "no_job"


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"execution": Execution(type="firecracker")}, "no_executor"),
        ({"ports": (JobPort(private=80, public=1),)}, "job_refused"),
    ],
)
async def test_what_the_lease_or_the_peer_does_not_have_is_refused(
    peer: Any, job: Job, change: dict[str, Any], code: str
) -> None:
    async with peer.up():
        lease = await peer.allocate()
        with pytest.raises(JobError) as caught:
            await peer.jobs.start("lease", lease.fence, replace(job, **change), holder=HOLDER)
        assert caught.value.code == code
        assert peer.jobs.jobs() == []
        # The lease is as it was: another job may come.
        assert (await peer.jobs.start("lease", lease.fence, job, holder=HOLDER)).state == "pending"


async def test_what_the_owner_does_not_allow_is_refused_before_anything_is_written(
    peer: Any, engine: Engine, job: Job
) -> None:
    engine.refuses = "images of example.org are not allowed"
    async with peer.up():
        lease = await peer.allocate()
        with pytest.raises(JobError, match="not allowed") as caught:
            await peer.jobs.start("lease", lease.fence, job, holder=HOLDER)
        assert caught.value.code == "job_refused"
        assert [one.name for one in (peer.path / "jobs").iterdir()] == ["id"]


async def test_a_stop_terminates_once_and_kills_when_the_time_is_over(
    peer: Any, engine: Engine, job: Job, mock_clock: Any
) -> None:
    mock_clock.autojump_threshold = 0
    engine.stubborn = True
    async with peer.up():
        lease = await peer.allocate()
        await peer.jobs.start("lease", lease.fence, job, holder=HOLDER)
        await until(peer.jobs, "running")
        running = engine.jobs[engine.running[0]]
        began = trio.current_time()
        assert (await peer.jobs.stop("lease", holder=HOLDER, grace=20)).state == "ending"
        # A repeat gives no more time.
        await trio.sleep(5)
        await peer.jobs.stop("lease", holder=HOLDER, grace=3600)
        done = await until(peer.jobs, "exited")
        assert running.signals == [15, 9]
        assert 20 <= trio.current_time() - began < 21
        assert done.exit == JobExit(kind="stopped", signal=9)
        assert peer.manager.lease("lease").state is LeaseState.ALLOCATED


async def test_a_grace_that_passed_while_the_peer_was_away_is_over(
    peer: Any, engine: Engine, job: Job, mock_clock: Any
) -> None:
    mock_clock.autojump_threshold = 0
    engine.stubborn = True
    async with peer.up():
        lease = await peer.allocate()
        await peer.jobs.start("lease", lease.fence, job, holder=HOLDER)
        await until(peer.jobs, "running")
        engine.down = True
        await peer.jobs.stop("lease", holder=HOLDER, grace=5)
    await trio.sleep(60)
    engine.down = False
    running = engine.jobs[engine.running[0]]
    # As an engine says it that knows exit codes alone.
    engine.killed = JobExit(kind="code", code=137)
    began = trio.current_time()
    async with peer.up():
        done = await until(peer.jobs, "exited")
        assert done.exit == JobExit(kind="stopped", code=137)
        assert running.signals == [9]
        assert trio.current_time() - began < 1


@pytest.mark.parametrize("ended", ["release", "evict", "expire"])
async def test_a_lease_that_ends_ends_its_job_and_is_free_when_the_job_is_gone(
    peer: Any, engine: Engine, job: Job, mock_clock: Any, ended: str
) -> None:
    mock_clock.autojump_threshold = 0
    engine.stubborn = True
    async with peer.up():
        before = peer.manager.get_free_resources()
        lease = await peer.allocate()
        held = peer.manager.get_free_resources()
        await peer.jobs.start("lease", lease.fence, job, holder=HOLDER)
        await until(peer.jobs, "running")
        if ended == "release":
            await peer.manager.release("lease", holder=HOLDER)
        elif ended == "evict":
            await peer.manager.evict(["lease"], reason="a game tonight")
        else:
            await trio.sleep(901)
        assert peer.manager.get_free_resources() == held
        assert [one.state for one in peer.manager.leases()] == [LeaseState.ENDING]
        await until_free(peer)
        assert engine.jobs == {}
        assert peer.manager.get_free_resources() == before
        status = peer.jobs.status("lease", holder=HOLDER)
        assert status.exit is not None
        kinds = {"release": "stopped", "evict": "evicted", "expire": "expired"}
        assert status.exit.kind == kinds[ended]
        if ended == "evict":
            assert status.exit.message == "a game tonight"


async def test_a_job_that_is_evicted_while_it_is_prepared_never_runs(
    peer: Any, engine: Engine, job: Job, mock_clock: Any
) -> None:
    mock_clock.autojump_threshold = 0
    engine.pulling = trio.Event()
    async with peer.up():
        lease = await peer.allocate()
        await peer.jobs.start("lease", lease.fence, job, holder=HOLDER)
        pulling = await until(peer.jobs, "pulling")
        await trio.testing.wait_all_tasks_blocked()
        assert peer.jobs.status("lease", holder=HOLDER).reason == "pulling localhost/tiny:1"
        await peer.manager.evict(["lease"])
        await until_free(peer)
        assert (await until(peer.jobs, "exited")).exit.kind == "evicted"  # type: ignore[union-attr]
        assert not engine.starts
        assert pulling.exit is None


async def test_an_engine_that_does_not_answer_ends_and_frees_nothing(
    peer: Any, engine: Engine, job: Job, mock_clock: Any
) -> None:
    mock_clock.autojump_threshold = 0
    async with peer.up():
        lease = await peer.allocate()
        await peer.jobs.start("lease", lease.fence, job, holder=HOLDER)
        await until(peer.jobs, "running")
        held = peer.manager.get_free_resources()
        engine.down = True
        engine.jobs[engine.running[0]].tell()
        await peer.manager.evict(["lease"])
        await trio.sleep(3600)
        status = peer.jobs.status("lease", holder=HOLDER)
        assert (status.state, status.reason) == ("ending", "the engine does not answer")
        assert peer.manager.get_free_resources() == held
        engine.down = False
        await until_free(peer)
        assert peer.jobs.status("lease", holder=HOLDER).exit.kind == "evicted"


async def test_a_job_that_vanished_is_lost(peer: Any, engine: Engine, job: Job, mock_clock: Any) -> None:
    mock_clock.autojump_threshold = 0
    async with peer.up():
        lease = await peer.allocate()
        await peer.jobs.start("lease", lease.fence, job, holder=HOLDER)
        await until(peer.jobs, "running")
        engine.jobs.pop(engine.running[0]).tell()
        done = await until(peer.jobs, "exited")
        assert done.exit is not None
        assert done.exit.kind == "lost"


async def test_a_job_that_asked_for_it_releases_its_lease(peer: Any, engine: Engine, job: Job, mock_clock: Any) -> None:
    mock_clock.autojump_threshold = 0
    async with peer.up():
        lease = await peer.allocate()
        await peer.jobs.start("lease", lease.fence, replace(job, remove=True), holder=HOLDER)
        await until(peer.jobs, "running")
        engine.finish(*engine.running, DONE)
        await until_free(peer)
        assert peer.jobs.status("lease", holder=HOLDER).exit == DONE


async def test_what_runs_without_a_lease_is_ended_after_a_minute_and_others_are_left_alone(
    peer: Any, engine: Engine, job: Job, mock_clock: Any
) -> None:
    mock_clock.autojump_threshold = 0
    async with peer.up():
        lease = await peer.allocate()
        await peer.jobs.start("lease", lease.fence, job, holder=HOLDER)
        await until(peer.jobs, "running")
        (name,) = engine.running
        stranger = engine.jobs[name]
        for key, change in (
            ("stranger", {}),
            ("another home's", {"home_id": "x"}),
            ("another peer's", {"peer_id": "y"}),
        ):
            engine.jobs[key] = Running(changed(stranger.found, name=key), changed(stranger.spec, **change))
        await trio.sleep(31)
        assert set(engine.jobs) == {name, "stranger", "another home's", "another peer's"}
        await trio.sleep(60)
        assert set(engine.jobs) == {name, "another home's", "another peer's"}


async def test_after_a_restart_a_job_is_found_again_with_its_whole_output(
    peer: Any, engine: Engine, job: Job, mock_clock: Any
) -> None:
    mock_clock.autojump_threshold = 0
    async with peer.up():
        lease = await peer.allocate()
        await peer.jobs.start("lease", lease.fence, job, holder=HOLDER)
        await until(peer.jobs, "running")
        (name,) = engine.running
        engine.write(name, b"before ")
        await trio.testing.wait_all_tasks_blocked()
    assert engine.running == [name]
    engine.write(name, b"meanwhile ")
    async with peer.up():
        assert (await until(peer.jobs, "running")).fence == lease.fence
        engine.write(name, b"after")
        engine.finish(name, DONE)
        await until(peer.jobs, "exited")
        assert await output(peer.jobs) == b"before meanwhile after"
        assert await output(peer.jobs, offset=7) == b"meanwhile after"
    assert engine.starts == {name: 1}


async def test_output_that_was_followed_with_a_gap_is_whole_at_the_end(
    peer: Any, engine: Engine, job: Job, mock_clock: Any
) -> None:
    mock_clock.autojump_threshold = 0
    engine.lossy = True
    async with peer.up():
        lease = await peer.allocate()
        await peer.jobs.start("lease", lease.fence, job, holder=HOLDER)
        await until(peer.jobs, "running")
        (name,) = engine.running
        for line in (b"one\n", b"two\n", b"three\n"):
            engine.write(name, line)
            await trio.sleep(1)
        assert await output(peer.jobs) == b"one\nthree\n"
        engine.finish(name, DONE)
        done = await until(peer.jobs, "exited")
        assert await output(peer.jobs) == b"one\ntwo\nthree\n"
        assert (done.output, done.dropped) == (14, 0)


async def test_a_job_whose_executor_is_no_longer_named_keeps_its_lease(
    peer: Any, engine: Engine, job: Job, mock_clock: Any
) -> None:
    mock_clock.autojump_threshold = 0
    async with peer.up():
        lease = await peer.allocate()
        await peer.jobs.start("lease", lease.fence, job, holder=HOLDER)
        await until(peer.jobs, "running")
    peer.executors = ()
    async with peer.up():
        await peer.manager.evict(["lease"])
        await trio.sleep(100)
        assert [one.state for one in peer.manager.leases()] == [LeaseState.ENDING]
        assert "no executor docker any more" in peer.jobs.status("lease", holder=HOLDER).reason
    peer.executors = ("docker",)
    async with peer.up():
        await until_free(peer)
        assert engine.jobs == {}


async def test_jobs_of_ended_leases_are_forgotten_after_a_while_and_beyond_a_number(
    peer: Any, engine: Engine, job: Job, mock_clock: Any
) -> None:
    mock_clock.autojump_threshold = 0
    peer.settings = JobSettings(retained=2, retention=1000)
    async with peer.up():
        for number in range(4):
            lease = await peer.allocate(f"lease-{number}")
            await peer.jobs.start(f"lease-{number}", lease.fence, replace(job, remove=True), holder=HOLDER)
            await until(peer.jobs, "running", f"lease-{number}")
            engine.finish(*engine.running, DONE)
            await until_free(peer)
            await trio.sleep(31)
        assert sorted(one.lease_id for one in peer.jobs.jobs()) == ["lease-2", "lease-3"]
        await trio.sleep(1100)
        assert peer.jobs.jobs() == []
        assert [one.name for one in (peer.path / "jobs").iterdir()] == ["id"]


def test_documents_are_bounded() -> None:
    for broken in (
        lambda: Execution(type="docker", environment=("NO_VALUE",)),
        lambda: Execution(type="docker", environment=("A*=1",)),
        lambda: Execution(type="docker", environment=("A=\0",)),
        lambda: JobFile(name="../x", content=b""),
        lambda: JobFile(name=".hidden", content=b""),
        lambda: JobFile(name="", content=b""),
        lambda: Job(execution=Execution(type="x"), files=(JobFile(name="a", content=b""),) * 2),
        lambda: Job(execution=Execution(type="x"), ports=(JobPort(private=1, public=9), JobPort(private=2, public=9))),
        lambda: Job(
            execution=Execution(type="x"),
            files=tuple(JobFile(name=str(number), content=bytes(600_000)) for number in range(2)),
        ),
    ):
        with pytest.raises(ValueError):  # noqa: PT011 - each has its own text
            broken()


@pytest.mark.parametrize("how", ["exits", "stops", "evicted"])
async def test_killed_at_any_step_the_peer_runs_the_job_once_and_frees_it_once(
    peer: Any, engine: Engine, job: Job, mock_clock: Any, how: str, tmp_path: Any
) -> None:
    mock_clock.autojump_threshold = 0
    deaths = 0
    for die_at in range(1, 200):
        engine.jobs.clear()
        engine.starts.clear()
        peer.path = tmp_path / str(die_at)
        peer.path.mkdir()
        peer.steps, peer.die_at = 0, float("inf")
        async with peer.up():
            lease = await peer.allocate()
            free = peer.manager.get_free_resources()
            peer.steps, peer.die_at = 0, die_at
            await live_through(peer, engine, job, lease.fence, how)
        died = peer.scope.cancelled_caught
        peer.die_at = float("inf")
        async with peer.up():
            assert peer.manager.get_free_resources().cpu.cores <= free.cpu.cores or not engine.jobs
            # The requester repeats what it does not know to have happened.
            await live_through(peer, engine, job, lease.fence, how)
            await until_free(peer)
            status = peer.jobs.status("lease", holder=HOLDER)
            assert status.exit is not None
            assert engine.jobs == {}
            assert sum(engine.starts.values()) <= 1, engine.starts
            if how == "exits":
                assert (status.exit, await output(peer.jobs)) == (DONE, b"whole output")
        deaths += died
        if not died:
            break
    assert deaths > 10


async def live_through(peer: Any, engine: Engine, job: Job, fence: int, how: str) -> None:
    """What requester, job and owner do, as far as it has not been done."""
    document = replace(job, remove=how != "evicted")
    lease = peer.manager.lease("lease")
    if lease is None or lease.state is not LeaseState.ALLOCATED:
        return
    await peer.jobs.start("lease", fence, document, holder=HOLDER)
    async with peer.jobs.watch("lease", holder=HOLDER) as changes:
        async for status in changes:
            if status.state != "running":
                continue
            for name in engine.running:
                if not engine.jobs[name].output:
                    engine.write(name, b"whole output")
                if how == "exits":
                    engine.finish(name, DONE)
            if how == "stops":
                await peer.jobs.stop("lease", holder=HOLDER, grace=5)
            elif how == "evicted":
                await peer.manager.evict(["lease"])
    await trio.sleep(40)
