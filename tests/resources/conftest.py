"""A machine, a clock that a test moves, and ledgers on it."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, TypeAlias

import pytest
import trio
from hypothesis import settings

from dms_resources.components import (
    CPU,
    GPU,
    RAM,
    Disk,
    GPUVendor,
    Headroom,
    HoldLimits,
    MachineResources,
    OnboardedResources,
    PortRange,
)
from dms_resources.demands import CPUDemand, Demand, DiskDemand, GPUDemand, RAMDemand
from dms_resources.manager import ResourceManager, open_manager
from dms_resources.units import GIB, Cores

# The same examples each time, or new ones for an hour. A busy machine is no failure.
settings.register_profile("quick", deadline=None, derandomize=True, database=None)
settings.register_profile("long", deadline=None, database=None, max_examples=20_000)
settings.load_profile("long" if os.environ.get("DMS_TEST_PROFILE") == "long" else "quick")

OpenLedger: TypeAlias = Callable[..., AbstractAsyncContextManager[ResourceManager]]


class MovedClock:
    """The ledger's clock: steady time is trio's (a MockClock in most tests) plus `slept`. Wall time can be set."""

    def __init__(self, *, wall: float = 1_800_000_000.0, boot_id: str = "boot-1") -> None:
        self.boot_id = boot_id
        self.slept = 0.0
        self._wall = wall

    def steady(self) -> float:
        return trio.current_time() + self.slept

    def wall(self) -> float:
        return self._wall + trio.current_time() + self.slept

    def jump(self, seconds: float) -> None:
        """Set the wall clock forward or back."""
        self._wall += seconds

    def suspend(self, seconds: float) -> None:
        """Suspend the machine: both clocks continue, trio's does not."""
        self.slept += seconds

    def reboot(self, boot_id: str, *, away: float = 0.0) -> None:
        """The steady clock starts again at 0; the wall clock has continued for `away` seconds."""
        wall = self.wall() + away
        self.slept = -trio.current_time()
        self.boot_id = boot_id
        self._wall = wall - trio.current_time() - self.slept


async def run_inline(call: Callable[[], None]) -> None:
    """Run the blocking call at once, so that virtual time works."""
    call()


class Worker:
    """A worker that a test can pause and resume, and that counts its calls."""

    def __init__(self) -> None:
        self.calls = 0
        self._open = trio.Event()
        self._open.set()

    def stop(self) -> None:
        self._open = trio.Event()

    def go(self) -> None:
        self._open.set()

    async def __call__(self, call: Callable[[], None]) -> None:
        self.calls += 1
        await self._open.wait()
        call()


def make_gpu(
    uuid: str,
    vram: int,
    *,
    vendor: GPUVendor = GPUVendor.NVIDIA,
    model: str = "NVIDIA A100-SXM4-40GB",
    index: int = 0,
) -> GPU:
    """A device with `vram` GiB."""
    return GPU(uuid=uuid, vram=vram * GIB, vendor=vendor, model=model, index=index)


def make_demand(
    cores: float = 0, ram: int = 0, disk: int = 0, gpus: Sequence[int | GPUDemand] = (), architecture: str = ""
) -> Demand:
    """A demand of cores, GiB of RAM and disk, and GPUs with this many GiB."""
    return Demand(
        cpu=CPUDemand(cores=Cores.of(cores), architecture=architecture),
        ram=RAMDemand(size=ram * GIB),
        disk=DiskDemand(size=disk * GIB),
        gpus=tuple(gpu if isinstance(gpu, GPUDemand) else GPUDemand(vram=gpu * GIB) for gpu in gpus),
    )


def make_machine(
    cores: float = 8,
    ram: int = 32,
    disk: int = 500,
    gpus: Sequence[GPU] = (make_gpu("gpu-a", 24), make_gpu("gpu-b", 10)),
) -> MachineResources:
    """A machine with sizes in GiB."""
    return MachineResources(
        cpu=CPU(cores=Cores.of(cores), architecture="x86_64", clock_speed=3_000_000_000, model="Test CPU"),
        ram=RAM(size=ram * GIB),
        disk=Disk(size=disk * GIB),
        gpus=tuple(gpus),
    )


def make_offer(
    machine: MachineResources,
    *,
    cores: float | None = None,
    ram: int | None = None,
    disk: int | None = None,
    gpus: Sequence[GPU] | None = None,
    ports: tuple[int, int] = (20_000, 20_099),
    headroom: Headroom = Headroom(),  # noqa: B008 - immutable
    windows: Sequence[str] = (),
    holds: HoldLimits = HoldLimits(max_seconds=30.0),  # noqa: B008 - immutable
) -> OnboardedResources:
    """The whole machine, or the named parts (GiB)."""
    return OnboardedResources(
        cpu=CPU(cores=machine.cpu.cores if cores is None else Cores.of(cores)),
        ram=machine.ram if ram is None else RAM(size=ram * GIB),
        disk=machine.disk if disk is None else Disk(size=disk * GIB),
        gpus=machine.gpus if gpus is None else tuple(gpus),
        port_range=PortRange(first=ports[0], last=ports[1]),
        headroom=headroom,
        windows=tuple(windows),
        holds=holds,
    )


@pytest.fixture
def machine() -> MachineResources:
    """8 cores, 32 GiB RAM, 500 GiB disk, GPUs of 24 and 10 GiB."""
    return make_machine()


@pytest.fixture
def new_machine() -> Callable[..., MachineResources]:
    """Makes machines."""
    return make_machine


@pytest.fixture
def new_gpu() -> Callable[..., GPU]:
    """Makes devices."""
    return make_gpu


@pytest.fixture
def new_demand() -> Callable[..., Demand]:
    """Makes demands."""
    return make_demand


@pytest.fixture
def new_offer() -> Callable[..., OnboardedResources]:
    """Makes offers of a machine."""
    return make_offer


@pytest.fixture
def new_worker() -> type[Worker]:
    """Makes workers that can be paused."""
    return Worker


@pytest.fixture
def clock() -> MovedClock:
    """The clock of the test's ledgers."""
    return MovedClock()


@pytest.fixture
def ledger_path(tmp_path: Path) -> Path:
    """The path of the test's ledger."""
    return tmp_path / "ledger.db"


@pytest.fixture
def open_ledger(ledger_path: Path, machine: MachineResources, clock: MovedClock) -> OpenLedger:
    """Opens the test's ledger with its clock, in the event loop's thread. Onboards the whole machine at first."""

    @asynccontextmanager
    async def open_(
        *, onboarded: OnboardedResources | None = None, onboard: bool = True, **options: Any
    ) -> AsyncIterator[ResourceManager]:
        options = {"clock": clock, "worker": run_inline, **options}
        hardware = options.pop("machine", machine)
        path = options.pop("path", ledger_path)
        async with open_manager(path, hardware, **options) as manager:
            if onboarded is not None or (onboard and manager.get_onboarded_resources() is None):
                await manager.update_onboarded_resources(onboarded or make_offer(hardware))
            try:
                yield manager
            finally:
                # A failed test must not wait for a disk that it has paused.
                if isinstance(options["worker"], Worker):
                    options["worker"].go()

    return open_
