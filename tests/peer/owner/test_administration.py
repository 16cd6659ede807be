"""The owner's operations, on a real ledger."""

import os
import subprocess
import sys
import time

import pytest
import trio
from msgspec.structs import replace

from dms_peer.owner.administration import LocalAdministration, _lease_use
from dms_peer.owner.messages import (
    AuditRequest,
    CancelDrainAnswer,
    DrainAnswer,
    EvictRequest,
    HistoryRequest,
    OnboardRequest,
    ReleaseLeaseRequest,
    StartDrainRequest,
)  # fmt: skip
from dms_peer.owner.offers import Offer
from dms_protocols.errors import ProtocolError
from dms_protocols.messages.job import JobStatus
from dms_resources.components import CPU, GPU, RAM, Disk, MachineResources, Resources
from dms_resources.demands import CPUDemand, Demand
from dms_resources.errors import EvictedError, NotAllocatedError, OnboardingError
from dms_resources.ledger.book import Totals
from dms_resources.ledger.leases import EndReason, Lease, LeaseState, ResourceAllocation
from dms_resources.machine.sampling import JobUsage, UsageSample
from dms_resources.manager import open_manager
from dms_resources.refusals import DrainingError
from dms_resources.units import GIB, Cores

MACHINE = MachineResources(
    cpu=CPU(cores=Cores(4000)),
    ram=RAM(size=16 * GIB),
    disk=Disk(size=64 * GIB),
    gpus=(GPU(uuid="GPU-a", vram=24 * GIB),),
)
OFFER = Offer(cpu=Cores(2000), ram=8 * GIB, disk=32 * GIB)


@pytest.fixture
async def administration(tmp_path):
    async with open_manager(tmp_path / "ledger.sqlite3", MACHINE) as manager:
        yield LocalAdministration(manager, "peer"), manager


async def test_a_dry_run_says_what_onboarding_would_and_changes_nothing(administration):
    ours, manager = administration
    answer = await ours.onboard(OnboardRequest(offer=OFFER, dry_run=True))
    assert answer.onboarded is not None
    assert answer.onboarded.cpu.cores == Cores(2000)
    assert manager.get_onboarded_resources() is None
    with pytest.raises(OnboardingError, match="99 cores asked but the machine has 4"):
        await ours.onboard(OnboardRequest(offer=Offer(cpu=Cores(99_000), ram=1, disk=1), dry_run=True))


async def test_headroom_is_never_offered(administration):
    ours, manager = administration
    await ours.onboard(OnboardRequest(offer=Offer(cpu=Cores(2000), ram=8 * GIB, disk=0, headroom=250)))
    free = manager.get_free_resources()
    assert (free.cpu.cores, free.ram.size) == (Cores(1500), 6 * GIB)


async def test_an_allocation_whose_process_ended_is_found_and_mended_with_an_entry_in_the_history(administration):
    ours, manager = administration
    await ours.onboard(OnboardRequest(offer=OFFER))
    child = await trio.lowlevel.open_process(
        [sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE
    )
    demand = Demand(cpu=CPUDemand(cores=Cores(1000)))
    for name, process in (("gone", child.pid), ("here", os.getpid())):
        await manager.allocate_resources(
            ResourceAllocation(lease_id=name, holder="job", resources=demand, processes=(process,))
        )
    assert child.stdin is not None
    await child.stdin.aclose()
    await child.wait()

    def gone(answer):
        return [finding.lease_id for finding in answer.findings if finding.code == "process_gone"]

    assert gone(await ours.audit(AuditRequest())) == ["gone"]
    assert manager.is_allocated("gone"), "an audit alone changes nothing"
    assert gone(await ours.audit(AuditRequest(repair=True))) == ["gone"]
    assert [manager.is_allocated(name) for name in ("gone", "here")] == [False, True]
    assert manager.get_free_resources().cpu.cores == Cores(1000)
    entry = (await ours.history(HistoryRequest(limit=1))).entries[0]
    assert (entry.actor, entry.action, entry.reason, entry.lease_id) == ("audit", "end", "repaired", "gone")
    assert gone(await ours.audit(AuditRequest())) == []


async def test_status_tells_what_is_no_longer_there_and_nothing_new_is_promised_of_it(administration):
    ours, manager = administration
    await ours.onboard(OnboardRequest(offer=OFFER))
    manager.update_machine(
        MachineResources(cpu=CPU(cores=Cores(1000)), ram=MACHINE.ram, disk=MACHINE.disk, gpus=MACHINE.gpus)
    )
    status = await ours.status()
    assert status.missing == ("cpu: 2 cores onboarded, 1 left",)
    assert status.free.cpu.cores == Cores(1000)


async def test_a_book_that_differs_from_its_file_is_made_anew_of_it_and_the_history_says_so(administration):
    ours, manager = administration
    await ours.onboard(OnboardRequest(offer=OFFER))
    demand = Demand(cpu=CPUDemand(cores=Cores(1500)))
    lease = await manager.commit_resources("lease", demand, holder="peer", ttl=60)
    # As if a defect had lost a lease and miscounted another.
    manager._ledger.book._remove(manager._ledger.book.leases["lease"])
    manager._ledger.book.totals[LeaseState.ALLOCATED] = Totals(millicores=7, count=1)
    found = (await ours.audit(AuditRequest(repair=True))).findings
    assert {"stored", "totals"} <= {finding.code for finding in found}
    assert manager.lease("lease") == lease
    assert manager.get_free_resources().cpu.cores == Cores(500)
    entries = (await ours.history(HistoryRequest())).entries
    assert {(entry.actor, entry.action) for entry in entries[: len(found) - 1]} >= {("audit", "reload")}
    left = {finding.code for finding in (await ours.audit(AuditRequest())).findings}
    assert not left & {"stored", "totals"}


async def committed(manager, *names, holder="12D3KooWAlice"):
    demand = Demand(cpu=CPUDemand(cores=Cores(100)))
    return [await manager.commit_resources(name, demand, holder=holder, ttl=600) for name in names]


async def test_an_eviction_takes_ids_by_their_beginning_and_tells_the_holder_why(administration):
    ours, manager = administration
    await ours.onboard(OnboardRequest(offer=OFFER))
    await committed(manager, "aaaa1111", "aaaa2222", "bbbb3333")
    with pytest.raises(ProtocolError, match="2 leases begin with 'aaaa'") as caught:
        await ours.evict(EvictRequest(leases=("aaaa",)))
    assert caught.value.code == "ambiguous"
    with pytest.raises(NotAllocatedError):
        await ours.evict(EvictRequest(leases=("bbbb", "cccc")))
    assert len(manager.leases()) == 3, "nothing is evicted where one name is wrong"
    answer = await ours.evict(EvictRequest(leases=("bbbb", "aaaa2"), reason="maintenance"))
    assert [one.lease_id for one in answer.ended] == ["bbbb3333", "aaaa2222"]
    with pytest.raises(EvictedError, match="maintenance"):
        await manager.renew("bbbb3333", ttl=60, holder="12D3KooWAlice")
    again = await ours.evict(EvictRequest(leases=("bbbb3333",)))
    assert again.ended == answer.ended[:1], "the same again answers the same"
    entries = (await ours.history(HistoryRequest(limit=2))).entries
    assert {(entry.actor, entry.reason, entry.detail) for entry in entries} == {("owner", "evicted", "maintenance")}


async def test_an_eviction_of_a_holder_or_of_all_at_once_or_with_notice(administration):
    ours, manager = administration
    await ours.onboard(OnboardRequest(offer=OFFER))
    await committed(manager, "a1", "a2")
    await committed(manager, "b1", holder="12D3KooWBob")
    with pytest.raises(ProtocolError, match="2 holders begin with '12D3'"):
        await ours.evict(EvictRequest(holder="12D3"))
    assert [one.lease_id for one in (await ours.evict(EvictRequest(holder="12D3KooWA"))).ended] == ["a1", "a2"]
    assert (await ours.evict(EvictRequest(holder="nobody"))).ended == ()
    noticed = (await ours.evict(EvictRequest(everything=True, notice=60.0, reason="soon"))).noticed
    assert [(one.lease_id, one.notice.reason) for one in noticed] == [("b1", "soon")]
    assert noticed[0].deadline - time.time() <= 60
    assert [one.lease_id for one in (await ours.evict(EvictRequest(everything=True))).ended] == ["b1"]


async def test_a_drain_evicts_what_it_is_told_to_and_can_be_cancelled(administration):
    ours, manager = administration
    await ours.onboard(OnboardRequest(offer=OFFER))
    await committed(manager, "a")
    assert await ours.start_drain(StartDrainRequest()) == DrainAnswer(leases=1, evicted=0, running=False)
    with pytest.raises(DrainingError):
        await committed(manager, "b")
    assert await ours.cancel_drain() == CancelDrainAnswer(drained=True, withdrawn=0)
    await committed(manager, "b")
    answer = await ours.start_drain(StartDrainRequest(evict=True, notice=5))
    assert answer == DrainAnswer(leases=2, evicted=2, running=False, deadline=answer.deadline)
    assert 0 < answer.deadline - time.time() <= 5
    assert all(lease.deadline - time.time() <= 5 for lease in manager.leases())
    assert await ours.cancel_drain() == CancelDrainAnswer(drained=True, withdrawn=2)
    assert all(lease.deadline - time.time() > 60 for lease in manager.leases())
    assert await ours.cancel_drain() == CancelDrainAnswer(drained=False, withdrawn=0)
    assert (await ours.start_drain(StartDrainRequest(evict=True))).leases == 0


async def test_the_deadline_of_a_drain_is_kept_until_the_drain_ends(administration):
    ours, manager = administration
    await ours.onboard(OnboardRequest(offer=OFFER))
    await committed(manager, "a")
    deadline = (await ours.start_drain(StartDrainRequest(notice=7200))).deadline
    assert 7100 < deadline - time.time() <= 7200
    # Nobody is evicted, and a second command waits for the same deadline.
    assert manager.lease("a").notice is None
    assert (await ours.start_drain(StartDrainRequest())).deadline == deadline
    assert (await ours.status()).drain_deadline == deadline
    await ours.cancel_drain()
    assert (await ours.status()).drain_deadline is None
    await ours.start_drain(StartDrainRequest(notice=60))
    await ours.onboard(OnboardRequest(offer=OFFER))
    assert ((await ours.status()).draining, (await ours.status()).drain_deadline) == (False, None)


async def test_the_owner_releases_a_lease_as_its_holder_would(administration):
    ours, manager = administration
    await ours.onboard(OnboardRequest(offer=OFFER))
    await committed(manager, "a" * 32)
    ended = await ours.release(ReleaseLeaseRequest(lease="aaaaaaaa"))
    assert (ended.lease_id, ended.reason) == ("a" * 32, EndReason.RELEASED)
    assert await ours.release(ReleaseLeaseRequest(lease="a" * 32)) == ended


@pytest.mark.parametrize(("cpu", "ram", "said"), [(0, GIB, "CPU"), (1000, 0, "RAM"), (0, 0, "CPU")])
async def test_an_offer_of_nothing_is_refused(administration, cpu, ram, said):
    ours, manager = administration
    with pytest.raises(OnboardingError, match=f"{said} of nothing") as caught:
        await ours.onboard(OnboardRequest(offer=Offer(cpu=Cores(cpu), ram=ram, disk=0)))
    assert len(caught.value.problems) == [cpu, ram].count(0)
    assert manager.get_onboarded_resources() is None


@pytest.mark.parametrize("dry_run", [True, False])
async def test_more_than_the_machine_has_free_now_is_warned_about(administration, dry_run):
    _, manager = administration
    ours = LocalAdministration(manager, "peer", free_now=(2 * GIB, GIB))
    answer = await ours.onboard(OnboardRequest(offer=OFFER, dry_run=dry_run))
    assert [warning.partition(":")[0] for warning in answer.warnings][-2:] == ["RAM", "disk"]
    assert "8 GiB could be promised, but the machine has 2 GiB free now" in answer.warnings[-2]
    less = Offer(cpu=Cores(1000), ram=GIB, disk=GIB // 2)
    answer = await ours.onboard(OnboardRequest(offer=less, dry_run=dry_run))
    assert not [warning for warning in answer.warnings if "free now" in warning]


async def test_the_owner_sees_jobs_and_leases_that_are_ending(administration):
    ours, manager = administration
    await ours.onboard(OnboardRequest(offer=OFFER))
    job = JobStatus(
        lease_id="lease", fence=0, digest=bytes(32), executor="docker", state="running", created=1.0, since=2.0
    )
    known = []
    ours = LocalAdministration(manager, "peer", jobs=lambda: known)
    await manager.commit_resources("lease", Demand(), holder="peer", ttl=60.0)
    lease = await manager.allocate_resources(ResourceAllocation(lease_id="lease", holder="peer"))
    await manager.attach_job("lease", "ab")
    # Those of earlier leases of this id are left out.
    known[:] = [replace(job, fence=lease.fence - 1, state="exited"), replace(job, fence=lease.fence)]
    assert [(one.lease_id, one.state, one.since) for one in (await ours.status()).jobs] == [("lease", "running", 2.0)]

    answer = await ours.evict(EvictRequest(leases=("lease",)))
    assert (len(answer.ended), answer.ending) == (1, ("lease",))
    drain = await ours.start_drain(StartDrainRequest(evict=True))
    assert (drain.leases, drain.evicted, drain.ending) == (1, 0, 1)
    (shown,) = (await ours.status()).leases
    assert (shown.state, shown.ended.reason) == (LeaseState.ENDING, EndReason.EVICTED)

    await manager.job_gone("lease", fence=lease.fence, how="exited with 0")
    assert (await ours.start_drain(StartDrainRequest())).leases == 0
    assert (await ours.status()).jobs == ()
    entries = (await ours.history(HistoryRequest(limit=2))).entries
    assert [(entry.action, entry.detail, entry.holder, entry.fence) for entry in entries] == [
        ("end", "", "peer", lease.fence),
        ("gone", "exited with 0", "peer", lease.fence),
    ]


def test_the_use_of_a_gpu_is_that_of_its_only_lease():
    def lease(lease_id, *uuids):
        gpus = tuple(GPU(uuid=uuid, vram=GIB) for uuid in uuids)
        resources = Resources(cpu=CPU(cores=Cores(0)), ram=RAM(size=0), disk=Disk(size=0), gpus=gpus)
        return Lease(
            lease_id=lease_id, holder="peer", state=LeaseState.ALLOCATED, demand=Demand(), resources=resources,
            fence=1, created=0.0,
        )  # fmt: skip

    gpus = (GPU(uuid="GPU-a", vram=3 * GIB), GPU(uuid="GPU-b", vram=2 * GIB))
    usage = Resources(cpu=CPU(cores=Cores(0)), ram=RAM(size=0), disk=Disk(size=0), gpus=gpus)
    followed = tuple(JobUsage(lease_id=name, cpu=Cores(100), ram=7) for name in ("alone", "shared"))
    sample = UsageSample(usage=usage, free=usage, rest=usage, taken_at=0.0, gpus_taken_at=0.0, jobs=followed)
    leases = [lease("alone", "GPU-a", "GPU-b", "GPU-unread"), lease("shared", "GPU-b")]
    assert [(one.lease_id, one.ram, one.vram) for one in _lease_use(leases, sample)] == [
        ("alone", 7, {"GPU-a": 3 * GIB}),
        ("shared", 7, {}),
    ]
