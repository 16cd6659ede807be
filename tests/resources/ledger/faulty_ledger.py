"""One scripted life of a ledger on a failing disk, once for every call that the disk gets.

    LD_PRELOAD=SHIM python faulty_ledger.py SHIM FOLDER FAULT

FAULT is a JSON object (`error`, `lasting`, `partial`, `die`, `made`, `every`, `trace`). For n = 1, 2, ... (with
`every`, every so many) a child of this process runs the script in FOLDER/n while the n-th call fails, until there is no
n-th call. Each failed step is repeated: while the disk fails it has to fail again, and after that it has to succeed.
With `die` the process ends at the first failure instead; with `made` the ledger is created before the disk fails. With
`trace` there is one life without faults, which FOLDER/trace records. The results are written to FOLDER/n.json.
"""

from __future__ import annotations

import ctypes
import itertools
import json
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import trio

from dms_resources.components import CPU, GPU, RAM, Disk, MachineResources, OnboardedResources
from dms_resources.demands import CPUDemand, Demand, GPUDemand, PortDemand, RAMDemand
from dms_resources.errors import StorageError
from dms_resources.ledger.leases import LeaseRequest, ResourceAllocation
from dms_resources.ledger.storage import SQLiteStorage
from dms_resources.manager import ResourceManager, open_manager
from dms_resources.units import GIB, Cores, encode_value

MACHINE = MachineResources(
    cpu=CPU(cores=Cores(4000)),
    ram=RAM(size=16 * GIB),
    disk=Disk(size=64 * GIB),
    gpus=(GPU(uuid="GPU-0", vram=8 * GIB),),
)
ONBOARDED = OnboardedResources(cpu=MACHINE.cpu, ram=MACHINE.ram, disk=MACHINE.disk, gpus=MACHINE.gpus)
SMALL = Demand(cpu=CPUDemand(cores=Cores(500)), ram=RAMDemand(size=GIB))
LARGE = Demand(cpu=CPUDemand(cores=Cores(1500)), gpus=(GPUDemand(vram=6 * GIB),))
# More than is left at any moment of the script while there is a lease.
ALL = Demand(cpu=CPUDemand(cores=Cores(4000)))

AT_A_TIME = 8

Step = tuple[str, Callable[[ResourceManager], Awaitable[object]]]


def request(lease_id: str, demand: Demand) -> LeaseRequest:
    """A commitment for an hour, with a port."""
    return LeaseRequest(lease_id=lease_id, holder="peer", demand=demand, ports=PortDemand(dynamic=1), ttl=3600.0)


def allocation(lease_id: str, demand: Demand | None = None) -> ResourceAllocation:
    """The allocation of a commitment, or a direct one."""
    return ResourceAllocation(lease_id=lease_id, holder="peer", resources=demand)


STEPS: tuple[Step, ...] = (
    ("onboard", lambda manager: manager.update_onboarded_resources(ONBOARDED)),
    ("commit a", lambda manager: manager.commit_group([request("a", LARGE)])),
    ("commit b c", lambda manager: manager.commit_group([request("b", SMALL), request("c", SMALL)], group="g")),
    ("allocate a", lambda manager: manager.allocate_resources(allocation("a"))),
    ("renew b", lambda manager: manager.renew("b", ttl=7200.0, holder="peer")),
    ("release c", lambda manager: manager.uncommit_resources("c", holder="peer")),
    ("allocate d", lambda manager: manager.allocate_resources(allocation("d", SMALL))),
    ("release a", lambda manager: manager.deallocate_resources("a", holder="peer")),
    ("evict b", lambda manager: manager.evict(["b"], reason="maintenance")),
)


class FaultyDisk:
    """The shim, as seen inside the process."""

    def __init__(self, shim: str, fault: dict[str, Any]) -> None:
        self._library = ctypes.CDLL(shim)
        self._fault = fault

    def arm(self, folder: Path, nth: int) -> None:
        """From now on the n-th call below `folder` fails."""
        fault = self._fault
        self._library.faulty_disk_arm(
            os.fsencode(folder), ctypes.c_long(nth), int(fault["lasting"]), fault["error"], int(fault["partial"])
        )

    def trace(self, descriptor: int) -> None:
        """Record every call from now on."""
        self._library.faulty_disk_trace(descriptor)

    def heal(self) -> None:
        """Stop all failures."""
        self._library.faulty_disk_heal()

    @property
    def calls(self) -> int:
        """The number of calls since it was armed."""
        return int(self._library.faulty_disk_calls())


@dataclass
class Life:
    """The events of one run of the script."""

    folder: Path
    fault: dict[str, Any]
    disk: FaultyDisk
    acknowledged: list[str] = field(default_factory=list)
    failed: list[tuple[str, str, str]] = field(default_factory=list)
    refused_meanwhile: list[str] = field(default_factory=list)
    leases: Any = None

    async def live(self) -> None:
        """Open the ledger and run the steps."""
        async with self._opened() as manager:
            for name, step in STEPS:
                await self._take(name, step, manager)
            self.leases = msgspec.to_builtins(manager.leases(), enc_hook=encode_value)

    @asynccontextmanager
    async def _opened(self) -> AsyncIterator[ResourceManager]:
        # A managed body cannot be entered twice, so the attempts that may fail come first.
        for _ in range(4):
            opening = open_manager(self.folder / "ledger.db", MACHINE)
            try:
                manager = await opening.__aenter__()
                break
            except StorageError as error:
                self._note("open", error)
                if self.fault["lasting"] and len(self.failed) > 1:
                    self.disk.heal()
        else:
            raise AssertionError(f"the ledger does not open on a disk that works again: {self.failed}")
        try:
            yield manager
        finally:
            await opening.__aexit__(None, None, None)

    async def _take(self, name: str, step: Callable[[ResourceManager], Awaitable[object]], on: ResourceManager) -> None:
        for attempt in range(3):
            try:
                await step(on)
            except StorageError as error:
                self._note(name, error)
                await self._look(name, on)
                if attempt == 1:
                    self.disk.heal()
            else:
                self._acknowledge(name)
                return
        raise AssertionError(f"{name} does not succeed on a disk that works again")

    async def _look(self, name: str, manager: ResourceManager) -> None:
        """Queries are answered while the disk fails, and nothing is promised twice."""
        free = manager.get_free_resources()
        taken = sum(lease.resources.cpu.cores.millicores for lease in manager.leases())
        offered = manager.get_onboarded_resources()
        assert free.cpu.cores.millicores + taken == (offered.cpu.cores.millicores if offered else 0)
        if self.acknowledged:
            manager.would_fit(SMALL)
        if "commit a" in self.acknowledged and isinstance(manager.would_fit(ALL), Exception):
            self.refused_meanwhile.append(name)

    def _note(self, name: str, error: StorageError) -> None:
        self.failed.append((name, error.code, f"{error} / {error.hint}"))
        if self.fault["die"]:
            self.write()
            os._exit(0)

    def _acknowledge(self, name: str) -> None:
        self.acknowledged.append(name)
        # Below the folder, so that it comes in the trace after the sync on which it depends.
        if self.fault["trace"]:
            with open(self.folder / "acknowledged", "ab", buffering=0) as file:
                file.write(f"{name}\n".encode())

    def write(self) -> None:
        """Write the report."""
        self.disk.heal()
        report = {
            "acknowledged": self.acknowledged,
            "failed": self.failed,
            "refused_meanwhile": self.refused_meanwhile,
            "leases": self.leases,
            "calls": self.disk.calls,
        }
        self.folder.with_suffix(".json").write_text(json.dumps(report))


def live_once(shim: str, folder: Path, fault: dict[str, Any], nth: int) -> None:
    """One life, in a process of its own."""
    disk = FaultyDisk(shim, fault)
    own = folder / str(nth)
    own.mkdir()
    if fault["trace"]:
        disk.trace(os.open(folder / "trace", os.O_WRONLY | os.O_CREAT))
    disk.arm(own, 0)
    if fault["made"]:
        SQLiteStorage(own / "ledger.db", boot_id="").close()
    disk.arm(own, nth)
    life = Life(own, fault, disk)
    trio.run(life.live)
    life.write()


def begin(shim: str, folder: Path, fault: dict[str, Any], nth: int) -> int:
    """Run one life in a child of this process. Returns the child's number."""
    child = os.fork()
    if child:
        return child
    try:
        live_once(shim, folder, fault, nth)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        os._exit(1)
    os._exit(0)


def main(shim: str, folder: Path, fault: dict[str, Any]) -> None:
    """All lives. The modules are imported once, and several lives run at a time, because SQLite sleeps on a failing
    disk.
    """
    every = fault["every"]
    for first in [0] if fault["trace"] else itertools.count(1, AT_A_TIME * every):
        numbers = [0] if fault["trace"] else range(first, first + AT_A_TIME * every, every)
        children = {nth: begin(shim, folder, fault, nth) for nth in numbers}
        failed = [nth for nth, child in children.items() if os.waitpid(child, 0)[1]]
        if failed:
            sys.exit(f"the lives with faults {failed} did not end well")
        if any(json.loads((folder / f"{nth}.json").read_text())["calls"] < nth for nth in numbers):
            return


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3]))
