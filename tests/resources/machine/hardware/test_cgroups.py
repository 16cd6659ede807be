"""The limits of every enclosing cgroup count: in both versions, and on a real cgroup if this process may create one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from dms_resources.machine.hardware import HOST, Roots
from dms_resources.machine.hardware.cgroups import group_directories, parse_cpu_quota, parse_memberships, read_cgroups
from dms_resources.machine.hardware.gpu.process import environment
from dms_resources.machine.hardware.load import CgroupUsage, cgroup_usage
from dms_resources.machine.hardware.mounts import find_mount, parse_mounts
from dms_resources.units import GIB, MIB

Build = Callable[[str], Roots]


def test_the_walk_goes_up_to_the_root_of_the_mount(build_machine: Build) -> None:
    groups = read_cgroups(build_machine("systemd_slice")).value
    assert [(group.name, group.cpu_quota, group.memory) for group in groups] == [
        ("/lend.slice/peer.service", 3000, 8 * GIB),
        ("/lend.slice", 1500, 6 * GIB),
        ("/", None, None),
    ]


def test_a_container_without_a_namespace_finds_its_own_group_at_the_mount(build_machine: Build) -> None:
    groups = read_cgroups(build_machine("docker_v1")).value
    assert {group.name for group in groups if group.cpu_quota or group.memory} == {"/docker/6c5d0e7f"}


def test_version_2_is_found_where_no_mount_table_can_be_read(build_machine: Build) -> None:
    roots = build_machine("== /proc/self/cgroup\n0::/a\n== /sys/fs/cgroup/a/cpu.max\n50000 100000\n")
    assert [group.cpu_quota for group in read_cgroups(roots).value] == [500, None]


def test_version_1_is_found_where_no_mount_table_can_be_read(build_machine: Build) -> None:
    folder = "/sys/fs/cgroup/cpu,cpuacct/a"
    roots = build_machine(
        "== /proc/self/cgroup\n4:cpuacct,cpu:/a\n"
        f"== {folder}/cpu.cfs_quota_us\n250000\n== {folder}/cpu.cfs_period_us\n100000\n"
    )
    assert [group.cpu_quota for group in read_cgroups(roots).value] == [2500, None]


def test_a_group_outside_the_namespace_is_a_problem_and_the_visible_limits_hold(build_machine: Build) -> None:
    roots = build_machine("== /proc/self/cgroup\n0::/../other\n== /sys/fs/cgroup/memory.max\n1024\n")
    found = read_cgroups(roots)
    assert [group.memory for group in found.value] == [1024]
    assert found.problems == ("cgroup /../other lies outside what this process can see: its limits are unknown",)


@pytest.mark.parametrize(
    ("text", "millicores"),
    [
        ("max 100000", None),
        ("150000 100000", 1500),
        ("1000 1000000", 1),
        ("1 1000000", 1),
        ("-1 100000", None),
        ("0 100000", None),
        ("100000 0", None),
        ("", None),
        ("None None", None),
    ],
)
def test_quotas_are_millicores(text: str, millicores: int | None) -> None:
    assert parse_cpu_quota(text) == millicores


def test_a_group_may_have_a_colon_in_its_name() -> None:
    assert [m.path for m in parse_memberships("0::/a:b\nnonsense\n7:cpu:relative\n")] == ["/a:b"]


def test_the_deepest_and_last_mount_of_a_path_counts() -> None:
    mounts = parse_mounts(
        "1 0 8:1 / / rw - ext4 /dev/sda1 rw\n"
        "2 1 8:2 / /data rw shared:1 master:2 - xfs /dev/sdb1 rw\n"
        "3 1 8:3 / /data ro - xfs /dev/sdc1 rw\n"
        "4 1 0:9 / /with\\040space rw - 9p C:\\134 rw\n"
        "broken line\n"
    )
    assert [find_mount(mounts, path).device for path in ("/", "/database", "/data/x", "/with space/x")] == [  # type: ignore[union-attr]
        "8:1",
        "8:1",
        "8:3",
        "0:9",
    ]
    assert mounts[3].source == "C:\\"
    assert mounts[2].read_only
    assert find_mount((), "/") is None


@pytest.mark.parametrize(
    ("machine", "name", "usage"),
    [
        ("docker_v1", "/docker/6c5d0e7f", CgroupUsage(5_000_000, GIB)),
        ("docker_v2", "/", CgroupUsage(5_000_000, 768 * MIB)),
    ],
)
def test_use_of_a_group_in_both_versions(build_machine: Build, machine: str, name: str, usage: CgroupUsage) -> None:
    # Unused page cache does not count.
    assert cgroup_usage(name, build_machine(machine)) == usage


def test_use_of_a_group_that_is_not_there_is_unknown(build_machine: Build) -> None:
    assert cgroup_usage("/docker/other", build_machine("docker_v1")) == CgroupUsage(None, None)


@pytest.fixture
def tight_cgroup() -> Iterator[tuple[str, list[Path]]]:
    """A cgroup of half a core and 512 MiB that the test creates: its name, and its folder in every tree."""
    with ExitStack() as stack:
        folders: list[Path] = []
        name = f"/dms-peer-test-{os.getpid()}"
        try:
            for folder, limits in _limits(name).items():
                folder.mkdir()
                stack.callback(folder.rmdir)
                folders.append(folder)
                for file, value in limits.items():
                    (folder / file).write_text(value)
        except OSError as error:
            pytest.skip(f"no cgroup can be made here: {error}")
        yield name, folders


def _limits(name: str) -> dict[Path, dict[str, str]]:
    version_1 = {"cpu.cfs_period_us": "100000", "cpu.cfs_quota_us": "50000"}
    cpu, memory = Path("/sys/fs/cgroup/cpu"), Path("/sys/fs/cgroup/memory")
    if cpu.is_dir():
        return {cpu / name[1:]: version_1, memory / name[1:]: {"memory.limit_in_bytes": str(512 * MIB)}}
    return {Path("/sys/fs/cgroup") / name[1:]: {"cpu.max": "50000 100000", "memory.max": str(512 * MIB)}}


def test_a_process_in_a_real_cgroup_sees_the_lower_limit(tight_cgroup: tuple[str, list[Path]], tmp_path: Path) -> None:
    name, folders = tight_cgroup
    script = (
        "import json, sys\nfrom pathlib import Path\n"
        "for folder in sys.argv[2:]: Path(folder, 'cgroup.procs').write_text('0')\n"
        "from dms_resources.machine.hardware import HOST, measure_machine\n"
        "from dms_resources.machine.hardware.gpu import GPUReport\n"
        "machine = measure_machine(Path(sys.argv[1]), HOST, ask_gpus=lambda _: GPUReport())\n"
        "print(json.dumps([str(machine.cpu.cores), machine.ram.size, machine.limits]))\n"
    )
    answer = subprocess.run(
        [sys.executable, "-P", "-c", script, str(tmp_path), *map(str, folders)],
        env=environment(),
        capture_output=True,
        check=True,
    )
    cores, ram, limits = json.loads(answer.stdout)
    assert (cores, ram) == ("0.5", 512 * MIB)
    assert any(limit.startswith("0.5 of ") and limit.endswith(f"cgroup quota of {name}") for limit in limits)


def test_use_of_a_real_cgroup_is_read(tight_cgroup: tuple[str, list[Path]]) -> None:
    name, folders = tight_cgroup
    assert set(folders) & set(group_directories(name, HOST))
    assert cgroup_usage(name, HOST).ram is not None
