"""Onboarding is checked against the machine and against the leases, and jobs are not affected."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import trio
import trio.testing

from dms_resources.components import GPU, Headroom, MachineResources, OnboardedResources
from dms_resources.demands import Demand
from dms_resources.errors import OnboardingError, StillPromisedError
from dms_resources.ledger.leases import ResourceAllocation
from dms_resources.refusals import DrainingError, InsufficientError, NotOnboardedError
from dms_resources.units import GIB, Cores

NewOffer = Callable[..., OnboardedResources]
NewDemand = Callable[..., Demand]


async def test_all_that_is_wrong_is_named_at_once(
    open_ledger: Any, machine: MachineResources, new_offer: NewOffer, new_gpu: Callable[..., GPU]
) -> None:
    async with open_ledger(onboard=False) as manager:
        with pytest.raises(OnboardingError) as caught:
            await manager.update_onboarded_resources(
                new_offer(
                    machine,
                    cores=9,
                    ram=33,
                    disk=501,
                    gpus=[new_gpu("gpu-a", 25), new_gpu("gpu-x", 1), new_gpu("gpu-x", 1)],
                    ports=(300, 200),
                    windows=["whenever"],
                )
            )
        problems = caught.value.problems
        assert [problem.split(":")[0].split()[0] for problem in problems] == [
            "CPU",
            "RAM",
            "disk",
            "GPU",
            "GPU",
            "GPU",
            "GPU",
            "ports",
            "invalid",
        ]
        assert manager.get_onboarded_resources() is None


async def test_all_of_the_machine_may_be_onboarded_and_not_a_byte_more(
    open_ledger: Any, machine: MachineResources, new_offer: NewOffer
) -> None:
    async with open_ledger(onboard=False) as manager:
        await manager.update_onboarded_resources(new_offer(machine))
        assert manager.get_free_resources().cpu.cores == machine.cpu.cores
        for less in ({"cores": 8.001}, {"ram": 33}, {"disk": 501}):
            with pytest.raises(OnboardingError):
                await manager.update_onboarded_resources(new_offer(machine, **less))


async def test_onboarding_again_leaves_jobs_alone_and_counts_them_once(
    open_ledger: Any, machine: MachineResources, new_offer: NewOffer, new_demand: NewDemand
) -> None:
    async with open_ledger() as manager:
        job = ResourceAllocation(lease_id="job", holder="peer", resources=new_demand(2, 4, 10, [8]))
        lease = await manager.allocate_resources(job)
        for cores, ram in ((8, 32), (4, 8), (2, 4), (8, 32)):
            await manager.update_onboarded_resources(new_offer(machine, cores=cores, ram=ram))
            free = manager.get_free_resources()
            assert free.cpu.cores == Cores.of(cores - 2)
            assert free.ram.size == (ram - 4) * GIB
            assert {gpu.uuid: gpu.vram // GIB for gpu in free.gpus} == {"gpu-a": 24, "gpu-b": 2}
            assert manager.leases() == (lease,)


@pytest.mark.parametrize(
    ("less", "name"),
    [
        ({"cores": 1.999}, "CPU: 1.999 cores asked"),
        ({"ram": 3}, "RAM: 3 GiB asked"),
        ({"disk": 9}, "disk: 9 GiB asked"),
        ({"headroom": Headroom(share=760)}, "CPU: 8 cores asked .less headroom. but 2 cores are promised"),
        ({"headroom": Headroom(ram=29 * GIB)}, "RAM: 32 GiB asked"),
    ],
)
async def test_nothing_is_onboarded_below_what_is_promised(
    open_ledger: Any,
    machine: MachineResources,
    new_offer: NewOffer,
    new_demand: NewDemand,
    less: dict[str, Any],
    name: str,
) -> None:
    async with open_ledger() as manager:
        await manager.commit_resources("lease", new_demand(2, 4, 10), holder="peer", ttl=60)
        with pytest.raises(OnboardingError, match=name):
            await manager.update_onboarded_resources(new_offer(machine, **less))
        assert manager.get_free_resources().cpu.cores == Cores.of(6)


async def test_a_gpu_with_a_job_is_not_taken_out_or_cut_below_it(
    open_ledger: Any, machine: MachineResources, new_offer: NewOffer, new_demand: NewDemand, new_gpu: Callable[..., GPU]
) -> None:
    async with open_ledger() as manager:
        await manager.commit_resources("lease", new_demand(gpus=[20]), holder="peer", ttl=60)
        for gpus in ([], [new_gpu("gpu-b", 10)], [new_gpu("gpu-a", 19), new_gpu("gpu-b", 10)]):
            with pytest.raises(OnboardingError, match="20 GiB of it are promised"):
                await manager.update_onboarded_resources(new_offer(machine, gpus=gpus))
        await manager.update_onboarded_resources(new_offer(machine, gpus=[new_gpu("gpu-a", 20)]))
        assert [gpu.vram for gpu in manager.get_free_resources().gpus] == [0]


async def test_headroom_is_never_offered(
    open_ledger: Any, machine: MachineResources, new_offer: NewOffer, new_demand: NewDemand
) -> None:
    keep = Headroom(share=100, cpu=Cores(200), ram=GIB, disk=5 * GIB)
    async with open_ledger(onboarded=new_offer(machine, headroom=keep)) as manager:
        free = manager.get_free_resources()
        assert free.cpu.cores == Cores(7000)
        assert free.ram.size == 32 * GIB - -(-32 * GIB // 10) - GIB
        assert [gpu.vram for gpu in free.gpus] == [24 * GIB - -(-24 * GIB // 10), 9 * GIB]
        with pytest.raises(InsufficientError):
            await manager.commit_resources("lease", new_demand(7.001), holder="peer", ttl=60)
        await manager.commit_resources("lease", new_demand(7, gpus=[9]), holder="peer", ttl=60)


async def test_offboarding_is_refused_while_anything_is_promised(open_ledger: Any, new_demand: NewDemand) -> None:
    async with open_ledger() as manager:
        await manager.commit_resources("lease", new_demand(0), holder="peer", ttl=60)
        with pytest.raises(StillPromisedError) as caught:
            await manager.offboard()
        assert (caught.value.lease_ids, caught.value.count) == (("lease",), 1)
        assert manager.get_free_resources().onboarded
        await manager.release("lease")
        await manager.offboard()
        assert manager.get_onboarded_resources() is None
        with pytest.raises(NotOnboardedError):
            await manager.commit_resources("next", new_demand(0), holder="peer", ttl=60)


async def test_a_drain_takes_nothing_new_and_waits_for_what_runs(
    open_ledger: Any, new_demand: NewDemand, autojump_clock: trio.testing.MockClock
) -> None:
    async with open_ledger() as manager:
        await manager.commit_resources("short", new_demand(1), holder="peer", ttl=60)
        await manager.commit_resources("job", new_demand(1), holder="peer", ttl=60)
        await manager.set_draining(True)
        await manager.allocate_resources(ResourceAllocation(lease_id="job", holder="peer"))
        with pytest.raises(DrainingError):
            await manager.commit_resources("next", new_demand(1), holder="peer", ttl=60)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(manager.wait_drained)
            await trio.sleep(100)
            assert not manager.is_committed("short")
            assert nursery.child_tasks
            await manager.release("job")
        await manager.offboard()
        assert not manager.draining


async def test_draining_survives_a_restart(open_ledger: Any, new_demand: NewDemand) -> None:
    async with open_ledger() as manager:
        await manager.set_draining(True)
    async with open_ledger() as manager:
        assert manager.draining
        await manager.set_draining(False)
        await manager.commit_resources("lease", new_demand(1), holder="peer", ttl=60)


async def test_a_machine_that_lost_something_offers_less_and_keeps_its_promises(
    open_ledger: Any, machine: MachineResources, new_machine: Any, new_gpu: Any, new_demand: NewDemand
) -> None:
    async with open_ledger() as manager:
        await manager.commit_resources("lease", new_demand(2, gpus=[20]), holder="peer", ttl=60)
        manager.update_machine(new_machine(cores=4, gpus=[new_gpu("gpu-b", 10)]))
        free = manager.get_free_resources()
        assert free.cpu.cores == Cores.of(2)
        assert [gpu.uuid for gpu in free.gpus] == ["gpu-b"]
        with pytest.raises(InsufficientError):
            await manager.commit_resources("next", new_demand(gpus=[11]), holder="peer", ttl=60)
        assert "device_gone" in {finding.code for finding in await manager.audit()}
        assert manager.lease("lease").resources.gpus[0].uuid == "gpu-a"
        manager.update_machine(machine)
        assert {gpu.uuid: gpu.vram // GIB for gpu in manager.get_free_resources().gpus} == {"gpu-a": 4, "gpu-b": 10}
        await manager.release("lease")
        assert manager.get_free_resources().cpu.cores == Cores.of(8)


async def test_two_of_the_owners_changes_do_not_undo_each_other(
    open_ledger: Any, machine: MachineResources, new_offer: NewOffer
) -> None:
    async with open_ledger() as manager:
        async with trio.open_nursery() as nursery:
            # Both wait for the disk to recover before they are decided.
            manager._ledger.journal.failed = RuntimeError("gone")
            nursery.start_soon(manager.set_draining, True)
            nursery.start_soon(manager.update_onboarded_resources, new_offer(machine, cores=4))
        assert manager.draining
        assert manager.get_free_resources().cpu.cores == Cores.of(4)
