"""The use of a job is reported separately if its process has a cgroup of its own, as long as it is allocated."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import trio

from dms_resources.components import CPU, RAM, Disk, MachineResources, OnboardedResources
from dms_resources.demands import CPUDemand, Demand
from dms_resources.ledger.leases import ResourceAllocation
from dms_resources.machine.hardware.cgroups import own_group
from dms_resources.machine.hardware.roots import Roots
from dms_resources.manager import open_manager
from dms_resources.refusals import InsufficientError
from dms_resources.units import GIB, Cores

MACHINE = MachineResources(cpu=CPU(cores=Cores(4000)), ram=RAM(size=GIB), disk=Disk(size=GIB), gpus=())


class Monitor:
    """A usage monitor that records what it has to follow."""

    machine = MACHINE
    sample = None

    def __init__(self) -> None:
        self.followed: dict[str, str] = {}

    def follow(self, lease_id: str, cgroup: str) -> None:
        self.followed[lease_id] = cgroup

    def get_usage(self) -> None:
        return None

    def unfollow(self, lease_id: str) -> None:
        self.followed.pop(lease_id, None)

    async def run(self, *, task_status: Any) -> None:
        task_status.started()
        await trio.sleep_forever()


@pytest.mark.parametrize(
    ("job", "expected"),
    [
        ("0::/jobs/a\n", "/jobs/a"),
        ("0::/user\n", None),
        ("5:cpu,cpuacct:/jobs/cpu\n9:memory:/jobs/b\n0::/\n", "/jobs/b"),
        (None, None),
        ("nonsense", None),
    ],
)
def test_the_cgroup_of_a_process_is_its_own_or_none(tmp_path: Path, job: str | None, expected: str | None) -> None:
    for process, text in (("self", "0::/user\n"), ("7", job)):
        (tmp_path / process).mkdir()
        if text is not None:
            (tmp_path / process / "cgroup").write_text(text)
    assert own_group(7, Roots(proc=tmp_path, sys=tmp_path)) == expected


async def test_a_job_is_followed_while_it_is_allocated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dms_resources.ledger.job_usage.own_group", lambda process: f"/jobs/{process}")
    monitor: Any = Monitor()
    async with open_manager(tmp_path / "ledger.sqlite3", MACHINE, usage_monitor=monitor) as manager:
        await manager.update_onboarded_resources(
            OnboardedResources(cpu=MACHINE.cpu, ram=MACHINE.ram, disk=MACHINE.disk, gpus=())
        )
        demand = Demand(cpu=CPUDemand(cores=Cores(1000)))
        for name, processes in (("known", (os.getpid(),)), ("unknown", ())):
            await manager.allocate_resources(
                ResourceAllocation(lease_id=name, holder="job", resources=demand, processes=processes)
            )
        assert monitor.followed == {"known": f"/jobs/{os.getpid()}"}
    again: Any = Monitor()
    async with open_manager(tmp_path / "ledger.sqlite3", MACHINE, usage_monitor=again) as manager:
        assert again.followed == monitor.followed, "a restart goes on following"
        await manager.deallocate_resources("known")
        assert again.followed == {}


async def test_a_job_that_an_audit_ended_is_no_longer_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dms_resources.ledger.job_usage.own_group", lambda process: "/jobs/gone")
    monitor: Any = Monitor()
    async with open_manager(tmp_path / "ledger.sqlite3", MACHINE, usage_monitor=monitor) as manager:
        await manager.update_onboarded_resources(
            OnboardedResources(cpu=MACHINE.cpu, ram=MACHINE.ram, disk=MACHINE.disk, gpus=())
        )
        with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:  # noqa: ASYNC220 - starts at once
            job = ResourceAllocation(lease_id="job", holder="peer", resources=Demand(), processes=(process.pid,))
            await manager.allocate_resources(job)
            assert monitor.followed == {"job": "/jobs/gone"}
            process.kill()
        await manager.audit(repair=True)
        assert not manager.is_allocated("job")
        assert monitor.followed == {}


async def test_an_architecture_is_known_by_all_its_names(tmp_path: Path) -> None:
    machine = MachineResources(
        cpu=CPU(cores=Cores(4000), architecture="x86_64"), ram=MACHINE.ram, disk=MACHINE.disk, gpus=()
    )
    async with open_manager(tmp_path / "ledger.sqlite3", machine) as manager:
        await manager.update_onboarded_resources(
            OnboardedResources(cpu=machine.cpu, ram=machine.ram, disk=machine.disk, gpus=())
        )
        for name, short in (("amd64", False), ("x86_64", False), ("arm64", True), ("", False)):
            asked = Demand(cpu=CPUDemand(cores=Cores(1000), architecture=name))
            assert isinstance(manager.would_fit(asked), InsufficientError) == short


async def test_a_job_is_followed_until_it_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dms_resources.ledger.job_usage.own_group", lambda process: f"/jobs/{process}")
    monitor: Any = Monitor()
    path, mine = tmp_path / "ledger.sqlite3", os.getpid()
    async with open_manager(path, MACHINE, usage_monitor=monitor) as manager:
        await manager.update_onboarded_resources(
            OnboardedResources(cpu=MACHINE.cpu, ram=MACHINE.ram, disk=MACHINE.disk, gpus=())
        )
        leases = [
            await manager.allocate_resources(ResourceAllocation(lease_id=name, holder="job", resources=Demand()))
            for name in ("grouped", "alone", "idle")
        ]
        for lease in leases:
            await manager.attach_job(lease.lease_id, "ab")
        await manager.attach_processes("grouped", [mine], cgroup="/docker/1")
        await manager.allocate_resources(ResourceAllocation(lease_id="alone", holder="job", processes=(mine,)))
        assert monitor.followed == {"grouped": "/docker/1", "alone": f"/jobs/{mine}"}
        for lease in leases:
            await manager.release(lease.lease_id)
        assert monitor.followed.keys() == {"grouped", "alone"}, "its job runs"
    again: Any = Monitor()
    async with open_manager(path, MACHINE, usage_monitor=again) as manager:
        assert again.followed == monitor.followed
        for lease in leases:
            await manager.job_gone(lease.lease_id, fence=lease.fence)
        assert again.followed == {}


async def test_another_process_with_the_number_of_a_job_is_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dms_resources.ledger.job_usage.own_group", lambda process: f"/jobs/{process}")
    path = tmp_path / "ledger.sqlite3"
    monitor: Any = Monitor()
    async with open_manager(path, MACHINE, usage_monitor=monitor) as manager:
        await manager.update_onboarded_resources(
            OnboardedResources(cpu=MACHINE.cpu, ram=MACHINE.ram, disk=MACHINE.disk, gpus=())
        )
        job = ResourceAllocation(lease_id="job", holder="peer", resources=Demand(), processes=(os.getpid(),))
        await manager.allocate_resources(job)
        assert monitor.followed.keys() == {"job"}
    # As after a reboot.
    monkeypatch.setattr("dms_resources.ledger.audit.started_after_boot", lambda process: 1e9)
    again: Any = Monitor()
    async with open_manager(path, MACHINE, usage_monitor=again):
        assert again.followed == {}
