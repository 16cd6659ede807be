"""Changes that a start finds: missing or renamed GPUs, a smaller machine, moved ports, a file from a copy."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio.testing

from dms_resources.components import CPU, GPU, RAM, Disk, MachineResources, OnboardedResources
from dms_resources.demands import CPUDemand, Demand, DiskDemand, GPUDemand, PortDemand, RAMDemand
from dms_resources.errors import AmountError, LeaseError, OnboardingError
from dms_resources.ledger.leases import ResourceAllocation
from dms_resources.refusals import InsufficientError, RequestError
from dms_resources.units import GIB, Cores

NewDemand = Callable[..., Demand]
NewMachine = Callable[..., MachineResources]
NewOffer = Callable[..., OnboardedResources]


async def test_gpus_that_are_gone_stay_promised_and_come_back_in_any_order(
    open_ledger: Any, new_machine: NewMachine, new_gpu: Callable[..., GPU], new_demand: NewDemand
) -> None:
    alone = GPUDemand(vram=GIB, exclusive=True, uuid="gpu-a")
    async with open_ledger() as manager:
        await manager.commit_resources("alone", new_demand(gpus=[alone]), holder="peer", ttl=1000.0)
        await manager.commit_resources("shared", new_demand(gpus=[4]), holder="peer", ttl=1000.0)
    # The driver is not loaded.
    async with open_ledger(machine=new_machine(gpus=())) as manager:
        assert isinstance(manager.would_fit(new_demand(gpus=[1])), InsufficientError)
        assert not any(gpu.vram for gpu in manager.get_free_resources().gpus)
        await manager.renew("alone", ttl=1000.0)
        await manager.release("shared")
    back = new_machine(gpus=(new_gpu("gpu-b", 10, index=0), new_gpu("gpu-a", 24, index=1)))
    async with open_ledger(machine=back) as manager:
        # The large one still belongs to its holder, the small one is free again, whatever their numbers are.
        assert isinstance(manager.would_fit(new_demand(gpus=[12])), InsufficientError)
        await manager.commit_resources("small", new_demand(gpus=[10]), holder="peer", ttl=1000.0)
        await manager.release("alone")
        await manager.commit_resources("large", new_demand(gpus=[24]), holder="peer", ttl=1000.0)


async def test_gpus_with_new_names_are_others(
    open_ledger: Any, new_machine: NewMachine, new_gpu: Callable[..., GPU], new_demand: NewDemand, new_offer: NewOffer
) -> None:
    async with open_ledger() as manager:
        await manager.commit_resources("lease", new_demand(gpus=[4]), holder="peer", ttl=1000.0)
    renamed = new_machine(gpus=(new_gpu("gpu-x", 24), new_gpu("gpu-y", 10)))
    async with open_ledger(machine=renamed) as manager:
        assert isinstance(manager.would_fit(new_demand(gpus=[1])), InsufficientError)
        with pytest.raises(OnboardingError, match="promised"):
            await manager.update_onboarded_resources(new_offer(renamed))
        await manager.release("lease")
        await manager.update_onboarded_resources(new_offer(renamed))
        await manager.commit_resources("both", new_demand(gpus=[24, 10]), holder="peer", ttl=1000.0)


async def test_a_machine_that_shrank_keeps_what_it_promised_and_promises_nothing_more(
    open_ledger: Any, new_machine: NewMachine, new_demand: NewDemand
) -> None:
    async with open_ledger() as manager:
        await manager.commit_resources("large", new_demand(6, 16, 100), holder="peer", ttl=1000.0)
        await manager.commit_resources("small", new_demand(1, 1, 1), holder="peer", ttl=1000.0)
    async with open_ledger(machine=new_machine(cores=2, ram=4, disk=50, gpus=())) as manager:
        free = manager.get_free_resources()
        assert (free.cpu.cores, free.ram.size, free.disk.size) == (Cores(0), 0, 0)
        with pytest.raises(InsufficientError):
            await manager.commit_resources("more", new_demand(1), holder="peer", ttl=10.0)
        await manager.renew("large", ttl=100.0)
        await manager.allocate_resources(ResourceAllocation(lease_id="large", holder="peer"))
        assert "oversold" in {finding.code for finding in await manager.audit()}
        await manager.release("large")
        await manager.commit_resources("more", new_demand(1, 3, 49), holder="peer", ttl=10.0)
        with pytest.raises(InsufficientError):
            await manager.commit_resources("again", new_demand(0.001), holder="peer", ttl=10.0)


async def test_ports_of_a_range_that_moved_are_given_to_nobody_twice(
    open_ledger: Any, machine: MachineResources, new_demand: NewDemand, new_offer: NewOffer
) -> None:
    first, moved = new_offer(machine, ports=(20_000, 20_009)), new_offer(machine, ports=(20_005, 20_010))
    taken = PortDemand(static=(20_001,), dynamic=5)
    async with open_ledger(onboarded=first) as manager:
        before = await manager.commit_resources("before", new_demand(), taken, holder="peer", ttl=1000.0)
        await manager.update_onboarded_resources(moved)
    async with open_ledger() as manager:
        after = await manager.commit_resources("after", new_demand(), PortDemand(dynamic=5), holder="peer", ttl=1000.0)
        assert not set(before.ports) & set(after.ports)
        with pytest.raises(RequestError):
            await manager.commit_resources("more", new_demand(), PortDemand(dynamic=1), holder="peer", ttl=1000.0)
        await manager.release("before")
        await manager.update_onboarded_resources(first)
        again = await manager.commit_resources("again", new_demand(), PortDemand(dynamic=6), holder="peer", ttl=1000.0)
        assert not set(again.ports) & set(after.ports)
        await manager.release("after")
        await manager.release("again")
        assert manager.get_free_resources().ports == 10


async def test_the_largest_amounts_are_promised_and_read_back(open_ledger: Any) -> None:
    most = 2**63 - 1
    cards = (GPU(uuid="one", vram=most), GPU(uuid="two", vram=most))
    largest = MachineResources(cpu=CPU(cores=Cores(10**15)), ram=RAM(size=most), disk=Disk(size=most), gpus=cards)
    everything = Demand(
        cpu=CPUDemand(cores=Cores(10**15)),
        ram=RAMDemand(size=most),
        disk=DiskDemand(size=most),
        gpus=(GPUDemand(vram=most), GPUDemand(vram=most, exclusive=True)),
    )
    async with open_ledger(machine=largest) as manager:
        await manager.commit_resources("all", everything, holder="peer", ttl=1000.0)
        with pytest.raises(InsufficientError):
            await manager.commit_resources("byte", Demand(ram=RAMDemand(size=1)), holder="peer", ttl=1000.0)
        await manager.allocate_resources(ResourceAllocation(lease_id="all", holder="peer"))
        for amount in (most + 1, -1, 2**64):
            with pytest.raises(AmountError):
                await manager.commit_resources("no", Demand(ram=RAMDemand(size=amount)), holder="peer", ttl=1.0)
    async with open_ledger(machine=largest) as manager:
        assert manager.get_total_allocation().ram.size == most
        assert sum(gpu.vram for gpu in manager.get_total_allocation().gpus) == 2 * most
        await manager.release("all")
        assert manager.get_free_resources().disk.size == most


async def test_ids_in_another_case_are_other_ids(open_ledger: Any, new_demand: NewDemand) -> None:
    async with open_ledger() as manager:
        await manager.commit_resources("Job", new_demand(1), holder="peer", ttl=1000.0)
        await manager.commit_resources("job", new_demand(1), holder="peer", ttl=1000.0)
        await manager.release("Job")
    async with open_ledger() as manager:
        assert [lease.lease_id for lease in manager.leases()] == ["job"]
        assert [end.lease_id for end in manager._ledger.book.ended.values()] == ["Job"]


async def test_a_ledger_from_a_copy_knows_what_the_copy_knew_and_no_more(
    open_ledger: Any, ledger_path: Path, new_demand: NewDemand
) -> None:
    copy = ledger_path.with_name("copy.db")
    async with open_ledger() as manager:
        await manager.commit_resources("before", new_demand(4), holder="peer", ttl=1000.0)
    shutil.copy(ledger_path, copy)
    async with open_ledger() as manager:
        await manager.commit_resources("after", new_demand(4), holder="other", ttl=1000.0)
        await manager.release("before")
    shutil.copy(copy, ledger_path)
    async with open_ledger() as manager:
        assert [lease.lease_id for lease in manager.leases()] == ["before"]
        # Its holder learns that it has no lease; its capacity may belong to another by now.
        with pytest.raises(LeaseError, match="no lease"):
            await manager.renew("after", ttl=60.0, holder="other")
        await manager.commit_resources("third", new_demand(4), holder="peer", ttl=1000.0)


async def test_what_expired_does_not_stand_in_the_way_of_another_offer(
    open_ledger: Any,
    clock: Any,
    machine: MachineResources,
    new_demand: NewDemand,
    new_offer: NewOffer,
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_ledger() as manager:
        await manager.commit_resources("lease", new_demand(8), holder="peer", ttl=10.0)
        clock.suspend(11)
        manager.check_onboarding(new_offer(machine, cores=1))
