"""Machines with real ledgers that answer the real protocols in a simulated network."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import trio

from dms_protocols.allocations import allocation_operations
from dms_protocols.bidding.service import BidTerms, bid_operations
from dms_protocols.bidding.versions import BID_1_1
from dms_protocols.protocol_ids import (
    ALLOCATION_PROTOCOL,
    BID_PROTOCOL,
    BID_PROTOCOL_1_1,
    RESOURCES_PROTOCOL,
    versions_of,
)
from dms_protocols.queries import resource_operations
from dms_protocols.rpc.limits import Shares
from dms_protocols.rpc.operations import Operations
from dms_resources.components import (
    CPU,
    GPU,
    RAM,
    Disk,
    GPUVendor,
    HoldLimits,
    MachineResources,
    OnboardedResources,
    PortRange,
)
from dms_resources.demands import CPUDemand, Demand, DiskDemand, GPUDemand, RAMDemand
from dms_resources.ledger.clock import Clock
from dms_resources.manager import ResourceManager, open_manager
from dms_resources.tasks import Worker
from dms_resources.units import GIB, Cores

from .scheduling import VirtualClock
from .signing import SimulatedOpener, SimulatedSigner

__all__ = ["in_place", "ledger_directory", "open_simulated_manager", "provider_operations", "simulated_demand",
           "simulated_machine"]  # fmt: skip


def simulated_machine(
    *, cores: float = 8, ram: int = 32, disk: int = 100, gpus: Sequence[int] = ()
) -> MachineResources:
    """A machine of this size; RAM, disk and each GPU's VRAM in GiB."""
    return MachineResources(
        cpu=CPU(cores=Cores.of(cores), architecture="x86_64", clock_speed=3_000_000_000),
        ram=RAM(size=ram * GIB),
        disk=Disk(size=disk * GIB),
        gpus=tuple(
            GPU(uuid=f"GPU-{index}", index=index, vendor=GPUVendor.NVIDIA, model="NVIDIA A100", vram=vram * GIB)
            for index, vram in enumerate(gpus)
        ),
    )


def simulated_demand(*, cores: float = 1, ram: int = 1, disk: int = 1, gpus: Sequence[int] = ()) -> Demand:
    """A demand of this size; RAM, disk and each GPU's VRAM in GiB."""
    return Demand(
        cpu=CPUDemand(cores=Cores.of(cores)),
        ram=RAMDemand(size=ram * GIB),
        disk=DiskDemand(size=disk * GIB),
        gpus=tuple(GPUDemand(vram=vram * GIB) for vram in gpus),
    )


async def in_place(call: Callable[[], None]) -> None:
    """The ledger's worker in virtual time, which would continue while a thread works."""
    call()
    await trio.lowlevel.checkpoint()


@contextmanager
def ledger_directory() -> Iterator[Path]:
    """A directory for many short-lived ledgers: in memory if possible."""
    shared = Path("/dev/shm")
    with tempfile.TemporaryDirectory(prefix="dms-", dir=shared if shared.is_dir() else None) as name:
        yield Path(name)


@asynccontextmanager
async def open_simulated_manager(
    path: Path, machine: MachineResources, *, clock: Clock | None = None, worker: Worker = in_place
) -> AsyncIterator[ResourceManager]:
    """A ledger in virtual time. A new one offers the whole machine, and allows holds of a minute.

    It has few ports, because the pool of all ports is the most expensive part of a small ledger.
    """
    async with open_manager(path, machine, clock=clock or VirtualClock(), worker=worker) as manager:
        if manager.get_onboarded_resources() is None:
            await manager.update_onboarded_resources(
                OnboardedResources(
                    cpu=machine.cpu, ram=machine.ram, disk=machine.disk, gpus=machine.gpus,
                    port_range=PortRange(first=16384, last=16447), holds=HoldLimits(max_seconds=60, share=1000),
                )
            )  # fmt: skip
        yield manager


def provider_operations(
    manager: ResourceManager,
    peer_id: str,
    terms: BidTerms | None = None,
    *,
    clock: Clock | None = None,
    shares: Shares | None = None,
) -> dict[str, Operations]:
    """The three protocols of a provider in all their versions, by protocol id."""
    wall, signer = (clock or VirtualClock()).wall, SimulatedSigner(peer_id)
    return {
        RESOURCES_PROTOCOL: resource_operations(manager),
        BID_PROTOCOL: bid_operations(manager, signer, terms, clock=wall, shares=shares),
        BID_PROTOCOL_1_1: bid_operations(manager, signer, terms, clock=wall, version=BID_1_1, shares=shares),
        **{
            protocol: allocation_operations(
                manager, peer_id, SimulatedOpener(), clock=wall, shares=shares, protocol=protocol
            )
            for protocol in versions_of(ALLOCATION_PROTOCOL)
        },
    }
