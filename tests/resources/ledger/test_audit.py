"""The audit finds mismatches, repairs what it may, and finds none where there are none."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import psutil
import pytest
import trio
import trio.testing
from msgspec.structs import replace

from dms_resources.components import CPU, GPU, RAM, Disk, MachineResources, OnboardedResources, Resources
from dms_resources.demands import Demand, PortDemand
from dms_resources.ledger import audit as audit_module
from dms_resources.ledger.audit import AuditSnapshot, audit_snapshot, parse_start_ticks
from dms_resources.ledger.book import Totals
from dms_resources.ledger.leases import EndReason, LeaseState, ResourceAllocation
from dms_resources.units import GIB, Cores

NewDemand = Callable[..., Demand]


def codes(findings: Any) -> set[str]:
    return {finding.code for finding in findings}


async def test_a_sound_ledger_has_no_findings(open_ledger: Any, new_demand: NewDemand) -> None:
    async with open_ledger() as manager:
        await manager.commit_resources("one", new_demand(1, 1, 1, [8]), PortDemand(dynamic=2), holder="peer", ttl=60)
        await manager.allocate_resources(ResourceAllocation(lease_id="one", holder="peer"))
        await manager.commit_resources("two", new_demand(1), holder="peer", ttl=60)
        assert await manager.audit() == []
        assert manager.last_audit is not None


async def test_totals_that_are_wrong_are_found(open_ledger: Any, new_demand: NewDemand) -> None:
    async with open_ledger() as manager:
        await manager.commit_resources("one", new_demand(1, gpus=[8]), holder="peer", ttl=60)
        manager._ledger.book.totals[LeaseState.ALLOCATED] = Totals(millicores=1)
        assert "totals" in codes(await manager.audit())
        manager._ledger.book.totals[LeaseState.ALLOCATED] = Totals()
        state = manager._ledger.book.devices["gpu-b"]
        manager._ledger.book.devices["gpu-b"] = replace(state, used=state.used - 1)
        assert "totals" in codes(await manager.audit())


async def test_a_file_that_differs_is_found(open_ledger: Any, new_demand: NewDemand) -> None:
    async with open_ledger() as manager:
        await manager.commit_resources("lease", new_demand(1), holder="peer", ttl=60)
        manager._ledger.storage._db.execute("DELETE FROM leases")
        (found,) = [finding for finding in await manager.audit() if finding.code == "stored"]
        assert found.lease_id == "lease"


async def test_changes_on_their_way_to_the_disk_are_no_difference(
    open_ledger: Any, new_demand: NewDemand, new_worker: Any
) -> None:
    worker = new_worker()
    async with open_ledger(worker=worker) as manager:
        for steps in range(6):
            found: list[Any] = []

            async def audit(found: list[Any] = found) -> None:
                found.extend(await manager.audit())

            async with trio.open_nursery() as nursery:
                worker.stop()
                nursery.start_soon(audit)
                for _ in range(steps):
                    await trio.lowlevel.checkpoint()
                nursery.start_soon(
                    lambda steps=steps: manager.commit_resources(
                        f"lease-{steps}", new_demand(0.1), holder="peer", ttl=60
                    )
                )
                await trio.testing.wait_all_tasks_blocked()
                worker.go()
            assert "stored" not in codes(found)


async def test_more_promised_than_offered_is_found(open_ledger: Any, new_machine: Any, new_demand: NewDemand) -> None:
    async with open_ledger() as manager:
        await manager.commit_resources("lease", new_demand(8, 32), holder="peer", ttl=60)
        manager.update_machine(new_machine(cores=4, ram=16))
        messages = [finding.message for finding in await manager.audit() if finding.code == "oversold"]
        todo = ": offer more, or evict leases"
        assert messages == [
            f"CPU: 8 cores promised, 4 cores offered{todo}",
            f"RAM: 32 GiB promised, 16 GiB offered{todo}",
        ]


async def test_a_program_on_a_port_matters_where_the_port_is_promised_to_a_job_that_has_not_started(
    open_ledger: Any, machine: MachineResources, new_offer: Callable[..., OnboardedResources], new_demand: NewDemand
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        async with open_ledger(onboarded=new_offer(machine, ports=(port, port))) as manager:
            # Free ports that programs use are skipped when ports are granted.
            assert await manager.audit() == []
            await manager.commit_resources("lease", new_demand(0), PortDemand(static=(port,)), holder="peer", ttl=60)
            (found,) = await manager.audit()
            assert (found.code, found.lease_id, found.repairable) == ("port_in_use", "lease", False)
            assert f"(process {os.getpid()})" in found.message
            await manager.allocate_resources(ResourceAllocation(lease_id="lease", holder="peer"))
            assert await manager.audit() == []


async def test_the_ports_of_the_peer_itself_are_no_finding(
    open_ledger: Any, machine: MachineResources, new_offer: Callable[..., OnboardedResources]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        async with open_ledger(onboarded=new_offer(machine, ports=(port, port))) as manager:
            manager.reserve_ports([port])
            assert await manager.audit() == []


async def test_a_udp_socket_matters_where_it_serves_a_promised_port(
    open_ledger: Any,
    machine: MachineResources,
    new_offer: Callable[..., OnboardedResources],
    new_demand: NewDemand,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as client:
        client.bind(("127.0.0.1", 0))
        port = client.getsockname()[1]
        async with open_ledger(onboarded=new_offer(machine, ports=(port, port))) as manager:
            await manager.commit_resources("lease", new_demand(0), PortDemand(static=(port,)), holder="peer", ttl=60)
            # The kernel chose the port for a client, who soon leaves it.
            assert await manager.audit() == []
            monkeypatch.setattr(audit_module, "read_ephemeral_ports", lambda: (1, 2))
            assert codes(await manager.audit()) == {"port_in_use"}
            client.connect(("127.0.0.1", 9))
            assert await manager.audit() == []


def _usage(**vram: int) -> Resources:
    gpus = tuple(GPU(uuid=uuid.replace("_", "-"), vram=used) for uuid, used in vram.items())
    return Resources(cpu=CPU(cores=Cores(0)), ram=RAM(size=0), disk=Disk(size=0), gpus=gpus)


async def test_gpu_memory_used_by_others_is_found(open_ledger: Any, new_demand: NewDemand) -> None:
    async with open_ledger() as manager:
        await manager.commit_resources("lease", new_demand(gpus=[8]), holder="peer", ttl=60)
        snapshot = AuditSnapshot.of(manager._ledger.book, None)
        assert "vram_in_use" not in codes(audit_snapshot(snapshot, _usage(gpu_b=9 * GIB, gpu_a=GIB)))
        (found,) = [one for one in audit_snapshot(snapshot, _usage(gpu_b=9 * GIB + 1)) if one.code == "vram_in_use"]
        assert "gpu-b" in found.message


async def test_what_the_owner_does_with_gpus_that_nobody_leases_is_no_finding(
    open_ledger: Any, new_demand: NewDemand
) -> None:
    async with open_ledger() as manager:
        snapshot = AuditSnapshot.of(manager._ledger.book, None)
        assert "vram_in_use" not in codes(audit_snapshot(snapshot, _usage(gpu_a=16 * GIB, gpu_b=24 * GIB)))


async def test_an_allocation_whose_processes_are_gone_is_mended_when_asked(
    open_ledger: Any, new_demand: NewDemand
) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:  # noqa: ASYNC220 - starts at once
        async with open_ledger() as manager:
            await manager.allocate_resources(
                ResourceAllocation(lease_id="job", holder="peer", resources=new_demand(2), processes=(process.pid,))
            )
            await manager.allocate_resources(
                ResourceAllocation(lease_id="unknown", holder="peer", resources=new_demand(1))
            )
            assert "process_gone" not in codes(await manager.audit(repair=True))
            process.kill()
            process.wait()
            assert "process_gone" in codes(await manager.audit())
            assert manager.is_allocated("job")
            assert "process_gone" in codes(await manager.audit(repair=True))
            assert not manager.is_allocated("job")
            assert manager.is_allocated("unknown")
            _, entry = (await manager.history(limit=1))[0]
            assert (entry.actor, entry.lease_id, entry.reason) == ("audit", "job", EndReason.REPAIRED.value)
            assert "have ended" in entry.detail


async def test_a_clock_that_is_set_does_not_end_a_running_job(
    open_ledger: Any, new_demand: NewDemand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The boot time that the system reports, and start times computed from it, move with the wall clock."""
    async with open_ledger() as manager:
        this = psutil.Process().pid
        await manager.allocate_resources(
            ResourceAllocation(lease_id="job", holder="peer", resources=new_demand(2), processes=(this,))
        )
        boot_time, create_time = psutil.boot_time(), psutil.Process().create_time()
        monkeypatch.setattr(psutil, "boot_time", lambda: boot_time + 3600)
        # psutil 6.0 to 7.0 remembers the boot time for one of the two, so that they move apart.
        for moved in (3600, 0, -7200):
            monkeypatch.setattr(psutil.Process, "create_time", lambda self, moved=moved: create_time + moved)
            assert "process_gone" not in codes(await manager.audit(repair=True))
        # Another process with the same number started at another time.
        monkeypatch.setattr(audit_module, "parse_start_ticks", lambda text: 1)
        assert "process_gone" in codes(await manager.audit())


@pytest.mark.parametrize(
    ("text", "ticks"),
    [
        ("7 (a) S " + "0 " * 18 + "4242 0", 4242),
        ("7 (a) b) (c) S " + "0 " * 18 + "17 0", 17),
        ("7 (a) S 0", None),
        ("", None),
        ("7 (a) S " + "0 " * 18 + "x 0", None),
    ],
)
def test_the_start_of_a_process_is_read_whatever_it_is_called(text: str, ticks: int | None) -> None:
    assert parse_start_ticks(text) == ticks


async def test_a_job_that_ends_while_it_is_audited_is_no_error(
    open_ledger: Any, new_demand: NewDemand, new_worker: Any
) -> None:
    worker = new_worker()
    async with open_ledger(worker=worker) as manager:
        for end in (manager.release, lambda lease_id: manager.audit(repair=True)):
            lease_id = f"job-{worker.calls}"
            await manager.allocate_resources(
                ResourceAllocation(lease_id=lease_id, holder="peer", resources=new_demand(1), processes=(2**22 + 1,))
            )
            async with trio.open_nursery() as nursery:
                nursery.start_soon(lambda: manager.audit(repair=True))
                nursery.start_soon(end, lease_id)
            assert not manager.leases()
            assert manager.get_free_resources().cpu.cores == Cores.of(8)


async def test_it_audits_by_itself_and_logs_what_it_finds(
    open_ledger: Any,
    new_machine: Any,
    new_demand: NewDemand,
    autojump_clock: trio.testing.MockClock,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with open_ledger() as manager:
        await manager.commit_resources("lease", new_demand(8), holder="peer", ttl=3600)
        manager.update_machine(new_machine(cores=4))
        await trio.sleep(601)
        assert "audit: oversold: CPU: 8 cores promised, 4 cores offered" in caplog.text
        assert manager.last_audit is not None
        assert "oversold" in codes(manager.last_audit[1])


def test_a_process_that_proc_hides_is_not_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the mount option hidepid the processes of other users are not in /proc."""

    def not_there(number: int) -> float:
        raise psutil.NoSuchProcess(number)

    def not_ours(number: int, signal: int) -> None:
        raise PermissionError

    monkeypatch.setattr(audit_module, "started_after_boot", not_there)
    assert not audit_module.runs((2**22 + 7, 1.0))
    monkeypatch.setattr(os, "kill", not_ours)
    assert audit_module.runs((2**22 + 7, 1.0))


def test_a_start_that_cannot_be_read_is_no_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreadable() -> float:
        raise FileNotFoundError(2, "No such file or directory")

    monkeypatch.setattr(audit_module, "parse_start_ticks", lambda text: None)
    monkeypatch.setattr(psutil, "boot_time", unreadable)
    with pytest.raises(ValueError, match="cannot be read"):
        audit_module.started_after_boot(psutil.Process().pid)
