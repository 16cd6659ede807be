"""Recorded machines are measured correctly, and no file content raises."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from dms_resources.components import MachineResources
from dms_resources.machine.file import machine_document, parse_machine
from dms_resources.machine.hardware import HOST, Roots, measure_machine
from dms_resources.machine.hardware.gpu import GPUReport
from dms_resources.machine.hardware.load import free_ram, read_domain, read_times
from dms_resources.machine.hardware.roots import parse_cpu_list, read_text
from dms_resources.units import GIB, Cores

Build = Callable[[str], Roots]

_KIB = 1024


def _measure(roots: Roots) -> MachineResources:
    return measure_machine(Path("/"), roots, environment={})


@pytest.mark.parametrize(
    ("name", "cores", "threads", "physical", "clock", "base", "cache"),
    [
        ("bare_metal", "16", 16, 8, 4_800_000_000, 2_900_000_000, 16 * 2**20),
        ("docker_v1", "2", 64, 32, 2_500_000_000, 0, 0),
        ("docker_v2", "1.5", 16, 0, 3_400_000_000, 0, 0),
        ("kubernetes_pod", "2.5", 8, 0, 2_500_000_000, 2_500_000_000, 0),
        ("lxc", "4", 16, 0, 3_000_000_000, 0, 0),
        ("systemd_slice", "1.5", 8, 0, 3_400_000_000, 3_400_000_000, 0),
        ("numa_server", "32", 128, 64, 3_737_890_000, 0, 32 * 2**20),
        ("raspberry_pi", "4", 4, 4, 1_800_000_000, 0, 0),
        ("wsl", "12", 12, 6, 2_496_004_000, 0, 0),
    ],
)
def test_cpu_of_every_recorded_machine(
    build_machine: Build, name: str, cores: str, threads: int, physical: int, clock: int, base: int, cache: int
) -> None:
    cpu = _measure(build_machine(name)).cpu
    assert (cpu.cores, cpu.threads, cpu.physical_cores) == (Cores.of(cores), threads, physical)
    assert (cpu.clock_speed, cpu.base_clock_speed, cpu.cache_size) == (clock, base, cache)


@pytest.mark.parametrize(
    ("name", "architecture", "vendor", "model"),
    [
        ("bare_metal", "x86_64", "GenuineIntel", "Intel(R) Core(TM) i7-10700 CPU @ 2.90GHz"),
        ("docker_v1", "x86_64", "AuthenticAMD", "AMD EPYC 7502P 32-Core Processor"),
        ("raspberry_pi", "arm64", "ARM", "Cortex-A72"),
    ],
)
def test_processor_in_words(build_machine: Build, name: str, architecture: str, vendor: str, model: str) -> None:
    cpu = _measure(build_machine(name)).cpu
    assert (cpu.architecture, cpu.vendor, cpu.model) == (architecture, vendor, model)


@pytest.mark.parametrize(
    ("name", "size", "kind"),
    [
        ("bare_metal", 32768000 * _KIB, ""),
        ("docker_v1", 4 * GIB, ""),
        ("docker_v2", 2 * GIB, ""),
        # The limit is set on a group that the pod does not see.
        ("kubernetes_pod", 8 * GIB, ""),
        ("lxc", 8 * GIB, ""),
        # memory.high of the slice is below memory.max of the service.
        ("systemd_slice", 6 * GIB, ""),
        # Huge pages of all sizes are set aside.
        ("numa_server", (1056000000 - 536920064) * _KIB, "DDR4"),
        ("raspberry_pi", 3884284 * _KIB, ""),
        ("wsl", 16265720 * _KIB, ""),
    ],
)
def test_ram_of_every_recorded_machine(build_machine: Build, name: str, size: int, kind: str) -> None:
    ram = _measure(build_machine(name)).ram
    assert (ram.size, ram.type) == (size, kind)


@pytest.mark.parametrize(
    ("name", "limits"),
    [
        ("bare_metal", []),
        ("docker_v1", ["2 of 64 cores: cgroup quota of /docker/6c5d0e7f"]),
        ("docker_v2", ["4 of 16 cores: cpuset of the container", "1.5 of 16 cores: cgroup quota of the container"]),
        ("kubernetes_pod", ["2.5 of 8 cores: cgroup quota of /kubepods/burstable/pod1b2c/4d5e"]),
        ("lxc", ["4 of 16 cores: 12 are not online"]),
        ("systemd_slice", ["1.5 of 8 cores: cgroup quota of /lend.slice"]),
        ("numa_server", ["64 of 128 cores: 64 are not online", "32 of 128 cores: CPU affinity of this process"]),
    ],
)
def test_what_limits_the_cores_is_said(build_machine: Build, name: str, limits: list[str]) -> None:
    found = _measure(build_machine(name)).limits
    assert [limit for limit in found if " cores: " in limit] == limits


@pytest.mark.parametrize(
    ("name", "limits"),
    [
        ("bare_metal", []),
        ("docker_v2", ["2 GiB of 62.75 GiB RAM: cgroup limit (memory.max) of the container"]),
        (
            "kubernetes_pod",
            ["8 GiB of 30.51 GiB RAM: cgroup limit (hierarchical_memory_limit) of /kubepods/burstable/pod1b2c/4d5e"],
        ),
        ("systemd_slice", ["6 GiB of 62.5 GiB RAM: cgroup limit (memory.high) of /lend.slice"]),
        ("numa_server", ["495.03 GiB of 1007.08 GiB RAM: 512.04 GiB are set aside as huge pages"]),
    ],
)
def test_what_limits_the_ram_is_said(build_machine: Build, name: str, limits: list[str]) -> None:
    found = _measure(build_machine(name)).limits
    assert [limit for limit in found if " RAM: " in limit] == limits


@pytest.mark.parametrize(
    ("name", "model", "kind", "interface"),
    [
        ("bare_metal", "Samsung SSD 970 EVO Plus 1TB", "NVMe", "NVMe"),
        ("systemd_slice", "ST4000NM000A-2HZ", "HDD", "SATA"),
        ("numa_server", "PM1643a", "SSD", "SAS"),
        ("raspberry_pi", "", "", "MMC"),
        ("wsl", "Virtual Disk", "", "Hyper-V"),
        ("docker_v2", "", "", ""),
    ],
)
def test_disk_device_of_recorded_machines(
    build_machine: Build, name: str, model: str, kind: str, interface: str
) -> None:
    disk = _measure(build_machine(name)).disk
    assert (disk.model, disk.type, disk.interface) == (model, kind, interface)


def test_network_interfaces_of_recorded_machines(build_machine: Build) -> None:
    found = {i.name: i for i in _measure(build_machine("bare_metal")).network.interfaces}
    assert [(i.type, i.link_speed, i.up) for i in found.values()] == [
        ("ethernet", 1_000_000_000, True),
        ("loopback", 0, True),
        ("wifi", 0, False),
    ]


def test_swap_is_not_counted(build_machine: Build) -> None:
    roots = build_machine("== /proc/meminfo\nMemTotal: 1024 kB\nSwapTotal: 8192 kB\nSwapFree: 8192 kB\n")
    assert _measure(roots).ram.size == 2**20


def test_a_machine_of_which_nothing_can_be_read_offers_nothing_and_says_so(tmp_path: Path) -> None:
    machine = _measure(Roots(proc=tmp_path / "proc", sys=tmp_path / "sys"))
    assert machine.cpu.cores == Cores(0)
    assert machine.problems == (
        "the number of CPUs cannot be read: none is offered",
        "the size of main memory cannot be read: none is offered",
    )


def test_every_problem_is_one_line_in_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    machine = measure_machine(
        tmp_path,
        Roots(tmp_path, tmp_path),
        environment={},
        ask_gpus=lambda _: GPUReport.failure("the driver is broken"),
    )
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert tuple(warnings) == machine.problems
    assert "the driver is broken" in warnings


def test_this_machine_is_measured() -> None:
    machine = measure_machine(Path.cwd(), HOST, ask_gpus=lambda _: GPUReport())
    assert Cores(0) < machine.cpu.cores <= Cores(machine.cpu.threads * 1000)
    assert machine.ram.size > 0
    assert machine.disk.size > 0
    assert machine.cpu.architecture in {"x86_64", "arm64", "riscv64", "ppc64le", "s390x", "arm", "x86"}
    assert any(interface.type == "loopback" for interface in machine.network.interfaces)


# Every file that is read, each with content that is nearly valid.
_FILES = (
    "proc/cpuinfo",
    "proc/meminfo",
    "proc/stat",
    "proc/self/status",
    "proc/self/cgroup",
    "proc/self/mountinfo",
    "proc/sys/kernel/arch",
    "sys/devices/system/cpu/online",
    "sys/devices/system/cpu/present",
    "sys/devices/system/cpu/cpu0/topology/core_cpus_list",
    "sys/devices/system/cpu/cpu0/cache/index0/level",
    "sys/devices/system/cpu/cpu0/cache/index0/size",
    "sys/devices/system/cpu/cpufreq/policy0/cpuinfo_max_freq",
    "sys/fs/cgroup/cpu.max",
    "sys/fs/cgroup/cpu.stat",
    "sys/fs/cgroup/memory.max",
    "sys/fs/cgroup/memory.high",
    "sys/fs/cgroup/memory.stat",
    "sys/fs/cgroup/memory.current",
    "sys/fs/cgroup/cpuset.cpus.effective",
    "sys/fs/cgroup/cpu/cpu.cfs_quota_us",
    "sys/fs/cgroup/cpu/cpu.cfs_period_us",
    "sys/fs/cgroup/memory/memory.limit_in_bytes",
    "sys/dev/block/8:1/queue/rotational",
    "sys/class/net/eth0/speed",
    "sys/class/net/eth0/type",
    "sys/bus/pci/devices/0000:01:00.0/class",
    "sys/bus/pci/devices/0000:01:00.0/vendor",
    "sys/bus/pci/devices/0000:01:00.0/device",
    "sys/bus/pci/devices/0000:01:00.0/mem_info_vram_total",
    "sys/bus/pci/devices/0000:01:00.0/mem_info_vram_used",
    "sys/bus/pci/devices/0000:01:00.0/unique_id",
)
_LIKELY = (
    b"",
    b"0",
    b"-1",
    b"max",
    b"max 100000",
    b"0 0",
    b"1 99999999999999999999999",
    b"0-3",
    b"3-0",
    b"0-99999999999",
    b"0x10de",
    b"0x1002",
    b"0x030000",
    b"99999999999999999999",
    b"9223372036854775806",
    b"999999999999G",
    b"0::/a/../../b",
    b"0::/\n1:cpu:/x\n2:memory:/\n",
    b"24 1 8:1 / / rw - ext4 /dev/sda1 rw\n30 24 0:26 / /sys/fs/cgroup rw - cgroup2 c rw\n",
    b"30 24 0:26 /../.. /sys/fs/cgroup rw - cgroup2 c rw\n24 1 \\777 / / rw - \\999 / rw\n",
    b"processor : 0\ncpu MHz : 1e999\nCPU implementer : 0x41\nCPU part : 0xzz\n\nprocessor : -5\n",
    b"MemTotal: 1 kB\nHugetlb: 99999999999999999 kB\n",
    b"MemTotal: 99999999999999999 kB\n",
    b"Cpus_allowed_list:\t0-1,\n",
    b"cpu0 1 2 3 4\ncpu1 99999999999999999999 1 1 1\n",
    b"usage_usec 12\nhierarchical_memory_limit 5\ninactive_file 9\n",
    "\u0663".encode(),
)
_CONTENTS = st.fixed_dictionaries(
    {}, optional=dict.fromkeys(_FILES, st.sampled_from(_LIKELY) | st.binary(max_size=200))
)


def _check_contents(folder: Path, contents: dict[str, bytes]) -> None:
    for name, content in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    roots = Roots(proc=folder / "proc", sys=folder / "sys")
    machine = _measure(roots)
    assert machine.cpu.cores.millicores <= machine.cpu.threads * 1000
    # Whatever was read can be shown, and read again.
    shown = msgspec.json.encode(machine_document(machine))
    assert parse_machine(shown, "shown") == replace(machine, simulated=True)
    domain = read_domain(roots)
    read_times(roots, domain, 1.0)
    free_ram(roots, domain)


@pytest.mark.parametrize("content", _LIKELY)
def test_the_same_content_in_every_file_does_not_raise(tmp_path: Path, content: bytes) -> None:
    _check_contents(tmp_path, dict.fromkeys(_FILES, content))


@given(_CONTENTS)
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_content_of_any_file_raises(tmp_path_factory: pytest.TempPathFactory, contents: dict[str, bytes]) -> None:
    _check_contents(tmp_path_factory.mktemp("machine"), contents)


def test_folders_pipes_and_loops_in_the_place_of_files_do_not_raise(tmp_path: Path) -> None:
    roots = Roots(proc=tmp_path / "proc", sys=tmp_path / "sys")
    (roots.proc / "cpuinfo").mkdir(parents=True)
    os.mkfifo(roots.proc / "meminfo")
    (roots.sys / "dev" / "block").mkdir(parents=True)
    (roots.sys / "dev" / "block" / "8:1").symlink_to("8:1")
    (roots.proc / "self").mkdir()
    (roots.proc / "self" / "mountinfo").write_text("24 1 8:1 / / rw - ext4 /dev/sda1 rw\n")
    assert _measure(roots).ram.size == 0


@pytest.mark.parametrize("text", [None, "", "a", "1-", "-1", "3-1", "0-99999999", "1,,2", "\u0663"])
def test_what_is_no_cpu_list_is_unknown(text: str | None) -> None:
    assert parse_cpu_list(text) is None


def test_cpu_lists_are_read() -> None:
    assert parse_cpu_list("0-2,8, 10-11") == {0, 1, 2, 8, 10, 11}


def test_a_file_that_is_not_there_is_none_and_an_empty_one_is_empty(tmp_path: Path) -> None:
    (tmp_path / "empty").write_text("\n")
    assert read_text(tmp_path / "none") is None
    assert read_text(tmp_path / "empty") == ""
