"""Our provider for the benchmark: a simulated machine with enough capacity for everything that is requested.

    python tests/benchmarks/provider.py HOME

It prints one line of JSON with its address when it is ready, as the providers in tests/interop do, and runs until its
standard input ends. Its limits are the defaults except for the number of connections and each peer's share, which the
benchmark has to exceed.
"""

from __future__ import annotations

import gc
import json
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final

import trio

from dms_host import HostLimits
from dms_peer import host_addresses, new_identity, open_host, serve
from dms_peer.cli.event_loop import run_async
from dms_peer.telemetry.heap import return_free_memory, use_system_allocator
from dms_protocols.rpc.limits import Share, Shares
from dms_resources.components import CPU, GPU, RAM, Disk, MachineResources, OnboardedResources
from dms_resources.manager import open_manager
from dms_resources.units import GIB, Cores

CONNECTIONS: Final = 1_200
MACHINE: Final = MachineResources(
    cpu=CPU(cores=Cores.of(4_000)),
    ram=RAM(size=65_536 * GIB),
    disk=Disk(size=65_536 * GIB),
    gpus=(GPU(uuid="GPU-a", vram=80 * GIB),),
    simulated=True,
)
OFFER: Final = OnboardedResources(cpu=MACHINE.cpu, ram=MACHINE.ram, disk=MACHINE.disk, gpus=MACHINE.gpus)
# High enough to have no effect: one load generator is one peer, and requests everything.
PLENTY: Final = Share(
    requests=1e9,
    requests_burst=1e9,
    bids=1e9,
    bids_burst=1e9,
    bytes_in_flight=64 * 1024 * 1024,
    operations=1_024,
    streams=1_024,
    commitments=1_000_000,
)


async def provide(home: Path) -> None:
    """Answer until standard input ends."""
    identity = new_identity()
    # All connections come from this one machine.
    limits = replace(
        HostLimits(),
        max_connections=CONNECTIONS,
        max_inbound_connections=CONNECTIONS,
        max_inbound_per_address=CONNECTIONS,
    )
    async with (
        open_manager(home / "ledger.db", MACHINE) as manager,
        open_host(identity, ["/ip4/127.0.0.1/tcp/0"], limits) as host,
        serve(host, manager, identity=identity, shares=Shares(peer=PLENTY, total=PLENTY)),
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(return_free_memory)
        await manager.update_onboarded_resources(OFFER)
        print(json.dumps({"peer_id": identity.peer_id, "addrs": host_addresses(host)}), flush=True)
        await trio.to_thread.run_sync(sys.stdin.read, abandon_on_cancel=True)
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    # As `dms-peer run` does.
    use_system_allocator()
    gc.disable()
    run_async(partial(provide, Path(sys.argv[1])))
