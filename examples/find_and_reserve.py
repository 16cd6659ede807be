"""An orchestrator in one file: find machines, reserve two of them or none, and release them.

python examples/find_and_reserve.py

Three providers run in the same process. Each has a simulated machine, a price and a ledger of its own. The orchestrator
knows the address of one provider and finds the others through it. The program exits with 0 when all figures are as
expected.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import trio

from dms_peer import (
    AssignmentRules,
    DiscoverySettings,
    FoundPeer,
    Requester,
    ReservationError,
    host_addresses,
    new_identity,
    open_discovery,
    open_host,
    open_requester,
    serve,
)
from dms_protocols import BidTerms, EnsembleRequest, NodeRequest, PricesPerHour
from dms_resources import (
    CPU,
    GIB,
    RAM,
    Cores,
    CPUDemand,
    Demand,
    Disk,
    DiskDemand,
    MachineResources,
    OnboardedResources,
    RAMDemand,
    ResourceManager,
    format_size,
    open_manager,
    read_machine_file,
)

MACHINE = {"cpu": {"cores": 16}, "ram": {"size": "64GiB"}, "disk": {"size": "1TiB"}}
# On a real network, DiscoverySettings(bootstrap=(ADDRESS,)) is enough. These settings stay on this machine.
HERE = DiscoverySettings(mdns=False, dht=False, gossip=False)


def job(*node_ids: str, cores: int) -> EnsembleRequest:
    """An ensemble of equal nodes whose request expires in 15 s."""
    demand = Demand(cpu=CPUDemand(cores=Cores.of(cores)), ram=RAMDemand(size=8 * GIB), disk=DiskDemand(size=GIB))
    nodes = tuple(NodeRequest(node_id=node_id, resources=demand) for node_id in node_ids)
    return EnsembleRequest(id="training", nonce=time.time_ns() >> 11, deadline=time.time() + 15, request=nodes)


async def orchestrate(requester: Requester) -> None:
    """Find machines and reserve two of them. Your own program starts here."""
    for peer in await find(requester, count=3):
        free = f"{peer.free.cpu.cores} cores, {format_size(peer.free.ram.size)} RAM" if peer.free else "unknown"
        print(f"found {peer.peer_id[-6:]}: {free}")

    try:
        async with requester.reserve(job("huge", cores=64)):
            raise AssertionError("no provider has 64 cores")
    except ReservationError as error:
        print(f"a request that is too large fails: {error.code}")

    apart = AssignmentRules(different_peers=True)
    async with requester.reserve(job("left", "right", cores=4), strategy="cheapest", rules=apart, ttl=30) as held:
        # The requester renews the commitments while this block runs. allocate() turns all of them into allocations.
        await held.allocate()
        for node_id, peer_id in held.peers.items():
            lease = held.leases[node_id]
            price = lease.price.describe() if lease.price else "free of charge"
            print(f"{node_id} runs at {peer_id[-6:]} for {price}, lease {lease.lease_id[:8]} is {lease.state.value}")
        check(len(set(held.peers.values())) == 2, "two different peers")
        # held.addrs has the addresses of the nodes. Start the job here.


async def find(requester: Requester, count: int) -> list[FoundPeer]:
    """Find `count` peers that would take a job now. A peer that has just started is found after some seconds."""
    with trio.fail_after(30):
        while True:
            async with requester.discover(job("any", cores=4), count=count) as peers:
                found = [peer async for peer in peers if peer.able]
            if len(found) >= count:
                return found
            await trio.sleep(0.5)


# The providers


@asynccontextmanager
async def open_provider(folder: Path, cores: int, cents: int, bootstrap: tuple[str, ...]) -> AsyncIterator[Provider]:
    """Offer some cores for `cents` per core and hour; requesters find the provider through its bootstrap peers."""
    machine = await trio.to_thread.run_sync(describe_machine, folder)
    offer = OnboardedResources(
        cpu=CPU(cores=Cores.of(cores)), ram=RAM(size=16 * GIB), disk=Disk(size=100 * GIB), gpus=()
    )
    # Prices are in millionths.
    terms = BidTerms(policies=(PricesPerHour(currency="EUR", core=cents * 10_000),))
    identity = new_identity()
    async with (
        open_manager(folder / "ledger.db", machine) as manager,
        open_host(identity, ["/ip4/127.0.0.1/tcp/0"]) as host,
        serve(host, manager, identity=identity, terms=terms),
    ):
        await manager.update_onboarded_resources(offer)
        async with open_discovery(host, identity, replace(HERE, bootstrap=bootstrap), manager=manager, terms=terms):
            yield Provider(host_addresses(host)[0], manager)


def describe_machine(folder: Path) -> MachineResources:
    """Read a simulated machine; `measure_machine` would measure the real one."""
    folder.mkdir()
    path = folder / "machine.json"
    path.write_text(json.dumps(MACHINE))
    return read_machine_file(path)


@dataclass(frozen=True, slots=True)
class Provider:
    """A running provider: its address and its resource manager."""

    address: str
    manager: ResourceManager


def check(holds: bool, sentence: str) -> None:
    """Print the sentence; exit with 1 if it is not true."""
    if not holds:
        raise SystemExit(f"not true: {sentence}")
    print(f"✓ {sentence}")


async def main() -> None:
    """Start the providers, then the orchestrator."""
    with tempfile.TemporaryDirectory() as folder:
        async with AsyncExitStack() as stack:
            providers: list[Provider] = []
            for number, (cores, cents) in enumerate([(8, 3), (8, 1), (4, 2)]):
                bootstrap = tuple(provider.address for provider in providers[:1])
                provider = open_provider(Path(folder) / str(number), cores, cents, bootstrap)
                providers.append(await stack.enter_async_context(provider))
            identity = new_identity()
            host = await stack.enter_async_context(open_host(identity))
            settings = replace(HERE, bootstrap=(providers[0].address,))
            async with open_requester(host, settings, identity=identity) as requester:
                await orchestrate(requester)
            left = [lease for provider in providers for lease in provider.manager.leases()]
            check(not left, "all leases were released")


if __name__ == "__main__":
    trio.run(main)
