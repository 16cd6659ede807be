"""Take a part of another peer's machine, and release it.

    python examples/requester.py MULTIADDR

MULTIADDR is the address that provider.py prints.
"""

from __future__ import annotations

import sys
import time

import trio

from dms_peer import dial, new_identity, open_allocations, open_bids, open_host, open_resources
from dms_protocols import EnsembleRequest, NodeRequest
from dms_resources import MIB, Cores, CPUDemand, Demand, DiskDemand, RAMDemand, format_size

DEMAND = Demand(cpu=CPUDemand(cores=Cores.of("0.5")), ram=RAMDemand(size=256 * MIB), disk=DiskDemand(size=100 * MIB))


async def request(address: str) -> None:
    """Query, bid, commit, allocate and release."""
    async with open_host(new_identity()) as host:
        provider = await dial(host, address)
        async with (
            open_resources(host, provider) as resources,
            open_bids(host, provider) as bids,
            open_allocations(host, provider) as allocations,
        ):
            free = await resources.free()
            print(f"free: {free.cpu.cores} cores, {format_size(free.ram.size)} RAM")
            ensemble = EnsembleRequest(
                id="example",
                nonce=time.time_ns() >> 11,
                deadline=time.time() + 60,
                request=(NodeRequest(node_id="job", resources=DEMAND),),
            )
            answer = await bids.request_bids(ensemble)
            for refusal in answer.refusals:
                sys.exit(f"refused: {refusal.message}")
            (lease,) = await allocations.commit([answer.bids[0].envelope], ttl=60)
            print(f"committed: lease {lease.lease_id}")
            try:
                # The fencing number ensures that this is still the same lease.
                await allocations.allocate(lease.lease_id, fence=lease.fence)
                free = await resources.free()
                print(f"the job runs; free: {free.cpu.cores} cores, {format_size(free.ram.size)} RAM")
            finally:
                await allocations.release(lease.lease_id)
            print("released")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: requester.py MULTIADDR")
    trio.run(request, sys.argv[1])
