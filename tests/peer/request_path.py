"""Answers queries and bid requests between two calls of getppid(), for a tracer that counts system calls."""

import os
import sys
import time
from pathlib import Path

import cbor2
import trio
from trio._core import _thread_cache

from dms_host.keys.identity import new_identity
from dms_peer.serving import peer_operations
from dms_protocols.bidding.policies import PeerList
from dms_protocols.bidding.prices import PricesPerHour
from dms_protocols.bidding.service import BidTerms
from dms_protocols.messages.bid import BidAnswer
from dms_protocols.rpc.operations import Caller
from dms_resources.components import CPU, GPU, RAM, Disk, MachineResources, OnboardedResources
from dms_resources.demands import CPUDemand, Demand
from dms_resources.machine.usage import UsageMonitor
from dms_resources.manager import open_manager
from dms_resources.units import GIB, Cores

REQUESTS = 500
CALLER = Caller(new_identity(bytes(range(32))).peer_id)
MACHINE = MachineResources(
    cpu=CPU(cores=Cores(8000)),
    ram=RAM(size=32 * GIB),
    disk=Disk(size=100 * GIB),
    gpus=(GPU(uuid="GPU-a", vram=24 * GIB),),
    simulated=True,
)
TERMS = BidTerms(policies=(PeerList(deny=frozenset({"somebody"})), PricesPerHour(currency="EUR", core=10_000)))
QUERIES = ("free", "onboarded", "allocated", "machine", "usage")


async def main(home: Path, disturb: bool) -> None:
    monitor = UsageMonitor(MACHINE, home)
    async with open_manager(home / "ledger.sqlite3", MACHINE, usage_monitor=monitor, guard="enforce") as manager:
        await manager.update_onboarded_resources(
            OnboardedResources(cpu=MACHINE.cpu, ram=MACHINE.ram, disk=MACHINE.disk, gpus=MACHINE.gpus)
        )
        await manager.commit_resources("one", Demand(cpu=CPUDemand(cores=Cores(500))), holder="other", ttl=600)
        operations = {}
        for protocol in peer_operations(manager, new_identity(), TERMS).values():
            operations.update(protocol)
        bid = operations["bid_request"]
        answer_all(operations, bid, 20)
        wait_alone()
        os.getppid()
        answer_all(operations, bid, REQUESTS)
        if disturb:
            os.stat(home)
        os.getppid()


def wait_alone() -> None:
    """Return when the threads that opened the ledger have ended: a thread that wakes requests the interpreter from the
    first one, which answers with system calls of its own.
    """
    while len(os.listdir("/proc/self/task")) > 1:
        time.sleep(0.01)


def answer_all(operations, bid, count: int) -> None:
    node = {"node_id": "n", "resources": {"cpu": {"cores": 2}, "ram": {"size": GIB}, "gpus": [{"vram": 8 * GIB}]}}
    for nonce in range(count):
        for name in QUERIES:
            query = operations[name]
            query.handler(query.request_type(), CALLER)
        too_much = {**node, "node_id": "m", "resources": {"cpu": {"cores": 99}}}
        ensemble = {"id": "e", "nonce": nonce, "deadline": time.time() + 60, "request": [node, too_much]}
        answer = bid.handler(bid.request_type(ensemble=cbor2.loads(cbor2.dumps(ensemble))), CALLER)
        assert isinstance(answer, BidAnswer)
        assert (len(answer.bids), len(answer.refusals)) == (1, 1)


if __name__ == "__main__":
    # Idle threads end at once, and not after ten seconds.
    _thread_cache.IDLE_TIMEOUT = 0.01
    trio.run(main, Path(sys.argv[1]), sys.argv[2] == "disturb")
