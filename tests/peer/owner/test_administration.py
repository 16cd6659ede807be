"""What an owner asks of their own peer, on a real ledger."""

import os
import subprocess
import sys

import pytest
import trio

from dms_peer.owner.administration import LocalAdministration
from dms_peer.owner.messages import AuditRequest, HistoryRequest, OnboardRequest
from dms_peer.owner.offers import Offer
from dms_resources.components import CPU, GPU, RAM, Disk, MachineResources
from dms_resources.demands import CPUDemand, Demand
from dms_resources.errors import OnboardingError
from dms_resources.ledger.book import Totals
from dms_resources.ledger.leases import LeaseState, ResourceAllocation
from dms_resources.manager import open_manager
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
