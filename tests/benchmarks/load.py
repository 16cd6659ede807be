"""Our requester as a load generator: it obeys the same orders as `interop load` in Go, one JSON object per line.

    python tests/benchmarks/load.py

It includes everything that a requester does: typed requests, and answers that are checked and converted to typed
values; for bids also the envelope, its signature, and the check that the bid answers the request.
"""

from __future__ import annotations

import itertools
import json
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

import trio

from dms_host import HardenedHost
from dms_peer import dial, new_identity, open_allocations, open_bids, open_host, open_resources
from dms_protocols.clients import AllocationClient, BidClient
from dms_protocols.messages.bid import EnsembleRequest, NodeRequest
from dms_resources.demands import CPUDemand, Demand, DiskDemand, GPUDemand, RAMDemand
from dms_resources.units import GIB, MIB, Cores

DEMAND: Final = Demand(
    cpu=CPUDemand(cores=Cores.of(2)),
    ram=RAMDemand(size=4 * GIB),
    disk=DiskDemand(size=GIB),
    gpus=(GPUDemand(vram=8 * GIB),),
)
SMALL_DEMAND: Final = Demand(cpu=CPUDemand(cores=Cores.of(0.1)), ram=RAMDemand(size=GIB), gpus=(GPUDemand(vram=MIB),))
Work = Callable[[], Awaitable[object]]


@dataclass(frozen=True)
class Order:
    """What to request, of which provider, by how many workers, for how many seconds or how often."""

    measure: str
    address: str
    at_once: int = 1
    seconds: float = 1.0
    warm_up: float = 0.0
    count: int = 1


async def per_second(order: Order, work: Work) -> float:
    """How often a second this many workers together complete `work` after the warm-up; at least once."""
    done = 0
    begin = trio.current_time() + order.warm_up
    end = begin + order.seconds

    async def counted() -> None:
        nonlocal done
        await work()
        done += trio.current_time() >= begin

    await at_once(order.at_once, lambda: trio.current_time() < end or not done, counted)
    return done / (trio.current_time() - begin)


async def at_once(workers: int, more: Callable[[], bool], work: Work) -> None:
    """This many workers do `work` while `more` returns true."""

    async def worker() -> None:
        while more():
            await work()

    async with trio.open_nursery() as nursery:
        for _ in range(workers):
            nursery.start_soon(worker)


@asynccontextmanager
async def connected(address: str) -> AsyncIterator[tuple[HardenedHost, str]]:
    """A new host with a connection."""
    async with open_host(new_identity()) as host:
        yield host, await dial(host, address)


async def queries(order: Order) -> float:
    """Queries per second on one stream."""
    async with connected(order.address) as (host, peer_id), open_resources(host, peer_id) as resources:
        return await per_second(order, resources.free)


async def one_shots(order: Order) -> float:
    """Queries per second, each on a stream of its own."""
    async with connected(order.address) as (host, peer_id):
        return await per_second(order, lambda: ask_once(host, peer_id))


async def ask_once(host: HardenedHost, peer_id: str) -> None:
    """One query on one stream."""
    async with open_resources(host, peer_id) as resources:
        await resources.free()


async def connects(order: Order) -> float:
    """Milliseconds from dialling to the first answer, each time from a host that knows nothing about the provider."""
    took = []
    for _ in range(order.count):
        async with open_host(new_identity()) as host:
            begin = time.perf_counter()
            await ask_once(host, await dial(host, order.address))
            took.append(1000 * (time.perf_counter() - begin))
    return statistics.median(took)


async def bids(order: Order) -> float:
    """Signed bids per second, each requested and checked."""
    async with connected(order.address) as (host, peer_id), open_bids(host, peer_id) as client:
        nonces = itertools.count()
        return await per_second(order, lambda: one_bid(client, next(nonces), DEMAND))


async def one_bid(client: BidClient, nonce: int, demand: Demand) -> bytes:
    """The envelope of a checked bid."""
    ensemble = EnsembleRequest(
        id="benchmark",
        nonce=nonce,
        deadline=time.time() + 60,
        request=(NodeRequest(node_id="node", resources=demand),),
    )
    (signed,) = (await client.request_bids(ensemble)).bids
    return signed.envelope


async def commits(order: Order) -> float:
    """Bids committed per second. The bids are made before the measurement, and released after it."""
    async with connected(order.address) as (host, peer_id):
        envelopes: list[bytes] = []
        async with open_bids(host, peer_id) as bidding:
            nonce = itertools.count()

            async def gather() -> None:
                envelopes.append(await one_bid(bidding, next(nonce), SMALL_DEMAND))

            await at_once(order.at_once, lambda: len(envelopes) < order.count, gather)
        async with open_allocations(host, peer_id) as allocations:
            return await take_and_return(order, envelopes, allocations)


async def take_and_return(order: Order, envelopes: list[bytes], allocations: AllocationClient) -> float:
    """Commit bids as long as there are some and time is left. Returns how many that were per second."""
    taken: list[str] = []

    async def take() -> None:
        (lease,) = await allocations.commit([envelopes.pop()], ttl=60.0)
        taken.append(lease.lease_id)

    async def give_back() -> None:
        await allocations.release(leases.pop())

    begin = trio.current_time()
    end = begin + order.seconds
    await at_once(order.at_once, lambda: bool(envelopes) and trio.current_time() < end, take)
    rate = len(taken) / (trio.current_time() - begin)
    leases = list(taken)
    await at_once(order.at_once, lambda: bool(leases), give_back)
    return rate


MEASURES: Final = {"queries": queries, "one_shot": one_shots, "connect": connects, "bids": bids, "commits": commits}


async def obey(line: str) -> dict[str, Any]:
    """The answer to one order."""
    order = Order(**json.loads(line))
    return {"value": await MEASURES[order.measure](order)}


async def main() -> None:
    """Obey until the input ends."""
    print(json.dumps({"ready": True}), flush=True)
    while line := await trio.to_thread.run_sync(input_line):
        print(json.dumps(await obey(line)), flush=True)


def input_line() -> str:
    """The next order, or nothing at the end."""
    try:
        return input()
    except EOFError:
        return ""


if __name__ == "__main__":
    trio.run(main)
