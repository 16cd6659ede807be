"""The manager as its callers see it: the seed's calls, restarts, windows, and what it remembers."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any

import pytest
import trio
import trio.testing

from dms_resources.components import MachineResources, OnboardedResources
from dms_resources.demands import CPUDemand, CPUShortage, Demand, DiskShortage, GPUDemand, PortDemand, RAMShortage
from dms_resources.errors import NotAllocatedError, NotCommittedError
from dms_resources.ledger.capacity import Granted
from dms_resources.ledger.leases import EndReason, LeaseRequest, LeaseState, ResourceAllocation
from dms_resources.refusals import InsufficientError, PhysicalError, RequestError, WindowError
from dms_resources.units import GIB, Cores

NewDemand = Callable[..., Demand]


@pytest.fixture
def utc() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TZ", "UTC0")
        time.tzset()
        yield
    time.tzset()


async def test_free_is_onboarded_less_commitments_less_allocations(open_ledger: Any, new_demand: NewDemand) -> None:
    async with open_ledger() as manager:
        await manager.commit_resources("one", new_demand(1, 2, 3, [8]), PortDemand(dynamic=2), holder="peer", ttl=60)
        await manager.allocate_resources(
            ResourceAllocation(lease_id="two", holder="peer", resources=new_demand(2.5, 4, 30, [20]))
        )
        free = manager.get_free_resources()
        assert (free.cpu.cores, free.ram.size, free.disk.size) == (Cores(4500), 26 * GIB, 467 * GIB)
        assert {gpu.uuid: gpu.vram // GIB for gpu in free.gpus} == {"gpu-a": 4, "gpu-b": 2}
        assert free.ports == 98
        allocated, committed = manager.get_total_allocation(), manager.get_total_commitment()
        assert (allocated.cpu.cores, allocated.ram.size) == (Cores(2500), 4 * GIB)
        assert [(gpu.uuid, gpu.vram // GIB) for gpu in allocated.gpus] == [("gpu-a", 20)]
        assert (committed.cpu.cores, committed.disk.size) == (Cores(1000), 3 * GIB)
        assert [(gpu.uuid, gpu.vram // GIB) for gpu in committed.gpus] == [("gpu-b", 8)]


async def test_a_check_changes_nothing(open_ledger: Any, new_demand: NewDemand) -> None:
    async with open_ledger() as manager:
        before, version = manager.get_free_resources(), manager.version
        for demand in (new_demand(1, gpus=[8, 8]), new_demand(99, 99, 999, [25])):
            for _ in range(3):
                manager.would_fit(demand, PortDemand(static=(20_000,), dynamic=3), ttl=60)
        assert (manager.get_free_resources(), manager.version) == (before, version)


async def test_a_restart_gives_everything_back(open_ledger: Any, new_demand: NewDemand) -> None:
    async with open_ledger() as manager:
        await manager.commit_group(
            [
                LeaseRequest(lease_id=f"node-{n}", holder="peer", demand=new_demand(1, gpus=[8]), ttl=600)
                for n in range(2)
            ],
            group="ensemble",
        )
        await manager.allocate_resources(ResourceAllocation(lease_id="node-0", holder="peer"))
        await manager.commit_resources(
            "alone", new_demand(1, gpus=[GPUDemand(vram=GIB)]), PortDemand(static=(20_007,)), holder="peer", ttl=600
        )
        await manager.commit_resources("gone", new_demand(1), holder="peer", ttl=600)
        ended = await manager.release("gone")
        leases, free = set(manager.leases()), manager.get_free_resources()
    async with open_ledger() as manager:
        assert set(manager.leases()) == leases
        assert manager.get_free_resources() == free
        assert await manager.release("gone") == ended
        assert {lease.group for lease in manager.leases()} == {"ensemble", ""}
        with pytest.raises(InsufficientError):
            await manager.commit_resources("next", new_demand(0), PortDemand(static=(20_007,)), holder="peer", ttl=60)
        # A fencing number is greater than all before it, also across a restart.
        lease = await manager.commit_resources("next", new_demand(0), holder="peer", ttl=60)
        assert lease.fence == 5


async def test_what_runs_survives_a_restart_on_a_machine_without_its_gpu(
    open_ledger: Any, new_machine: Any, new_demand: NewDemand, machine: MachineResources
) -> None:
    async with open_ledger() as manager:
        await manager.allocate_resources(
            ResourceAllocation(lease_id="job", holder="peer", resources=new_demand(1, gpus=[20]))
        )
    async with open_ledger(machine=new_machine(gpus=[])) as manager:
        assert manager.is_allocated("job")
        assert isinstance(manager.would_fit(new_demand(gpus=[1])), InsufficientError)
    async with open_ledger(machine=machine) as manager:
        assert {gpu.uuid: gpu.vram // GIB for gpu in manager.get_free_resources().gpus} == {"gpu-a": 4, "gpu-b": 10}
        await manager.deallocate_resources("job")
        assert manager.get_free_resources().gpus[0].vram == 24 * GIB


async def test_leases_of_one_holder(open_ledger: Any, new_demand: NewDemand) -> None:
    async with open_ledger() as manager:
        for number, holder in enumerate(("one", "two", "one")):
            await manager.commit_resources(f"lease-{number}", new_demand(1), holder=holder, ttl=60)
        assert [lease.lease_id for lease in manager.leases("one")] == ["lease-0", "lease-2"]
        assert manager.leases("nobody") == ()
        await manager.release("lease-0")
        assert [lease.lease_id for lease in manager.leases("one")] == ["lease-2"]


async def test_states_are_told_apart(open_ledger: Any, new_demand: NewDemand) -> None:
    async with open_ledger() as manager:
        await manager.commit_resources("lease", new_demand(1), holder="peer", ttl=60)
        assert (manager.is_committed("lease"), manager.is_allocated("lease")) == (True, False)
        with pytest.raises(NotAllocatedError):
            await manager.deallocate_resources("lease")
        await manager.allocate_resources(ResourceAllocation(lease_id="lease", holder="peer"))
        assert (manager.is_committed("lease"), manager.is_allocated("lease")) == (False, True)
        with pytest.raises(NotCommittedError):
            await manager.uncommit_resources("lease")
        ended = await manager.deallocate_resources("lease")
        assert (ended.state, ended.reason) == (LeaseState.ALLOCATED, EndReason.RELEASED)
        assert (manager.is_committed("lease"), manager.is_allocated("lease")) == (False, False)
        assert manager.lease("lease") is None


async def test_a_commitment_never_counts_twice_or_not_at_all(open_ledger: Any, new_demand: NewDemand) -> None:
    async def slow(call: Callable[[], None]) -> None:
        await trio.lowlevel.checkpoint()
        call()
        await trio.lowlevel.checkpoint()

    async with open_ledger(worker=slow) as manager:
        await manager.commit_resources("lease", new_demand(3, gpus=[20]), holder="peer", ttl=60)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(manager.allocate_resources, ResourceAllocation(lease_id="lease", holder="peer"))
            for _ in range(10):
                both = manager.get_total_allocation().cpu.cores + manager.get_total_commitment().cpu.cores
                assert both == Cores.of(3)
                assert manager.get_free_resources().cpu.cores == Cores.of(5)
                assert manager.get_free_resources().gpus[0].vram == 4 * GIB
                await trio.lowlevel.checkpoint()


async def test_history_says_who_what_when_and_why(
    open_ledger: Any, clock: Any, new_demand: NewDemand, autojump_clock: trio.testing.MockClock
) -> None:
    async with open_ledger() as manager:
        start = clock.wall()
        await manager.commit_resources("kept", new_demand(1, 2), holder="peer", ttl=600)
        await manager.commit_resources("short", new_demand(1), holder="other", ttl=10)
        await manager.renew("kept", ttl=600)
        await manager.allocate_resources(ResourceAllocation(lease_id="kept", holder="peer"))
        await trio.sleep(11)
        await manager.deallocate_resources("kept")
        await manager.set_draining(True)
        await manager.offboard()
        entries = [entry for _, entry in reversed(await manager.history())]
    assert [(entry.actor, entry.action, entry.lease_id, entry.reason) for entry in entries] == [
        ("owner", "onboard", "", ""),
        ("peer", "commit", "kept", ""),
        ("other", "commit", "short", ""),
        ("peer", "renew", "kept", ""),
        ("peer", "allocate", "kept", ""),
        ("deadline", "end", "short", "expired"),
        ("peer", "end", "kept", "released"),
        ("owner", "drain", "", ""),
        ("owner", "offboard", "", ""),
    ]
    assert entries[1].detail == "1 core, 2 GiB RAM, 0 B disk"
    assert entries[5].at == pytest.approx(start + 10, abs=0.1)


@pytest.mark.usefixtures("utc")
async def test_nothing_outlives_the_owners_night(
    open_ledger: Any,
    clock: Any,
    machine: MachineResources,
    new_offer: Callable[..., OnboardedResources],
    new_demand: NewDemand,
    autojump_clock: trio.testing.MockClock,
) -> None:
    clock.jump(datetime(2026, 11, 24, 20).timestamp() - clock.wall())
    async with open_ledger(onboarded=new_offer(machine, windows=["22:00-06:00"])) as manager:

        async def commit(lease_id: str, hours: float) -> None:
            await manager.commit_resources(lease_id, new_demand(1), holder="peer", ttl=hours * 3600)

        with pytest.raises(WindowError) as caught:
            await commit("early", 1)
        assert caught.value.retry_after == pytest.approx(7200, abs=1)
        refusal = manager.would_fit(new_demand(1), ttl=60)
        assert isinstance(refusal, WindowError)
        await trio.sleep(2 * 3600)
        await commit("night", 7.99)
        with pytest.raises(WindowError):
            await commit("too long", 8.01)
        await trio.sleep(7 * 3600)
        assert manager.is_committed("night")
        with pytest.raises(WindowError):
            await manager.renew("night", ttl=2 * 3600)
        await manager.renew("night", ttl=1800)
        await trio.sleep(1801)
        assert not manager.is_committed("night")
        # Setting the wall clock moves the owner's window.
        clock.jump(-12 * 3600)
        with pytest.raises(WindowError):
            await commit("early again", 1)


async def test_a_window_opens_and_closes_at_its_second(
    open_ledger: Any,
    clock: Any,
    machine: MachineResources,
    new_offer: Callable[..., OnboardedResources],
    new_demand: NewDemand,
    autojump_clock: trio.testing.MockClock,
) -> None:
    clock.jump(datetime(2026, 11, 24, 21, 59, 50).timestamp() - clock.wall())
    async with open_ledger(onboarded=new_offer(machine, windows=["22:00-22:01"])) as manager:

        def fits() -> bool:
            return isinstance(manager.would_fit(new_demand(1), ttl=1), Granted)

        # What was found out at one second does not count beyond the next change.
        assert not fits()
        await trio.sleep(11)
        assert fits()
        await trio.sleep(60)
        assert not fits()


async def test_several_demands_are_tried_beside_each_other(open_ledger: Any, new_demand: NewDemand) -> None:
    async with open_ledger() as manager:
        requests = [
            LeaseRequest(lease_id="", holder="", demand=new_demand(5), ports=PortDemand(static=(20_000,)), ttl=60),
            LeaseRequest(lease_id="", holder="", demand=new_demand(5), ttl=60),
            LeaseRequest(lease_id="", holder="", demand=new_demand(3), ports=PortDemand(static=(20_000,)), ttl=60),
            LeaseRequest(lease_id="", holder="", demand=new_demand(3), ports=PortDemand(dynamic=1), ttl=60),
        ]
        answers = manager.would_fit_together(requests)
        assert [isinstance(answer, Granted) for answer in answers] == [True, False, False, True]
        assert isinstance(answers[3], Granted)
        assert answers[3].ports == (20_001,)


class Monitor:
    """A usage monitor with the sample that the test gives it."""

    def __init__(self, machine: MachineResources) -> None:
        self.machine = machine
        self.sample: object = object()

    def get_usage(self) -> None:
        return None

    async def run(self, *, task_status: Any) -> None:
        task_status.started()
        await trio.sleep_forever()


@pytest.mark.parametrize("guard", ["off", "warn", "enforce"])
async def test_what_the_machine_is_short_of_now_is_refused_where_the_owner_wants_it(
    open_ledger: Any,
    machine: MachineResources,
    new_demand: NewDemand,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    guard: str,
) -> None:
    shortage = RAMShortage(asked=GIB, free=0, total=GIB)
    monkeypatch.setattr("dms_resources.machine.guard.physical_shortages", lambda *rest: (shortage,))
    async with open_ledger(usage_monitor=Monitor(machine), guard=guard) as manager:
        answer = manager.would_fit(new_demand(1, 1))
        if guard == "enforce":
            assert isinstance(answer, PhysicalError)
            assert answer.shortages == (shortage,)
            with pytest.raises(PhysicalError):
                await manager.commit_resources("lease", new_demand(1, 1), holder="peer", ttl=60)
        else:
            assert isinstance(answer, Granted)
            await manager.commit_resources("lease", new_demand(1, 1), holder="peer", ttl=60)
        assert ("promised beyond what is free now" in caplog.text) == (guard == "warn")


@pytest.mark.parametrize("guard", ["off", "warn"])
async def test_a_disk_that_filled_up_is_not_promised_unless_the_guard_is_off(
    open_ledger: Any, machine: MachineResources, new_demand: NewDemand, monkeypatch: pytest.MonkeyPatch, guard: str
) -> None:
    full = DiskShortage(asked=GIB, free=0, total=GIB)
    busy = RAMShortage(asked=GIB, free=0, total=GIB)
    monkeypatch.setattr("dms_resources.machine.guard.physical_shortages", lambda *rest: (busy, full))
    async with open_ledger(usage_monitor=Monitor(machine), guard=guard) as manager:
        answer = manager.would_fit(new_demand(1, 1))
        if guard == "off":
            assert isinstance(answer, Granted)
        else:
            assert isinstance(answer, PhysicalError)
            assert answer.shortages == (full,)


async def test_a_machine_that_changes_is_followed(
    open_ledger: Any, machine: MachineResources, new_machine: Any, autojump_clock: trio.testing.MockClock
) -> None:
    monitor = Monitor(machine)
    async with open_ledger(usage_monitor=monitor) as manager:
        monitor.machine = new_machine(cores=2)
        await trio.sleep(6)
        assert manager.get_free_resources().cpu.cores == Cores.of(2)
        assert [type(one).__name__ for one in manager.missing_resources] == ["CPUMissing"]


async def test_a_real_thread_writes_and_no_thread_is_left(open_ledger: Any, new_demand: NewDemand) -> None:
    async with open_ledger(worker=trio.to_thread.run_sync) as manager:
        await manager.commit_resources("lease", new_demand(1), holder="peer", ttl=60)
        assert isinstance(manager.would_fit(new_demand(8)), RequestError)
        await manager.release("lease")
    assert trio.to_thread.current_default_thread_limiter().borrowed_tokens == 0


async def test_no_number_of_a_process_is_too_strange(open_ledger: Any, new_demand: NewDemand) -> None:
    async with open_ledger() as manager:
        lease = await manager.allocate_resources(
            ResourceAllocation(
                lease_id="job", holder="peer", resources=new_demand(1), processes=(-1, 2**80, 2**22 + 1, os.getpid())
            )
        )
        assert [started > 0 for _, started in lease.processes] == [False, False, False, True]


async def test_a_caller_that_asks_again_after_every_refusal_does_not_keep_others_from_running(
    open_ledger: Any, new_demand: NewDemand
) -> None:
    async with open_ledger() as manager:
        turns = 0

        async def somebody_else() -> None:
            nonlocal turns
            while True:
                turns += 1
                await trio.lowlevel.checkpoint()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(somebody_else)
            for _ in range(20):
                with pytest.raises(RequestError):
                    await manager.commit_resources("lease", new_demand(10_000), holder="peer", ttl=60)
            assert turns >= 10
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize("guard", ["warn", "enforce"])
async def test_a_busy_cpu_is_warned_about_and_never_refuses(
    open_ledger: Any, machine: MachineResources, new_demand: NewDemand, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture, guard: str,
) -> None:  # fmt: skip
    cores = CPUDemand(cores=Cores(1000))
    busy = CPUShortage(asked=cores, free=CPUDemand(cores=Cores(0)), total=cores)
    monkeypatch.setattr("dms_resources.machine.guard.physical_shortages", lambda *rest: (busy,))
    async with open_ledger(usage_monitor=Monitor(machine), guard=guard) as manager:
        assert isinstance(manager.would_fit(new_demand(1, 1)), Granted)
        assert "promised beyond what is free now" in caplog.text
