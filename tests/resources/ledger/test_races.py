"""A thousand tasks race for the last unit of each dimension: one gets it, the others get all shortages."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import trio
import trio.testing

from dms_resources.components import HoldLimits, MachineResources, OnboardedResources
from dms_resources.demands import (
    CPUShortage,
    Demand,
    DiskShortage,
    GPUDemand,
    GPUShortage,
    PortDemand,
    PortShortage,
    RAMShortage,
    Shortage,
)
from dms_resources.errors import ConflictError, LeaseError, ResourcesError
from dms_resources.ledger.leases import Lease, LeaseRequest, LeaseState, ResourceAllocation
from dms_resources.refusals import InsufficientError
from dms_resources.units import GIB, Cores

TASKS = 1000
LAST_PORT = PortDemand(static=(20_000,))
ANY_PORTS = PortDemand(dynamic=100)

CASES: dict[str, tuple[dict[str, Any], PortDemand, set[type[Shortage]]]] = {  # type: ignore[valid-type]
    "cpu": ({"cores": 8}, PortDemand(), {CPUShortage}),
    "millicore": ({"cores": 4.001}, PortDemand(), {CPUShortage}),
    "ram": ({"ram": 32}, PortDemand(), {RAMShortage}),
    "disk": ({"disk": 500}, PortDemand(), {DiskShortage}),
    "vram": ({"gpus": [20]}, PortDemand(), {GPUShortage}),
    "exclusive gpu": ({"gpus": [GPUDemand(vram=11 * GIB, exclusive=True)]}, PortDemand(), {GPUShortage}),
    "certain gpu": ({"gpus": [GPUDemand(vram=6 * GIB, uuid="gpu-b")]}, PortDemand(), {GPUShortage}),
    "two gpus": ({"gpus": [6, 9]}, PortDemand(), {GPUShortage}),
    "port": ({}, LAST_PORT, {PortShortage}),
    "any ports": ({}, ANY_PORTS, {PortShortage}),
    "all": (
        {"cores": 8, "ram": 32, "disk": 500, "gpus": [24, 10]},
        ANY_PORTS,
        {CPUShortage, RAMShortage, DiskShortage, GPUShortage, PortShortage},
    ),
}


async def race(calls: list[Callable[[], Any]]) -> tuple[list[Any], list[ResourcesError]]:
    """Start all at the same moment and wait for all."""
    start, won, lost = trio.Event(), [], []

    async def run(call: Callable[[], Any]) -> None:
        await start.wait()
        try:
            won.append(await call())
        except ResourcesError as error:
            lost.append(error)

    async with trio.open_nursery() as nursery:
        for call in calls:
            nursery.start_soon(run, call)
        await trio.testing.wait_all_tasks_blocked()
        start.set()
    return won, lost


@pytest.mark.parametrize("how", ["commit", "allocate", "hold"])
@pytest.mark.parametrize("dimension", CASES)
async def test_one_gets_the_last_unit_and_the_others_learn_what_is_short(
    open_ledger: Any,
    machine: MachineResources,
    new_demand: Callable[..., Demand],
    new_offer: Callable[..., OnboardedResources],
    dimension: str,
    how: str,
) -> None:
    wanted, ports, short = CASES[dimension]
    demand = new_demand(**wanted)
    holds = HoldLimits(max_seconds=60, per_holder=2, total=5000, share=1000)
    async with open_ledger(onboarded=new_offer(machine, holds=holds), worker=trio.to_thread.run_sync) as manager:

        def call(number: int) -> Callable[[], Any]:
            lease_id, holder = f"lease-{number}", f"peer-{number}"
            request = LeaseRequest(lease_id=lease_id, holder=holder, demand=demand, ports=ports, ttl=60)
            allocation = ResourceAllocation(lease_id=lease_id, holder=holder, resources=demand, ports=ports)
            return {
                "commit": lambda: manager.commit_group([request]),
                "allocate": lambda: manager.allocate_resources(allocation),
                "hold": lambda: manager.hold([request]),
            }[how]

        won, lost = await race([call(number) for number in range(TASKS)])
        assert len(won) == 1
        assert len(lost) == TASKS - 1
        for error in lost:
            assert isinstance(error, InsufficientError)
            assert {type(shortage) for shortage in error.shortages} == short
            assert (error.retry_after is None) == (how == "allocate")
        assert len(manager.leases()) == 1


async def test_as_many_win_as_there_are_units(open_ledger: Any, new_demand: Callable[..., Demand]) -> None:
    async with open_ledger(worker=trio.to_thread.run_sync) as manager:
        won, lost = await race(
            [
                lambda number=number: manager.commit_resources(
                    f"lease-{number}",
                    new_demand(0.1, gpus=[1]),
                    PortDemand(dynamic=1),
                    holder="peer",
                    ttl=60,
                )
                for number in range(TASKS)
            ]
        )
        assert (len(won), len(lost)) == (34, TASKS - 34)
        ports = [port for lease in won for port in lease.ports]
        assert len(set(ports)) == 34
        assert sorted(lease.fence for lease in won) == list(range(1, 35))
        by_device = [gpu.uuid for lease in won for gpu in lease.resources.gpus]
        assert (by_device.count("gpu-a"), by_device.count("gpu-b")) == (24, 10)


async def test_commits_of_one_id_have_one_winner(open_ledger: Any, new_demand: Callable[..., Demand]) -> None:
    async with open_ledger(worker=trio.to_thread.run_sync) as manager:
        won, lost = await race(
            [
                lambda number=number: manager.commit_resources(
                    "lease", new_demand(1 + number % 2), holder="peer", ttl=60
                )
                for number in range(TASKS)
            ]
        )
        assert (len(won), len(lost)) == (TASKS // 2, TASKS // 2)
        assert all(isinstance(error, ConflictError) for error in lost)
        assert len({repr(lease) for lease in won}) == 1
        assert manager.get_free_resources().cpu.cores == Cores(8000 - won[0].resources.cpu.cores.millicores)


async def test_a_lease_ends_once_and_is_allocated_or_given_back(
    open_ledger: Any, new_demand: Callable[..., Demand]
) -> None:
    async with open_ledger(worker=trio.to_thread.run_sync) as manager:
        for round_ in range(20):
            lease_id = f"lease-{round_}"
            await manager.commit_resources(lease_id, new_demand(8), holder="peer", ttl=60)
            allocation = ResourceAllocation(lease_id=lease_id, holder="peer")
            won, lost = await race(
                [
                    lambda allocation=allocation: manager.allocate_resources(allocation),
                    lambda lease_id=lease_id: manager.uncommit_resources(lease_id),
                ]
            )
            assert len(won) == len(lost) == 1
            assert isinstance(lost[0], LeaseError)
            if isinstance(won[0], Lease):
                assert won[0].state is LeaseState.ALLOCATED
                await manager.deallocate_resources(lease_id)
            assert manager.get_free_resources().cpu.cores == Cores.of(8)
