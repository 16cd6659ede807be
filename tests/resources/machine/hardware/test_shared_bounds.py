"""The bounds around a process that peers of one machine compare."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from dms_resources.components import OnboardedResources
from dms_resources.machine.hardware import HOST, Roots, measure_machine
from dms_resources.machine.hardware.gpu import GPUReport
from dms_resources.machine.sharing import OtherPeer, offers_beyond, published_offer, read_bounds


def test_the_bounds_of_a_recorded_machine(build_machine: Callable[[str], Roots], tmp_path: Path) -> None:
    roots = build_machine("systemd_slice")
    machine = measure_machine(tmp_path, roots, environment={})
    found = {bound.name: bound for bound in read_bounds(machine, tmp_path, roots)}
    assert (found["this machine has"].cores, found["this machine has"].ram) == (8000, 65536000 * 1024)
    assert found["the cgroup /lend.slice allows"].cores == 1500
    assert len({bound.id for bound in found.values()}) == len(found)


@pytest.mark.parametrize("machine", ["database_strict_overcommit", "dpdk_host_gigantic_pages", "unified_gh200"])
def test_what_the_whole_machine_has_is_without_what_nobody_may_have(
    build_machine: Callable[[str], Roots], tmp_path: Path, machine: str
) -> None:
    roots = build_machine(machine)
    measured = measure_machine(tmp_path, roots, environment={})
    assert read_bounds(measured, tmp_path, roots)[0].ram == measured.ram.size


def test_this_machine_has_bounds_that_two_processes_agree_on(tmp_path: Path) -> None:
    machine = measure_machine(tmp_path, HOST, ask_gpus=lambda _: GPUReport())
    one, two = read_bounds(machine, tmp_path, HOST), read_bounds(machine, tmp_path / "other", HOST)
    assert [bound.id for bound in one] == [bound.id for bound in two]
    assert one[0].cores is not None
    assert one[0].cores >= machine.cpu.cores.millicores
    # What one peer measured, it may offer as a whole.
    whole = OnboardedResources(cpu=machine.cpu, ram=machine.ram, disk=machine.disk, gpus=())
    assert offers_beyond(published_offer(whole, machine, one), []) == ()
    assert offers_beyond(
        published_offer(whole, machine, one), [OtherPeer(process="7", offer=published_offer(whole, machine, two))]
    )
    assert str(os.stat(tmp_path).st_dev) in one[-1].id
