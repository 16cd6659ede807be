"""Jobs of a reservation: started everywhere or nowhere, followed through lost connections, reached through tunnels."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import pytest
import trio
import trio.testing
from msgspec.structs import replace

from dms_peer.errors import PeerError
from dms_peer.requesting.errors import JobRequestError, ReservationError
from dms_peer.requesting.node_jobs import NodeJob
from dms_protocols.errors import BusyError, JobError
from dms_protocols.jobs.service import job_limits, job_operations
from dms_protocols.jobs.tunnels import TunnelsInUse, serve_tunnel
from dms_protocols.messages.job import Execution, Job, JobExit, JobPort
from dms_protocols.protocol_ids import JOB_PROTOCOL, TUNNEL_PROTOCOL
from dms_protocols.rpc.limits import ServiceLimits
from dms_resources.demands import PortDemand
from dms_resources.ledger.leases import LeaseState
from dms_simulation.market import open_market
from dms_simulation.providers import provider_operations, simulated_machine
from memory_jobs import MemoryJob, MemoryJobs

JOB = Job(execution=Execution(type="memory", cmd=("serve",)), ports=(JobPort(private=80),))


class Allocated(Mapping[str, tuple[int, str]]):
    """The allocated leases of a ledger: fence and holder by id."""

    def __init__(self, manager: Any) -> None:
        self._manager = manager

    def __getitem__(self, lease_id: str) -> tuple[int, str]:
        lease = self._manager.lease(lease_id)
        if lease is None or lease.state is not LeaseState.ALLOCATED:
            raise KeyError(lease_id)
        return lease.fence, lease.holder

    def __iter__(self) -> Iterator[str]:
        return iter(lease.lease_id for lease in self._manager.leases())

    def __len__(self) -> int:
        return len(self._manager.leases())


@pytest.fixture
def start(market: Any, nursery: trio.Nursery) -> Any:
    """Starts providers that run jobs in memory; returns their jobs by peer id."""

    async def providers(count: int, on_start: Any = lambda job: None) -> dict[str, MemoryJobs]:
        found = {}
        for number in range(count):
            peer_id = f"p{number}"
            manager = await market.start(peer_id, simulated_machine(cores=4))
            jobs = found[peer_id] = MemoryJobs(Allocated(manager), nursery, on_start)  # type: ignore[arg-type]
            host(market, peer_id, jobs)
        return found

    return providers


def host(market: Any, peer_id: str, jobs: MemoryJobs) -> None:
    tunnels = TunnelsInUse()
    operations = provider_operations(market.manager(peer_id), peer_id, clock=market.clock)
    operations[JOB_PROTOCOL] = job_operations(jobs)
    operations[TUNNEL_PROTOCOL] = partial(serve_tunnel, connect=jobs.connect, tunnels=tunnels)
    market.network.add_host(peer_id, operations, limits=job_limits(ServiceLimits()))


def only(jobs: dict[str, MemoryJobs]) -> MemoryJob:
    (found,) = [job for one in jobs.values() for job in one.jobs.values()]
    return found


async def test_a_job_is_started_followed_and_waited_for(
    market: Any, autojump_clock: Any, start: Any, nursery: trio.Nursery
) -> None:
    jobs = await start(1)
    async with market.requester().reserve(market.ensemble("worker", cores=2)) as reservation:
        job = await reservation.start("worker", JOB)
        assert reservation.leases["worker"].state is LeaseState.ALLOCATED
        assert (job.node_id, job.peer_id, job.last.state) == ("worker", "p0", "running")

        async def work() -> None:
            for word in (b"one ", b"two ", b"three"):
                await trio.sleep(100)
                only(jobs).write(word)
            only(jobs).end(7)

        nursery.start_soon(work)
        async with job.logs() as pieces:
            assert b"".join([piece.data async for piece in pieces]) == b"one two three"
        assert (await job.wait()).exit == JobExit(kind="code", code=7)
        async with job.logs(offset=4, follow=False) as pieces:
            assert b"".join([piece.data async for piece in pieces]) == b"two three"
    assert market.manager("p0").leases() == ()


async def test_output_goes_on_after_a_lost_connection(
    market: Any, autojump_clock: Any, start: Any, nursery: trio.Nursery
) -> None:
    jobs = await start(1)
    written = bytes(range(256)) * 4
    async with market.requester().reserve(market.ensemble("worker")) as reservation:
        job = await reservation.start("worker", JOB)

        async def work() -> None:
            for position in range(0, len(written), 64):
                await trio.sleep(1)
                only(jobs).write(written[position : position + 64])
                if position % 256 == 0:
                    market.network.cut("requester", "p0")
            only(jobs).end()

        nursery.start_soon(work)
        received = bytearray()
        async with job.logs() as pieces:
            async for piece in pieces:
                assert (piece.offset, piece.dropped) == (len(received), 0)
                received += piece.data
        assert received == written


async def test_waiting_outlives_a_provider_that_restarts(
    market: Any, autojump_clock: Any, start: Any, nursery: trio.Nursery
) -> None:
    jobs = await start(1)
    async with market.requester().reserve(market.ensemble("worker")) as reservation:
        job = await reservation.start("worker", JOB)

        async def restart() -> None:
            market.network.stop_host("p0")
            await trio.sleep(20)
            host(market, "p0", jobs["p0"])
            await trio.sleep(5)
            only(jobs).end(1)

        nursery.start_soon(restart)
        assert (await job.wait()).exit == JobExit(kind="code", code=1)


async def test_a_provider_that_stays_away_is_given_up(market: Any, autojump_clock: Any, start: Any) -> None:
    jobs = await start(1)
    async with market.requester().reserve(market.ensemble("worker"), ttl=3600) as reservation:
        job = await reservation.start("worker", JOB)
        market.network.stop_host("p0")
        began = trio.current_time()
        with pytest.raises(JobRequestError):
            await job.wait()
        assert 120 <= trio.current_time() - began < 200
        host(market, "p0", jobs["p0"])


async def test_a_refusal_is_raised_at_once_and_what_passes_is_tried_again(
    market: Any, autojump_clock: Any, start: Any
) -> None:
    jobs = await start(1)
    async with market.requester().reserve(market.ensemble("worker")) as reservation:
        with pytest.raises(JobRequestError) as caught:
            await reservation.start("worker", Job(execution=Execution(type="docker", image="a:1")))
        assert (caught.value.code, caught.value.hint) == ("no_executor", "ask for memory")
        accepted, said = (
            jobs["p0"].start,
            [BusyError("later", retry_after=3), JobError("down", code="executor_unavailable")],
        )

        async def reluctant(*arguments: Any, **options: Any) -> Any:
            if said:
                raise said.pop()
            return await accepted(*arguments, **options)

        jobs["p0"].start = reluctant  # type: ignore[method-assign]
        began = trio.current_time()
        assert (await reservation.start("worker", JOB)).last.state == "running"
        assert trio.current_time() - began >= 3


async def test_a_provider_without_jobs_says_so(market: Any, autojump_clock: Any) -> None:
    await market.start("p0", simulated_machine(cores=4))
    async with market.requester().reserve(market.ensemble("worker")) as reservation:
        with pytest.raises(JobRequestError) as caught:
            await reservation.start("worker", JOB)
        assert caught.value.code == "protocol_not_supported"
        assert "runs no jobs" in caught.value.message


async def test_stopping_leaves_the_lease(market: Any, autojump_clock: Any, start: Any) -> None:
    await start(1)
    async with market.requester().reserve(market.ensemble("worker")) as reservation:
        job = await reservation.start("worker", JOB)
        assert (await job.stop(grace=1)).exit.kind == "stopped"
        assert (await job.status()).state == "exited"
        assert len(market.manager("p0").leases()) == 1


# Everywhere or nowhere


async def test_all_jobs_run_before_any_is_told(market: Any, autojump_clock: Any, start: Any) -> None:
    jobs = await start(3)
    seen = []
    async with market.requester().reserve(market.ensemble("a", "b", "c", cores=3)) as reservation:
        started = await reservation.start_all(
            dict.fromkeys("abc", JOB), on_change=lambda node_id, status: seen.append((node_id, status.state))
        )
        assert list(started) == ["a", "b", "c"]
        assert sorted(seen) == [(node_id, "running") for node_id in "abc"]
        assert {len(one.jobs) for one in jobs.values()} == {1}


async def test_one_job_that_fails_to_start_takes_all_back(market: Any, autojump_clock: Any, start: Any) -> None:
    def fail_the_second(job: MemoryJob) -> None:
        started.append(job)
        if len(started) == 2:
            job.move("exited", JobExit(kind="failed", message="no such image"))
        else:
            job.move("pulling")

    started: list[MemoryJob] = []
    await start(3, fail_the_second)
    with pytest.raises(ReservationError) as caught:
        async with market.requester().reserve(market.ensemble("a", "b", "c", cores=3)) as reservation:
            await reservation.start_all(dict.fromkeys("abc", JOB))
    assert caught.value.code == "not_started"
    assert "no such image" in caught.value.message
    assert [market.manager(f"p{number}").leases() for number in range(3)] == [()] * 3


async def test_dynamic_ports_are_those_of_the_lease(market: Any, autojump_clock: Any, start: Any) -> None:
    jobs = await start(1)
    (node,) = market.ensemble("web").request
    node = replace(node, public_ports=PortDemand(static=(16400,), dynamic=2))
    document = replace(JOB, ports=(JobPort(private=80, public=16400),))
    async with market.requester().reserve(market.ensemble(node)) as reservation:
        await reservation.start("web", NodeJob(job=document, dynamic=(81, 82)))
        leased = reservation.leases["web"].ports
        ports = {port.private: port.public for port in only(jobs).job.ports}
        assert ports[80] == 16400
        assert {ports[81], ports[82]} == set(leased) - {16400}
        with pytest.raises(ValueError, match="2 ports for 3"):
            await reservation.start("web", NodeJob(job=document, dynamic=(81, 82, 83)))


# Forwarding


async def shout(stream: Any) -> None:
    async with stream:
        data = bytearray()
        while piece := await stream.receive_some():
            data += piece
        await stream.send_all(bytes(data).upper())
        await stream.send_eof()


async def ask(port: int, question: bytes) -> bytes:
    async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
        await stream.send_all(question)
        await stream.send_eof()
        return b"".join([piece async for piece in stream])


async def test_a_port_of_a_job_is_forwarded(tmp_path: Any, nursery: trio.Nursery) -> None:
    async with open_market(tmp_path, random.Random(1)) as market:
        manager = await market.start("p0", simulated_machine(cores=4))
        jobs = MemoryJobs(Allocated(manager), nursery, lambda job: None)  # type: ignore[arg-type]
        host(market, "p0", jobs)
        with trio.fail_after(30):
            async with market.requester().reserve(market.ensemble("web")) as reservation:
                job = await reservation.start("web", JOB)
                failures: list[str] = []
                async with job.forward(80, on_failure=failures.append) as forward:
                    # Nothing listens yet: that connection ends, and the forward goes on.
                    with pytest.raises(trio.BrokenResourceError):
                        await ask(forward.port, b"too early")
                    assert failures == ["nothing listens there (port_closed)"]
                    only({"p0": jobs}).listeners[80] = shout
                    async with trio.open_nursery() as inner:
                        answers: list[bytes] = []

                        async def one(number: int) -> None:
                            answers.append(await ask(forward.port, b"question %d " % number * 5000))

                        for number in range(8):
                            inner.start_soon(one, number)
                    assert sorted(answers) == [b"QUESTION %d " % number * 5000 for number in range(8)]
                    with pytest.raises(PeerError) as caught:
                        async with job.forward(80, local_port=forward.port):
                            pass
                    assert caught.value.code == "listen_failed"
                with pytest.raises(OSError, match=r"."):
                    await ask(forward.port, b"over")
