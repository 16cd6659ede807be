"""Metrics: what Prometheus fetches, and what other clients get."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
import trio
from prometheus_client.parser import text_string_to_metric_families

from dms_host.errors import ListenError
from dms_peer.telemetry import metrics_server
from dms_peer.telemetry.metrics import PeerCollector
from dms_peer.telemetry.metrics_server import serve_metrics
from dms_protocols.messages.job import JobExit, JobStatus
from dms_protocols.rpc.counts import ServiceCounts
from dms_resources.components import CPU, RAM, Disk, MachineResources, OnboardedResources
from dms_resources.demands import CPUDemand, Demand
from dms_resources.manager import open_manager
from dms_resources.units import GIB, Cores


@pytest.fixture
async def manager(tmp_path: Any) -> Any:
    machine = MachineResources(cpu=CPU(cores=Cores.of(4)), ram=RAM(size=8 * GIB), disk=Disk(size=100 * GIB), gpus=())
    async with open_manager(tmp_path / "ledger.db", machine) as manager:
        offered = OnboardedResources(cpu=CPU(cores=Cores.of(2)), ram=RAM(size=GIB), disk=Disk(size=GIB), gpus=())
        await manager.update_onboarded_resources(offered)
        yield manager


@pytest.fixture
async def served(manager: Any) -> Any:
    counts = ServiceCounts()
    collector = PeerCollector(
        manager, counts, connections=lambda: 3, limits_hit={"inbound_connections": 7}, version="1.2.3"
    )
    async with serve_metrics(collector, "127.0.0.1", 0) as port:
        yield f"http://127.0.0.1:{port}/metrics", counts


def values(text: str) -> dict[tuple[str, ...], float]:
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


async def test_the_numbers_are_those_of_the_peer(manager: Any, served: Any) -> None:
    address, counts = served
    counts.requests["free", "ok"] = 5
    counts.refusals["resources"] = 2
    counts.bids = 4
    await manager.commit_resources("lease", Demand(cpu=CPUDemand(cores=Cores.of("0.5"))), holder="peer", ttl=60)
    async with httpx.AsyncClient(trust_env=False) as client:
        answer = await client.get(address)
    assert answer.headers["content-type"].startswith("text/plain")
    found = values(answer.text)
    assert found["dms_requests_total", "free", "ok"] == 5
    assert found["dms_refusals_total", "resources"] == 2
    assert found["dms_bids_total",] == 4
    assert found["dms_leases", "committed"] == 1
    assert found["dms_ledger_changes_total", "commit"] == 1
    assert found["dms_ledger_write_seconds_count",] >= 2
    assert found["dms_ledger_write_seconds_bucket", "+Inf"] == found["dms_ledger_write_seconds_count",]
    assert (found["dms_cores", "onboarded"], found["dms_cores", "free"]) == (2, 1.5)
    assert found["dms_connections",] == 3
    assert found["dms_limits_hit_total", "inbound_connections"] == 7
    assert found["dms_draining",] == 0


@pytest.mark.parametrize(
    ("method", "path", "status"), [("GET", "/", 404), ("POST", "/metrics", 405), ("GET", "/metrics/../key", 404)]
)
async def test_there_is_nothing_else(served: Any, method: str, path: str, status: int) -> None:
    address, _ = served
    async with httpx.AsyncClient(trust_env=False) as client:
        answer = await client.request(method, address.removesuffix("/metrics") + path)
    assert answer.status_code == status


async def test_garbage_and_silence_are_dropped(served: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    address, _ = served
    port = httpx.URL(address).port
    monkeypatch.setattr(metrics_server, "_REQUEST_SECONDS", 0.05)
    for sent in (b"", b"\x00\xff" * 100, b"GET /metrics HTTP/1.1\r\nHost: " + b"x" * 100_000, b"GET /metrics"):
        stream = await trio.open_tcp_stream("127.0.0.1", port)
        with trio.fail_after(5):
            try:
                await stream.send_all(sent)
                while await stream.receive_some():
                    pass
            except trio.BrokenResourceError:
                pass
        await stream.aclose()
    async with httpx.AsyncClient(trust_env=False) as client:
        assert (await client.get(address)).status_code == 200


@pytest.mark.parametrize(
    ("request_line", "accept"),
    [("HEAD /other", "*/*"), ("HEAD /metrics", "*/*"), ("GET /metrics", "text/plain;version=x"),
     ("GET /metrics", "application/openmetrics-text;version=\xff;escaping=\xff"), ("CONNECT a:1", "")],
)  # fmt: skip
async def test_no_request_that_can_be_read_ends_the_peer(served: Any, request_line: str, accept: str) -> None:
    address, _ = served
    stream = await trio.open_tcp_stream("127.0.0.1", httpx.URL(address).port)
    async with stream:
        await stream.send_all(f"{request_line} HTTP/1.1\r\nHost: x\r\nAccept: {accept}\r\n\r\n".encode("latin-1"))
        with trio.fail_after(5):
            answer = b"".join([piece async for piece in stream])
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 ")
    assert bool(body) is (not request_line.startswith("HEAD"))
    async with httpx.AsyncClient(trust_env=False) as client:
        assert (await client.get(address)).status_code == 200


async def test_a_fault_of_what_is_collected_ends_no_more_than_the_answer(caplog: Any) -> None:
    class Faulty:
        def collect(self) -> Any:
            raise RuntimeError("a defect")

    async with serve_metrics(Faulty(), "127.0.0.1", 0) as port, httpx.AsyncClient(trust_env=False) as client:
        for _ in range(2):
            with pytest.raises(httpx.RemoteProtocolError):
                await client.get(f"http://127.0.0.1:{port}/metrics")
    assert "cannot serve the metrics" in caplog.text


async def test_more_than_a_few_connections_are_closed_at_once(served: Any) -> None:
    address, _ = served
    port = httpx.URL(address).port
    silent = [await trio.open_tcp_stream("127.0.0.1", port) for _ in range(8)]
    one_more = await trio.open_tcp_stream("127.0.0.1", port)
    with trio.fail_after(3):
        assert await one_more.receive_some() == b""
    for stream in (*silent, one_more):
        await stream.aclose()


async def test_an_address_in_use_is_a_clear_error(served: Any, manager: Any) -> None:
    address, counts = served
    collector = PeerCollector(manager, counts, connections=lambda: 0, limits_hit={}, version="")
    with pytest.raises(ListenError, match="cannot serve metrics"):
        async with serve_metrics(collector, "127.0.0.1", httpx.URL(address).port):
            pass


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:9464", 200),
        ("localhost", 200),
        ("LOCALHOST:1", 200),
        ("[::1]:9464", 200),
        ("evil.example", 403),
        ("evil.example:9464", 403),
        ("127.0.0.1.evil.example", 403),
        ("", 403),
    ],
)
async def test_on_loopback_a_name_of_elsewhere_is_refused(served: Any, host: str, status: int) -> None:
    """A page in the owner's browser may point its own name at loopback, and read the metrics."""
    url, _ = served
    async with httpx.AsyncClient(trust_env=False) as client:
        response = await client.get(url, headers={"Host": host})
    assert response.status_code == status
    assert ("dms_cores" in response.text) == (status == 200)


async def test_the_version_is_a_metric(served: Any) -> None:
    url, _ = served
    async with httpx.AsyncClient(trust_env=False) as client:
        assert 'dms_build_info{version="1.2.3"} 1.0' in (await client.get(url)).text


async def test_jobs_are_counted_by_state_and_by_how_they_ended(manager: Any) -> None:
    def job(number: int, state: Any, how: JobExit | None = None) -> JobStatus:
        return JobStatus(
            lease_id=f"lease-{number}", fence=number, digest=bytes(32), executor="docker", state=state, created=0.0,
            since=0.0, exit=how,
        )  # fmt: skip

    jobs = [
        job(1, "running"),
        job(2, "running"),
        job(3, "ending"),
        job(4, "exited", JobExit(kind="memory")),
        job(5, "exited", JobExit(kind="code", code=3)),
    ]
    collector = PeerCollector(
        manager, ServiceCounts(), connections=lambda: 0, limits_hit={}, version="", jobs=lambda: jobs
    )
    async with serve_metrics(collector, "127.0.0.1", 0) as port, httpx.AsyncClient(trust_env=False) as client:
        found = values((await client.get(f"http://127.0.0.1:{port}/metrics")).text)
    states = ("pending", "pulling", "starting", "running", "ending", "exited")
    assert [found["dms_jobs", state] for state in states] == [0, 0, 0, 2, 1, 2]
    assert (found["dms_jobs_exited", "memory"], found["dms_jobs_exited", "code"]) == (1, 1)
    assert found["dms_leases", "ending"] == 0
