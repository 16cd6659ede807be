"""A machine with one allocated lease, an engine, and a peer that can be killed and started again."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import trio

from dms_peer.jobs.manager import JobManager, open_job_manager
from dms_peer.jobs.settings import JobSettings
from dms_protocols.messages.job import Execution, Job
from dms_resources.components import CPU, RAM, Disk, MachineResources, OnboardedResources, PortRange
from dms_resources.demands import CPUDemand, Demand, DiskDemand, PortDemand, RAMDemand
from dms_resources.ledger.leases import Lease, ResourceAllocation
from dms_resources.manager import ResourceManager, open_manager
from dms_resources.units import GIB, Cores
from job_engine import Engine, EngineExecutor

PEER = "12D3KooWAliceAliceAliceAliceAliceAliceAliceAliceAliceA1"
HOLDER = "12D3KooWBobBobBobBobBobBobBobBobBobBobBobBobBobBobBobB1"

_PARTS: dict[str, Any] = {
    "cpu": CPU(cores=Cores.of(8)),
    "ram": RAM(size=32 * GIB),
    "disk": Disk(size=100 * GIB),
    "gpus": (),
}


class TrioClock:
    """Both clocks are trio's."""

    boot_id = "boot-1"

    def steady(self) -> float:
        return trio.current_time()

    def wall(self) -> float:
        return 1_800_000_000.0 + trio.current_time()


@dataclass
class Peer:
    """The part of a peer that runs jobs. `killed` counts blocking calls and calls of the engine until the peer dies."""

    path: Path
    engine: Engine
    settings: JobSettings = field(default_factory=JobSettings)
    clock: TrioClock = field(default_factory=TrioClock)
    executors: tuple[str, ...] = ("docker",)
    die_at: float = float("inf")
    steps: int = 0
    manager: ResourceManager = field(init=False)
    jobs: JobManager = field(init=False)
    scope: trio.CancelScope = field(init=False)

    @asynccontextmanager
    async def up(self) -> AsyncIterator[Peer]:
        """Runs until the block ends, or dies at a step."""
        self.engine.clock = self.clock.wall
        self.engine.before = self.engine.after = lambda call: self._step()
        with trio.CancelScope() as self.scope:
            async with open_manager(
                self.path / "ledger.db", MachineResources(**_PARTS), clock=self.clock, worker=self._inline
            ) as self.manager:
                if self.manager.get_onboarded_resources() is None:
                    ports = PortRange(first=20_000, last=20_099)
                    await self.manager.update_onboarded_resources(OnboardedResources(**_PARTS, port_range=ports))
                executors = {name: EngineExecutor(self.engine, name) for name in self.executors}
                async with open_job_manager(
                    self.manager, executors, self.path / "jobs", peer_id=PEER, settings=self.settings,
                    clock=self.clock, worker=self._blocking,
                ) as self.jobs:  # fmt: skip
                    yield self

    async def allocate(self, lease_id: str = "lease", holder: str = HOLDER) -> Lease:
        demand = Demand(cpu=CPUDemand(cores=Cores.of(2)), ram=RAMDemand(size=4 * GIB), disk=DiskDemand(size=10 * GIB))
        await self.manager.commit_resources(lease_id, demand, PortDemand(dynamic=1), holder=holder, ttl=60)
        return await self.manager.allocate_resources(ResourceAllocation(lease_id=lease_id, holder=holder))

    async def _inline(self, call: Callable[[], None]) -> None:
        call()

    async def _blocking(self, call: Callable[[], None]) -> None:
        self._step()
        await trio.lowlevel.checkpoint_if_cancelled()
        call()
        self._step()
        await trio.lowlevel.checkpoint_if_cancelled()

    def _step(self) -> None:
        self.steps += 1
        if self.steps >= self.die_at:
            self.scope.cancel()


@pytest.fixture
def engine() -> Engine:
    """What runs."""
    return Engine()


@pytest.fixture
def peer(tmp_path: Path, engine: Engine) -> Peer:
    """A peer that is down."""
    return Peer(tmp_path, engine)


@pytest.fixture
def job() -> Job:
    """A job for the engine."""
    return Job(execution=Execution(type="docker", image="localhost/tiny:1", cmd=("echo", "hi")))
