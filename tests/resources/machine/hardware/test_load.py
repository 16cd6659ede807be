"""The load of the machine, within what this process may use."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from dms_resources.machine.hardware import Roots
from dms_resources.machine.hardware.load import (
    CPUTimes,
    cores_in_use,
    free_ram,
    parse_stat,
    quota_left,
    read_domain,
    read_times,
)
from dms_resources.units import GIB, MIB

Build = Callable[[str], Roots]


def test_idle_and_waiting_for_disks_is_not_busy() -> None:
    assert parse_stat("cpu  9 9 9 9\ncpu0 10 20 30 400 40 5 6 7 8 9\ncpu12 1 2 3 4\nintr 5\n") == {
        0: (518, 78),
        12: (10, 6),
    }


@pytest.mark.parametrize(
    ("before", "after", "millicores"),
    [
        (CPUTimes(1000, 100), CPUTimes(2000, 600), 2000),
        (CPUTimes(1000, 100), CPUTimes(1000, 100), 0),
        # The counters of a CPU that went offline, or of another boot, go backwards.
        (CPUTimes(2000, 600), CPUTimes(1000, 100), 0),
        (CPUTimes(1000, 600), CPUTimes(2000, 100), 0),
        (CPUTimes(1000, 0), CPUTimes(1010, 50), 4000),
    ],
)
def test_cores_in_use_are_a_share_of_the_allowed_ones(before: CPUTimes, after: CPUTimes, millicores: int) -> None:
    assert cores_in_use(before, after, 4) == millicores


def test_only_the_allowed_cpus_count(build_machine: Build) -> None:
    roots = build_machine("docker_v2")
    domain = read_domain(roots)
    assert domain.cpus == {2, 3, 4, 5}
    before = read_times(roots, domain, 1.0)
    busy = "".join(f"cpu{n} {1100 if n == 2 else 100} 0 0 {900 if n == 2 else 1900} 0 0 0\n" for n in range(16))
    (roots.proc / "stat").write_text(busy)
    assert cores_in_use(before, read_times(roots, domain, 2.0), len(domain.cpus)) == 1000


@pytest.mark.parametrize(("microseconds", "left"), [(5_500_000, 1000), (6_500_000, 0), (5_000_000, 1500)])
def test_what_a_quota_leaves(build_machine: Build, microseconds: int, left: int) -> None:
    roots = build_machine("docker_v2")
    domain = read_domain(roots)
    before = read_times(roots, domain, 10.0)
    (roots.sys / "fs/cgroup/cpu.stat").write_text(f"usage_usec {microseconds}\n")
    assert quota_left(before, read_times(roots, domain, 11.0), domain) == left


def test_without_a_quota_none_is_left_over(build_machine: Build) -> None:
    domain = read_domain(build_machine("bare_metal"))
    assert quota_left(CPUTimes(), CPUTimes(taken_at=1.0), domain) is None


@pytest.mark.parametrize(
    ("machine", "free"),
    [
        ("bare_metal", 24000000 * 1024),
        ("docker_v1", 3 * GIB),
        ("docker_v2", 2 * GIB - 768 * MIB),
    ],
)
def test_free_ram_is_the_least_of_the_machines_and_every_groups(build_machine: Build, machine: str, free: int) -> None:
    roots = build_machine(machine)
    assert free_ram(roots, read_domain(roots)) == free


def test_old_kernels_have_no_estimate_of_what_is_available(build_machine: Build) -> None:
    roots = build_machine("== /proc/meminfo\nMemTotal: 900 kB\nMemFree: 100 kB\nBuffers: 10 kB\nCached: 1 kB\n")
    assert free_ram(roots, read_domain(roots)) == 111 * 1024


def test_a_total_alone_does_not_say_what_is_free(build_machine: Build) -> None:
    roots = build_machine("== /proc/meminfo\nMemTotal: 2097152 kB\n")
    assert free_ram(roots, read_domain(roots)) is None


def test_a_node_that_does_not_show_what_is_free_is_no_bound(build_machine: Build) -> None:
    node = "== /sys/devices/system/node/node{}/meminfo\nNode {} MemTotal: 1024 kB\n"
    files = "== /proc/self/status\nMems_allowed_list:\t0\n" + node.format(0, 0) + node.format(1, 1)
    roots = build_machine(files + "== /proc/meminfo\nMemTotal: 2048 kB\nMemAvailable: 1000 kB\n")
    assert read_domain(roots).nodes == {0}
    assert free_ram(roots, read_domain(roots)) == 1000 * 1024


def test_free_ram_that_nothing_tells_is_unknown(build_machine: Build) -> None:
    roots = build_machine("== /proc/version\nx\n")
    assert free_ram(roots, read_domain(roots)) is None
