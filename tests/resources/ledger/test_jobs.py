"""Jobs of allocations: capacity comes back when the job is gone, not when the lease ends."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
import trio
import trio.testing

import dms_resources.ledger.book as book_module
from dms_resources.bounded_dict import BoundedDict
from dms_resources.demands import Demand, PortDemand
from dms_resources.errors import (
    AmountError,
    ConflictError,
    EndedError,
    EvictedError,
    ExpiredError,
    LeaseError,
    NotAllocatedError,
    NotHolderError,
    StaleFenceError,
    StillPromisedError,
)
from dms_resources.ledger.leases import EndedLease, EndReason, Lease, LeaseJob, LeaseState, ResourceAllocation
from dms_resources.manager import AllocationTerms, ResourceManager
from dms_resources.refusals import InsufficientError
from dms_resources.units import Cores

NewDemand = Callable[..., Demand]
DIGEST, OTHER = "ab" * 32, "cd" * 32


@pytest.fixture
async def manager(open_ledger: Any) -> AsyncIterator[ResourceManager]:
    async with open_ledger(allocation_terms=AllocationTerms(keep_alive=900.0)) as opened:
        yield opened


async def run_job(manager: ResourceManager, demand: Demand, lease_id: str = "lease") -> Lease:
    ports = PortDemand(dynamic=1)
    await manager.commit_resources(lease_id, demand, ports, holder="peer", ttl=60.0)
    lease = await manager.allocate_resources(ResourceAllocation(lease_id=lease_id, holder="peer"))
    return await manager.attach_job(lease_id, DIGEST, holder="peer", fence=lease.fence)


async def release(manager: ResourceManager) -> EndReason:
    return (await manager.release("lease", holder="peer")).reason


async def deallocate(manager: ResourceManager) -> EndReason:
    return (await manager.deallocate_resources("lease", holder="peer")).reason


async def evict(manager: ResourceManager) -> EndReason:
    (ended,) = (await manager.evict(["lease"], reason="a game")).ended
    return ended.reason


async def evict_with_notice(manager: ResourceManager) -> EndReason:
    await manager.evict(holder="peer", notice=5.0)
    await trio.sleep(5.0)
    return EndReason.EVICTED


async def drain(manager: ResourceManager) -> EndReason:
    (ended,) = (await manager.drain(evict=True)).ended
    await manager.set_draining(False)
    return ended.reason


async def lose(manager: ResourceManager) -> EndReason:
    await trio.sleep(900.0)
    return EndReason.LOST


WAYS = [release, deallocate, evict, evict_with_notice, drain, lose]
TOLD = {EndReason.RELEASED: EndedError, EndReason.EVICTED: EvictedError, EndReason.LOST: ExpiredError}


@pytest.mark.parametrize("end", WAYS, ids=lambda one: one.__name__)
async def test_a_lease_that_ends_counts_until_its_job_is_gone(
    manager: ResourceManager,
    new_demand: NewDemand,
    end: Callable[[ResourceManager], Awaitable[EndReason]],
    autojump_clock: trio.testing.MockClock,
) -> None:
    before = manager.get_free_resources()
    lease = await run_job(manager, new_demand(7, gpus=[20]))
    during = manager.get_free_resources()
    reason = await end(manager)

    # The owner sees what is still taken.
    (ending,) = manager.leases()
    assert (ending.state, ending.deadline, ending.fence) == (LeaseState.ENDING, None, lease.fence)
    assert ending.ended is not None
    assert (ending.ended.state, ending.ended.reason) == (LeaseState.ALLOCATED, reason)
    assert manager.lease_counts[LeaseState.ENDING] == 1
    assert manager.get_free_resources() == during
    assert manager.get_total_allocation().cpu.cores == Cores.of(7)
    assert not manager.is_allocated("lease")
    assert isinstance(manager.would_fit(new_demand(2)), InsufficientError)
    assert isinstance(manager.would_fit(new_demand(gpus=[20])), InsufficientError)

    # For its holder it has ended, and its id is not given out again.
    told = TOLD[reason]
    for call in (
        lambda: manager.renew("lease", ttl=60.0, holder="peer"),
        lambda: manager.commit_resources("lease", new_demand(1), holder="peer", ttl=60.0),
        lambda: manager.allocate_resources(ResourceAllocation(lease_id="lease", holder="peer")),
        lambda: manager.attach_job("lease", DIGEST, holder="peer"),
    ):
        with pytest.raises(told):
            await call()
    if reason is EndReason.RELEASED:
        assert (await manager.release("lease", holder="peer", fence=lease.fence)).reason is reason
    else:
        with pytest.raises(told):
            await manager.release("lease", holder="peer")
    with pytest.raises(NotHolderError):
        await manager.renew("lease", ttl=60.0, holder="stranger")
    await trio.sleep(3_600.0)
    assert manager.lease("lease") == ending, "no deadline frees it"

    await manager.job_gone("lease", fence=lease.fence)
    assert manager.leases() == ()
    assert manager.get_free_resources() == before
    with pytest.raises(told):
        await manager.renew("lease", ttl=60.0, holder="peer")


async def test_a_lease_whose_job_is_gone_ends_at_once(manager: ResourceManager, new_demand: NewDemand) -> None:
    before = manager.get_free_resources()
    lease = await run_job(manager, new_demand(2))
    await manager.job_gone("lease", fence=lease.fence)
    assert manager.lease("lease").job == LeaseJob(digest=DIGEST, gone=True)  # type: ignore[union-attr]
    assert manager.is_allocated("lease")
    await manager.release("lease")
    assert manager.get_free_resources() == before
    await manager.job_gone("lease", fence=lease.fence)
    await manager.job_gone("lease", fence=lease.fence)
    assert len([one for _, one in await manager.history() if one.action == "end"]) == 1


async def test_a_lease_carries_one_job(manager: ResourceManager, new_demand: NewDemand) -> None:
    lease = await run_job(manager, new_demand(2))
    assert lease.job == LeaseJob(digest=DIGEST)
    assert await manager.attach_job("lease", DIGEST, holder="peer", fence=lease.fence) == lease
    with pytest.raises(ConflictError):
        await manager.attach_job("lease", OTHER, holder="peer")
    await manager.job_gone("lease", fence=lease.fence)
    with pytest.raises(ConflictError):
        await manager.attach_job("lease", OTHER, holder="peer")
    assert (await manager.attach_job("lease", DIGEST)).job == LeaseJob(digest=DIGEST, gone=True)
    assert manager.leases_with_jobs() == manager.leases()


async def test_a_job_needs_an_allocation_of_its_holder(manager: ResourceManager, new_demand: NewDemand) -> None:
    async def refused(error: type[LeaseError], **named: Any) -> None:
        with pytest.raises(error):
            await manager.attach_job("lease", DIGEST, **named)

    await refused(NotAllocatedError, holder="peer")
    lease = await manager.commit_resources("lease", new_demand(1), holder="peer", ttl=60.0)
    await refused(NotAllocatedError, holder="peer")
    await manager.allocate_resources(ResourceAllocation(lease_id="lease", holder="peer"))
    await refused(NotHolderError, holder="stranger")
    await refused(StaleFenceError, holder="peer", fence=lease.fence + 1)
    for digest in ("", "AB", "xyz", "a" * 129, "a\n"):
        with pytest.raises(AmountError):
            await manager.attach_job("lease", digest)
    assert manager.leases_with_jobs() == ()


async def test_how_a_job_ended_has_a_bound_in_the_history(manager: ResourceManager, new_demand: NewDemand) -> None:
    lease = await run_job(manager, new_demand(1))
    await manager.job_gone("lease", fence=lease.fence, how="a\nb\x1b[31m" + "c" * 1000)
    (gone,) = [one for _, one in await manager.history() if one.action == "gone"]
    assert gone.detail == "a?b?[31m" + "c" * 192


@pytest.mark.parametrize("fence", [-1, 1])
async def test_the_job_of_another_lease_frees_nothing(
    manager: ResourceManager, new_demand: NewDemand, fence: int
) -> None:
    lease = await run_job(manager, new_demand(2))
    await manager.release("lease")
    await manager.job_gone("lease", fence=lease.fence + fence)
    await manager.job_gone("unknown", fence=lease.fence)
    assert [one.state for one in manager.leases()] == [LeaseState.ENDING]


async def test_a_lease_without_a_job_is_not_touched(manager: ResourceManager, new_demand: NewDemand) -> None:
    lease = await manager.commit_resources("lease", new_demand(1), holder="peer", ttl=60.0)
    await manager.job_gone("lease", fence=lease.fence)
    assert manager.leases() == (lease,)


async def test_an_ending_lease_knows_how_it_ended_when_that_is_forgotten(
    manager: ResourceManager, new_demand: NewDemand, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: BoundedDict[str, EndedLease] = BoundedDict(2)
    monkeypatch.setattr(manager._ledger.book, "ended", ended)
    lease = await run_job(manager, new_demand(1))
    await manager.evict(["lease"])
    for name in ("one", "two", "three"):
        await manager.commit_resources(name, new_demand(1), holder="other", ttl=60.0)
        await manager.release(name)
    assert "lease" not in ended
    for _ in range(2):
        with pytest.raises(EvictedError):
            await manager.commit_resources("lease", new_demand(1), holder="peer", ttl=60.0)
        await manager.job_gone("lease", fence=lease.fence)
    assert book_module.MOST_ENDED > 2


async def test_jobs_outlive_the_ledger(open_ledger: Any, new_demand: NewDemand) -> None:
    async with open_ledger() as manager:
        gone = await run_job(manager, new_demand(1), "gone")
        await manager.job_gone("gone", fence=gone.fence)
        ending = await run_job(manager, new_demand(1), "ending")
        await run_job(manager, new_demand(1), "running")
        await manager.release("ending")
        leases, free = manager.leases_with_jobs(), manager.get_free_resources()
    async with open_ledger(onboarded=None) as manager:
        assert set(manager.leases_with_jobs()) == set(leases)
        assert manager.get_free_resources() == free
        with pytest.raises(EndedError):
            await manager.renew("ending", ttl=60.0, holder="peer")
        await manager.job_gone("ending", fence=ending.fence)
    async with open_ledger(onboarded=None) as manager:
        assert {lease.lease_id for lease in manager.leases()} == {"gone", "running"}


async def test_draining_waits_for_jobs_and_offboarding_is_refused(
    manager: ResourceManager, new_demand: NewDemand
) -> None:
    lease = await run_job(manager, new_demand(1))
    await manager.commit_resources("other", new_demand(1), holder="peer", ttl=60.0)
    await manager.release("lease")
    with pytest.raises(StillPromisedError, match="1 of them wait for the end of their jobs") as caught:
        await manager.offboard()
    assert "evict" in caught.value.hint
    await manager.drain(evict=True)
    with pytest.raises(StillPromisedError) as caught:
        await manager.offboard()
    # An eviction would change nothing now.
    assert "evict" not in caught.value.hint
    drained = trio.Event()

    async def wait() -> None:
        await manager.wait_drained()
        drained.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        assert not drained.is_set()
        await manager.job_gone("lease", fence=lease.fence)
        await drained.wait()
    await manager.offboard()


async def test_an_eviction_passes_over_what_is_ending(manager: ResourceManager, new_demand: NewDemand) -> None:
    await run_job(manager, new_demand(1))
    await manager.release("lease")
    (ending,) = manager.leases()
    for eviction in (
        await manager.evict(everything=True),
        await manager.evict(holder="peer", notice=5.0),
        await manager.drain(evict=True),
    ):
        assert (eviction.ended, eviction.noticed) == ((), ())
    # By its id the owner is told what had become of it before.
    (ended,) = (await manager.evict(["lease"], notice=5.0)).ended
    assert ended.reason is EndReason.RELEASED
    assert manager.leases() == (ending,)
    assert await manager.cancel_drain() == ()


async def test_processes_of_an_allocation_that_stands_are_noted(
    manager: ResourceManager, new_demand: NewDemand
) -> None:
    def noted() -> tuple[int, ...]:
        lease = manager.lease("lease")
        assert lease is not None
        return tuple(number for number, _ in lease.processes)

    mine, parent = os.getpid(), os.getppid()
    await run_job(manager, new_demand(1))
    await manager.allocate_resources(ResourceAllocation(lease_id="lease", holder="peer", processes=(mine,)))
    assert noted() == (mine,)
    await manager.allocate_resources(ResourceAllocation(lease_id="lease", holder="peer"))
    assert noted() == (mine,)
    lease = await manager.attach_processes("lease", [parent, mine], cgroup="/jobs/one")
    assert (noted(), lease.cgroup) == ((parent, mine), "/jobs/one")
    await manager.release("lease")
    assert (await manager.attach_processes("lease", [mine])).cgroup == "/jobs/one"
    assert noted() == (mine,)
    await manager.job_gone("lease", fence=lease.fence)
    with pytest.raises(EndedError):
        await manager.attach_processes("lease", [mine])
    with pytest.raises(NotAllocatedError):
        await manager.attach_processes("unknown", [mine])


@pytest.mark.parametrize(("processes", "cgroup"), [(range(1, 1026), None), ((1,), "/a\nb"), ((1,), "/" + "a" * 4096)])
async def test_what_is_noted_of_a_job_has_bounds(
    manager: ResourceManager, new_demand: NewDemand, processes: Any, cgroup: str | None
) -> None:
    await run_job(manager, new_demand(1))
    with pytest.raises(AmountError):
        await manager.attach_processes("lease", processes, cgroup=cgroup)


async def test_an_audit_finds_a_job_without_processes_and_frees_nothing(
    open_ledger: Any, new_demand: NewDemand
) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:  # noqa: ASYNC220 - starts at once
        async with open_ledger() as manager:

            async def found() -> list[str]:
                findings = await manager.audit(repair=True)
                return [one.lease_id for one in findings if one.code == "process_gone"]

            for name in ("running", "ending", "gone"):
                lease = await run_job(manager, new_demand(1), name)
                await manager.attach_processes(name, [process.pid])
            await manager.job_gone("gone", fence=lease.fence)
            await manager.release("ending")
            assert await found() == []
            process.kill()
            process.wait()
            assert sorted(await found()) == ["ending", "running"]
            assert len(manager.leases()) == 3, "only the program that runs a job knows that all of it is gone"
