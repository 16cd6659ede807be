"""Jobs and tunnels between two real hosts."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trio

from dms_host import host_addresses, open_host
from dms_host.keys.identity import new_identity
from dms_peer.connections.pool import open_connections
from dms_peer.serving import serve
from dms_protocols.errors import RemoteError
from dms_protocols.jobs.client import JobClient
from dms_protocols.jobs.tunnels import TunnelsInUse, open_tunnel
from dms_protocols.messages.job import Execution, Job, JobFile, JobPort
from dms_protocols.protocol_ids import JOB_PROTOCOL, TUNNEL_PROTOCOL
from dms_protocols.rpc.counts import ServiceCounts
from dms_resources.components import CPU, RAM, Disk, MachineResources
from dms_resources.manager import open_manager
from dms_resources.units import GIB, Cores
from memory_jobs import MemoryJobs

LOOPBACK = "/ip4/127.0.0.1/tcp/0"
JOB = Job(
    execution=Execution(type="memory"),
    ports=(JobPort(private=80),),
    files=(JobFile(name="data", content=b"\0" * 900_000),),
)


class Pair:
    """A provider with jobs in memory, and a requester that is connected to it."""

    def __init__(self, pool: Any, jobs: MemoryJobs, tunnels: TunnelsInUse, counts: ServiceCounts, address: str) -> None:
        self.pool, self.jobs, self.tunnels, self.counts, self.address = pool, jobs, tunnels, counts, address
        self.peer_id = address.rpartition("/")[2]

    def stream(self) -> Any:
        return self.pool.open_stream(self.peer_id, TUNNEL_PROTOCOL, [self.address])

    async def start(self) -> Any:
        async with self.pool.client(self.peer_id, JOB_PROTOCOL, [self.address]) as client:
            await JobClient(client).start("lease", fence=1, job=JOB)
        return self.jobs.jobs["lease"]


@pytest.fixture
async def pair(tmp_path: Path, nursery: trio.Nursery) -> AsyncIterator[Pair]:
    """Two hosts on loopback."""
    machine = MachineResources(
        cpu=CPU(cores=Cores(8000)), ram=RAM(size=8 * GIB), disk=Disk(size=GIB), gpus=(), simulated=True
    )
    requester = new_identity()
    tunnels, counts = TunnelsInUse(), ServiceCounts()
    jobs = MemoryJobs({"lease": (1, requester.peer_id)}, nursery, lambda job: None)
    async with (
        open_manager(tmp_path / "ledger.db", machine) as manager,
        open_host(new_identity(), [LOOPBACK]) as host,
        serve(host, manager, jobs=jobs, tunnels=tunnels, counts=counts),
        open_host(requester, []) as other,
        open_connections(other) as pool,
    ):
        yield Pair(pool, jobs, tunnels, counts, host_addresses(host)[0])


async def read_all(stream: Any) -> bytes:
    data = bytearray()
    while piece := await stream.receive_some():
        data += piece
    return bytes(data)


async def test_a_job_with_large_files_starts_and_its_port_is_reached(pair: Pair) -> None:
    async def shout(stream: Any) -> None:
        async with stream:
            await stream.send_all((await read_all(stream)).upper())
            await stream.send_eof()

    with trio.fail_after(30):
        job = await pair.start()
        assert job.job == JOB
        job.listeners[80] = shout
        question = b"question " * 200_000
        async with pair.stream() as stream, trio.open_nursery() as nursery:
            tunnel = await open_tunnel(stream, "lease", 80)

            async def ask() -> None:
                await tunnel.send_all(question)
                await tunnel.send_eof()

            nursery.start_soon(ask)
            assert await read_all(tunnel) == question.upper()
        assert pair.tunnels.sent == pair.tunnels.received == len(question)


async def test_a_cut_connection_of_the_job_is_cut_for_the_requester(pair: Pair) -> None:
    class Cut(trio.abc.ReceiveStream):
        async def receive_some(self, max_bytes: int | None = None) -> bytes:
            await trio.lowlevel.checkpoint()
            raise trio.BrokenResourceError("cut")

        async def aclose(self) -> None:
            await trio.lowlevel.checkpoint()

    async def quiet(stream: Any) -> None:
        await trio.sleep_forever()

    with trio.fail_after(30):
        job = await pair.start()
        job.listeners[80] = quiet
        connect = pair.jobs.reach

        async def cut(lease_id: str, *, holder: str, port: int) -> Any:
            found = await connect(lease_id, holder=holder, port=port)
            return trio.StapledStream(found.send_stream, Cut())

        pair.jobs.reach = cut
        async with pair.stream() as stream:
            tunnel = await open_tunnel(stream, "lease", 80)
            with pytest.raises(trio.BrokenResourceError):
                await read_all(tunnel)


async def test_more_tunnels_than_a_lease_may_have_are_refused(pair: Pair) -> None:
    async def quiet(stream: Any) -> None:
        async with stream:
            await read_all(stream)

    with trio.fail_after(60):
        (await pair.start()).listeners[80] = quiet
        async with trio.open_nursery() as nursery:
            outcomes, results = trio.open_memory_channel[str](35)

            async def one() -> None:
                async with pair.stream() as stream:
                    try:
                        await open_tunnel(stream, "lease", 80)
                    except RemoteError as error:
                        outcomes.send_nowait(error.code)
                        return
                    outcomes.send_nowait("open")
                    await trio.sleep_forever()

            for _ in range(35):
                nursery.start_soon(one)
            assert Counter([await results.receive() for _ in range(35)]) == {"open": 32, "busy": 3}
            # Requests pass beside them.
            async with pair.pool.client(pair.peer_id, JOB_PROTOCOL) as client:
                assert (await JobClient(client).status("lease")).state == "running"
            nursery.cancel_scope.cancel()
