"""A writer to be killed: 64 clients change one ledger as fast as they can and report what was acknowledged.

    python crash_writer.py LEDGER SEED ROUND

Each line on standard output is one JSON object. `begin` precedes an operation and names it; `done` follows its
acknowledgement, with the answer; `refused` follows a refusal, which changes nothing.
"""

from __future__ import annotations

import json
import os
import random
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec
import trio

from dms_resources.components import CPU, GPU, RAM, Disk, MachineResources, OnboardedResources, PortRange
from dms_resources.demands import CPUDemand, Demand, DiskDemand, GPUDemand, PortDemand, RAMDemand
from dms_resources.errors import ResourcesError, StorageError
from dms_resources.ledger.leases import EndedLease, Lease, LeaseRequest, LeaseState, ResourceAllocation
from dms_resources.manager import ResourceManager, open_manager
from dms_resources.units import GIB, Cores, encode_value

CLIENTS = 64
# Capacity and ports for most of what the clients request, so that every kind of refusal occurs too.
MACHINE = MachineResources(
    cpu=CPU(cores=Cores(64_000)),
    ram=RAM(size=256 * GIB),
    disk=Disk(size=1024 * GIB),
    gpus=tuple(GPU(uuid=f"GPU-{number}", index=number, vram=24 * GIB) for number in range(4)),
)
PORTS = PortRange(first=20_000, last=20_127)
OFFERS = tuple(
    OnboardedResources(
        cpu=CPU(cores=Cores(cores)), ram=MACHINE.ram, disk=MACHINE.disk, gpus=MACHINE.gpus, port_range=PORTS
    )
    for cores in (48_000, 56_000, 64_000)
)

Answer = Lease | EndedLease | list[Lease] | None


def tell(kind: str, operation: str, ids: list[str], **more: object) -> None:
    """One line, written with one call and without a buffer, so that it is out when this returns."""
    line = json.dumps({"kind": kind, "operation": operation, "ids": ids, **more})
    os.write(1, line.encode() + b"\n")


async def attempt(operation: str, ids: list[str], call: Callable[[], Awaitable[Answer]], **more: object) -> bool:
    """Run an operation and report it. Returns whether it was done."""
    tell("begin", operation, ids, **more)
    try:
        answer = await call()
    except StorageError:
        raise
    except ResourcesError as error:
        tell("refused", operation, ids, code=error.code)
        # A refusal is decided without a wait, so the others have to get their turn here.
        await trio.lowlevel.checkpoint()
        return False
    tell("done", operation, ids, answer=msgspec.to_builtins(answer, enc_hook=encode_value), **more)
    return True


class Client:
    """Takes leases through their lives at random, one at a time."""

    def __init__(self, manager: ResourceManager, name: str, seed: str) -> None:
        self.manager = manager
        self.name = name
        self.chance = random.Random(seed)
        self.number = 0

    async def run(self) -> None:
        """Run until the process is killed."""
        while True:
            await (self.single() if self.chance.random() < 0.7 else self.group())

    async def single(self) -> None:
        """Commits, perhaps renews, perhaps allocates, perhaps runs a job, perhaps releases."""
        request = self.request()
        key, holder = request.lease_id, self.name
        manager, chance = self.manager, self.chance
        if chance.random() < 0.2:
            direct = ResourceAllocation(lease_id=key, holder=holder, resources=request.demand, ports=request.ports)
            if not await attempt("allocate", [key], lambda: manager.allocate_resources(direct)):
                return
            await self.job(key)
        elif not await attempt(
            "commit",
            [key],
            lambda: manager.commit_resources(key, request.demand, request.ports, holder=holder, ttl=request.ttl),
        ):
            return
        else:
            while chance.random() < 0.4:
                ttl = float(chance.randrange(3600, 7200))
                await attempt("renew", [key], lambda: manager.renew(key, ttl=ttl, holder=holder))  # noqa: B023
            if chance.random() < 0.6:
                taken = ResourceAllocation(lease_id=key, holder=holder)
                if await attempt("allocate", [key], lambda: manager.allocate_resources(taken)):
                    await self.job(key)
        if chance.random() < 0.98:
            await attempt("release", [key], lambda: manager.release(key, holder=holder))
            lease = manager.lease(key)
            if lease is not None and chance.random() < 0.9:
                await attempt("gone", [key], lambda: manager.job_gone(key, fence=lease.fence))

    async def job(self, key: str) -> None:
        """Perhaps attaches a job, which may be gone before its lease is released."""
        manager, chance = self.manager, self.chance
        if chance.random() < 0.9:
            digest = f"{chance.randrange(2**32):08x}"
            await attempt("attach", [key], lambda: manager.attach_job(key, digest, holder=self.name))
            lease = manager.lease(key)
            if lease is not None and chance.random() < 0.3:
                await attempt("gone", [key], lambda: manager.job_gone(key, fence=lease.fence))

    async def group(self) -> None:
        """Commit two to four leases together, and release them one by one."""
        requests = [self.request() for _ in range(self.chance.randrange(2, 5))]
        ids = [request.lease_id for request in requests]
        if await attempt("group", ids, lambda: self.manager.commit_group(requests, group=ids[0])):
            for key in ids:
                await attempt("release", [key], lambda: self.manager.release(key, holder=self.name))  # noqa: B023

    def request(self) -> LeaseRequest:
        """A demand of about a hundredth of the machine."""
        self.number += 1
        gpus = (GPUDemand(vram=self.chance.randrange(1, 4) * GIB),) if self.chance.random() < 0.3 else ()
        return LeaseRequest(
            lease_id=f"{self.name}-{self.number}",
            holder=self.name,
            demand=Demand(
                cpu=CPUDemand(cores=Cores(self.chance.randrange(1, 1000))),
                ram=RAMDemand(size=self.chance.randrange(4 * GIB)),
                disk=DiskDemand(size=self.chance.randrange(16 * GIB)),
                gpus=gpus,
            ),
            ports=PortDemand(dynamic=self.chance.randrange(3)),
            ttl=float(self.chance.randrange(3600, 7200)),
        )


async def own(manager: ResourceManager, chance: random.Random) -> None:
    """The owner onboards more and less, repeatedly."""
    while True:
        index = chance.randrange(len(OFFERS))
        await attempt("onboard", [], lambda: manager.update_onboarded_resources(OFFERS[index]), offer=index)  # noqa: B023


async def clear(manager: ResourceManager, lease: Lease) -> None:
    """Releases what the killed writer before left, and then reports that its job is gone."""
    if lease.state is not LeaseState.ENDING:
        release = manager.deallocate_resources if lease.state is LeaseState.ALLOCATED else manager.uncommit_resources
        await attempt("release", [lease.lease_id], lambda: release(lease.lease_id, holder=lease.holder))
    if lease.runs_job:
        await attempt("gone", [lease.lease_id], lambda: manager.job_gone(lease.lease_id, fence=lease.fence))


async def main(path: Path, seed: str, number: str) -> None:
    """Open the ledger and start all clients."""
    chance = random.Random(f"{seed}/{number}")
    async with open_manager(path, MACHINE) as manager, trio.open_nursery() as nursery:
        if manager.get_onboarded_resources() is None:
            await attempt("onboard", [], lambda: manager.update_onboarded_resources(OFFERS[2]), offer=2)
        tell("ready", "", [])
        for lease in manager.leases():
            # Some leases are left for another round.
            if chance.random() < 0.8:
                nursery.start_soon(clear, manager, lease)
        nursery.start_soon(own, manager, chance)
        for client in range(CLIENTS):
            name = f"round{number}-client{client}"
            nursery.start_soon(Client(manager, name, f"{seed}/{name}").run)


if __name__ == "__main__":
    trio.run(main, Path(sys.argv[1]), sys.argv[2], sys.argv[3])
