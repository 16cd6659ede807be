"""An orchestrator in one file: finds machines, takes two of them or none, uses them, and gives them back.

python examples/find_and_reserve.py

The market is here as well: three providers in this process, each with a simulated machine, a price and a ledger of its
own. The orchestrator knows the address of one of them and finds the others through it. Ends with exit code 0 when every
number was what it had to be.
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
# On a network of your own: DiscoverySettings(bootstrap=(ADDRESS,)) is enough. This one is for this machine alone.
HERE = DiscoverySettings(mdns=False, dht=False, gossip=False)


def job(*node_ids: str, cores: int) -> EnsembleRequest:
    """An ensemble of equal nodes; everything about it is to be settled within a quarter of a minute."""
    demand = Demand(cpu=CPUDemand(cores=Cores.of(cores)), ram=RAMDemand(size=8 * GIB), disk=DiskDemand(size=GIB))
    nodes = tuple(NodeRequest(node_id=node_id, resources=demand) for node_id in node_ids)
    return EnsembleRequest(id="training", nonce=time.time_ns() >> 11, deadline=time.time() + 15, request=nodes)


async def orchestrate(requester: Requester) -> None:
    """What your own program would do."""
    for peer in await find(requester, count=3):
        free = f"{peer.free.cpu.cores} cores, {format_size(peer.free.ram.size)} RAM" if peer.free else "unknown"
        print(f"found {peer.peer_id[-6:]}: {free}")

    try:
        async with requester.reserve(job("huge", cores=64)):
            raise AssertionError("nobody has that much")
    except ReservationError as error:
        print(f"too much is refused: {error.code}")

    apart = AssignmentRules(different_peers=True)
    async with requester.reserve(job("left", "right", cores=4), strategy="cheapest", rules=apart, ttl=30) as held:
        # Commitments are renewed while this block runs. With the job's start they become allocations, all or none.
        await held.allocate()
        for node_id, peer_id in held.peers.items():
            lease = held.leases[node_id]
            price = lease.price.describe() if lease.price else "free of charge"
            print(f"{node_id} runs at {peer_id[-6:]} for {price}, lease {lease.lease_id[:8]} is {lease.state.value}")
        check(len(set(held.peers.values())) == 2, "two different peers")
        # The nodes' addresses are in held.addrs: here you would start the job.


async def find(requester: Requester, count: int) -> list[FoundPeer]:
    """Peers that would take a job now; those that have just started are heard of after some seconds."""
    with trio.fail_after(30):
        while True:
            async with requester.discover(job("any", cores=4), count=count) as peers:
                found = [peer async for peer in peers if peer.able]
            if len(found) >= count:
                return found
            await trio.sleep(0.5)


# The market


@asynccontextmanager
async def open_provider(folder: Path, cores: int, cents: int, bootstrap: tuple[str, ...]) -> AsyncIterator[Provider]:
    """Offers some cores for so many cents an hour each, and is found through its bootstrap peers."""
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
    """A simulated machine; `measure_machine` measures the real one."""
    folder.mkdir()
    path = folder / "machine.json"
    path.write_text(json.dumps(MACHINE))
    return read_machine_file(path)


@dataclass(frozen=True, slots=True)
class Provider:
    """A provider that runs: where it is reached, and its ledger."""

    address: str
    manager: ResourceManager


def check(holds: bool, sentence: str) -> None:
    """Says that something holds; ends the program when it does not."""
    if not holds:
        raise SystemExit(f"not so: {sentence}")
    print(f"✓ {sentence}")


async def main() -> None:
    """Opens the market, and lets the orchestrator loose on it."""
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
            check(not left, "all of it came back")


if __name__ == "__main__":
    trio.run(main)
