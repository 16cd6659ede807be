"""Peers in Go and ours find each other: in the DHT by capability classes, and on the local network by mDNS."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from dms_host import dial, host_addresses, open_host
from dms_host.keys.identity import new_identity
from dms_peer.connections import open_connections
from dms_peer.discovery.dht.kademlia import open_kademlia
from dms_peer.discovery.mdns import open_mdns
from dms_protocols.adverts.classes import CapabilityClass, Dimension
from dms_protocols.messages.bid import EnsembleRequest, NodeRequest
from dms_resources.demands import CPUDemand, Demand
from dms_resources.units import Cores

HERE = Path(__file__).parent
OURS, THEIRS = CapabilityClass(Dimension.CORES, 4), CapabilityClass(Dimension.CORES, 8)


@pytest.fixture(scope="session")
def go_discovery(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The program in Go."""
    if not os.environ.get("DMS_INTEROP"):
        pytest.skip("DMS_INTEROP is not set: peers in Go are not tried")
    if shutil.which("go") is None:
        pytest.skip("Go is not installed")
    program = tmp_path_factory.mktemp("discovery") / "go-discovery"
    subprocess.run(
        ["go", "build", "-trimpath", "-o", str(program), "."], cwd=HERE / "go-discovery", check=True, timeout=600
    )
    return str(program)


@asynccontextmanager
async def open_peer() -> Any:
    async with (
        open_host(new_identity(), ["/ip4/127.0.0.1/tcp/0"]) as host,
        open_connections(host) as connections,
        open_kademlia(host, connections, partial(host_addresses, host), server=True) as dht,
    ):
        yield host, dht


class GoPeer:
    """The events of the program so far."""

    def __init__(self, process: trio.Process) -> None:
        self._process = process
        self._rest = b""
        self.said: list[dict[str, Any]] = []

    async def wait_for(self, event: str, peer_id: str | None = None) -> dict[str, Any]:
        """The first event of this kind, about that peer."""
        seen = 0
        while True:
            for one in self.said[seen:]:
                if one["event"] == event and peer_id in (None, one["peer_id"]):
                    return one
            seen = len(self.said)
            await self._read()

    async def _read(self) -> None:
        assert self._process.stdout is not None
        part = await self._process.stdout.receive_some()
        assert part, "the program ended"
        *lines, self._rest = (self._rest + part).split(b"\n")
        self.said += map(json.loads, lines)


@asynccontextmanager
async def running(*command: str) -> Any:
    process = await trio.lowlevel.open_process(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        yield GoPeer(process)
    finally:
        with trio.CancelScope(shield=True):
            process.kill()
            await process.wait()
            await process.stdin.aclose()
            await process.stdout.aclose()


async def test_go_and_ours_find_each_other_by_class_and_by_mdns(go_discovery: str) -> None:
    async with open_peer() as (one, dht), open_peer() as (other, other_dht):
        await dial(other, host_addresses(one)[0])
        own_id = one.get_id().to_base58()
        with trio.fail_after(120):
            await other_dht.wait_peers(1)
            assert await other_dht.announce([OURS]) == 1
            async with (
                open_mdns(own_id, host_addresses(one)) as mdns,
                running(go_discovery, host_addresses(one)[0], OURS.name, THEIRS.name) as go,
            ):
                found = await go.wait_for("found", other.get_id().to_base58())
                assert found["addrs"] == [host_addresses(other)[0].partition("/p2p/")[0]]
                theirs = (await go.wait_for("provided"))["peer_id"]
                demand = Demand(cpu=CPUDemand(cores=Cores.of(8)))
                request = EnsembleRequest(
                    id="e", nonce=1, deadline=2e9, request=(NodeRequest(node_id="n", resources=demand),)
                )
                async with other_dht.candidates(request) as candidates:
                    (candidate,) = [one async for one in candidates]
                assert candidate.peer_id == theirs
                assert await dial(other, candidate.addrs[0]) == theirs
                # A server like ours.
                assert dht._table.peer_in_table(other.get_id())
                while theirs not in mdns.peers():
                    await mdns.wait_changed()
                await go.wait_for("mdns", own_id)
