"""The machine's use from a background sample, and a machine that changes while it is watched."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import trio
import trio.testing
from msgspec.structs import replace

from dms_resources.components import CPU, RAM, Disk, MachineResources, OnboardedResources
from dms_resources.errors import UsageUnknownError
from dms_resources.ledger.missing import GPUMissing, missing_resources
from dms_resources.machine.hardware import HOST, Roots, measure_machine
from dms_resources.machine.hardware.gpu import GPUReport
from dms_resources.machine.hardware.gpu.process import environment
from dms_resources.machine.hardware.measurement import read_machine
from dms_resources.machine.sampling import Sampler
from dms_resources.machine.usage import UsageMonitor, UsageSample
from dms_resources.units import GIB, MIB, Cores

Build = Callable[[str], Roots]
Behave = Callable[..., None]


class _Clock:
    """A clock that moves on request."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def in_docker(build_machine: Build) -> tuple[Roots, MachineResources, Sampler, _Clock]:
    """A container of 1.5 cores and 2 GiB, its sampler and the sampler's clock."""
    roots = build_machine("docker_v2")
    clock = _Clock()
    sampler = Sampler(Path("/"), roots, clock)
    sampler.begin()
    return roots, read_machine(Path("/"), roots, GPUReport()), sampler, clock


Docker = tuple[Roots, MachineResources, Sampler, _Clock]


def test_used_and_free_add_up_to_the_machine(in_docker: Docker) -> None:
    roots, machine, sampler, clock = in_docker
    (roots.sys / "fs/cgroup/cpu.stat").write_text("usage_usec 5500000\n")
    clock.now += 1
    sample = sampler.take(machine, (), clock.now, {})
    assert sample.usage.cpu.cores == Cores(500)
    assert sample.free.cpu.cores == Cores(1000)
    assert sample.usage.ram.size == 768 * MIB
    assert sample.free.ram.size == 2 * GIB - 768 * MIB
    assert sample.usage.disk.size + sample.free.disk.size == machine.disk.size
    assert sample.taken_at == clock.now


def test_busy_neighbours_on_our_cpus_leave_us_less(in_docker: Docker) -> None:
    roots, machine, sampler, clock = in_docker
    # All four allowed CPUs are 90 % busy with other work. The container's quota is unused.
    (roots.proc / "stat").write_text("".join(f"cpu{n} 1000 0 0 1000 0 0 0 0\n" for n in range(16)))
    clock.now += 1
    sample = sampler.take(machine, (), clock.now, {})
    assert sample.free.cpu.cores == Cores(400)


def test_followed_jobs_are_told_apart_from_the_rest(in_docker: Docker) -> None:
    roots, machine, sampler, clock = in_docker
    job = roots.sys / "fs/cgroup/job-1"
    job.mkdir()
    (job / "cpu.stat").write_text("usage_usec 1000000\n")
    (job / "memory.current").write_text(str(256 * MIB))
    sampler.take(machine, (), clock.now, {"lease-1": "/job-1"})
    (job / "cpu.stat").write_text("usage_usec 1300000\n")
    (roots.sys / "fs/cgroup/cpu.stat").write_text("usage_usec 5500000\n")
    clock.now += 1
    sample = sampler.take(machine, (), clock.now, {"lease-1": "/job-1", "lease-2": "/gone"})
    assert [(j.lease_id, j.cpu, j.ram) for j in sample.jobs] == [
        ("lease-1", Cores(300), 256 * MIB),
        ("lease-2", Cores(0), 0),
    ]
    assert sample.usage.cpu.cores == Cores(500)
    assert sample.rest.cpu.cores == Cores(200)
    assert sample.rest.ram.size == 512 * MIB
    assert sampler.take(machine, (), clock.now, {}).jobs == ()


def test_what_cannot_be_read_is_said_and_counts_as_free(in_docker: Docker) -> None:
    roots, machine, sampler, clock = in_docker
    (roots.proc / "meminfo").unlink()
    (roots.sys / "fs/cgroup/memory.current").unlink()
    sample = sampler.take(machine, (), clock.now, {})
    assert sample.problems == ("the free RAM cannot be read",)
    assert sample.free.ram.size == machine.ram.size


def test_nobody_uses_a_simulated_machine(in_docker: Docker) -> None:
    _, machine, sampler, clock = in_docker
    machine = replace(machine, simulated=True)
    sample = sampler.take(machine, (), clock.now, {})
    assert sample.free.ram == machine.ram
    assert sample.usage.ram.size == 0


async def _run_inline(call: Callable[[], None]) -> None:
    """Run the blocking call at once, so that virtual time works."""
    call()


async def test_samples_are_taken_at_the_interval(
    build_machine: Build, tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    roots = build_machine("docker_v2")
    monitor = UsageMonitor(
        read_machine(tmp_path, roots, GPUReport()), tmp_path, interval=7.0, roots=roots, worker=_run_inline
    )
    with pytest.raises(UsageUnknownError):
        monitor.get_usage()
    async with trio.open_nursery() as nursery:
        await nursery.start(monitor.run)
        first, began = monitor.sample, trio.current_time()
        assert first is not None
        second = await monitor.next_sample()
        assert second is not first
        assert monitor.get_usage() is second.usage
        assert monitor.physically_free() is second.free
        assert trio.current_time() - began == pytest.approx(7.0, abs=0.01)
        assert 0 <= second.age < 60
        nursery.cancel_scope.cancel()


async def test_a_cgroup_that_shrinks_is_seen(
    build_machine: Build, tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    roots = build_machine("docker_v2")
    machine = read_machine(tmp_path, roots, GPUReport())
    monitor = UsageMonitor(machine, tmp_path, roots=roots, worker=_run_inline)
    async with trio.open_nursery() as nursery:
        await nursery.start(monitor.run)
        assert monitor.machine is machine
        (roots.sys / "fs/cgroup/memory.max").write_text(str(GIB))
        while monitor.machine is machine:
            await monitor.next_sample()
        assert monitor.machine.ram.size == GIB
        while monitor.physically_free().ram.size > 256 * MIB:
            await monitor.next_sample()
        nursery.cancel_scope.cancel()


async def test_follow_and_unfollow_take_effect_at_the_next_sample(
    build_machine: Build, tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    roots = build_machine("docker_v2")
    monitor = UsageMonitor(read_machine(tmp_path, roots, GPUReport()), tmp_path, roots=roots, worker=_run_inline)
    async with trio.open_nursery() as nursery:
        await nursery.start(monitor.run)
        monitor.follow("lease-1", "/")
        assert [job.lease_id for job in (await monitor.next_sample()).jobs] == ["lease-1"]
        monitor.unfollow("lease-1")
        monitor.unfollow("lease-2")
        assert (await monitor.next_sample()).jobs == ()
        nursery.cancel_scope.cancel()


def _onboard_all(machine: MachineResources) -> OnboardedResources:
    return OnboardedResources(cpu=CPU(cores=Cores(0)), ram=RAM(size=0), disk=Disk(size=0), gpus=machine.gpus)


@pytest.fixture
def watched(fake_nvml: Behave, tmp_path: Path) -> Callable[..., UsageMonitor]:
    """A monitor on this machine with two GPUs of the fake library, surveying all the time."""
    fake_nvml(devices=2)
    machine = measure_machine(tmp_path, HOST, environment={})
    assert len(machine.gpus) == 2

    def watch(**options: float) -> UsageMonitor:
        return UsageMonitor(machine, tmp_path, interval=0.01, survey_interval=0.01, environment={}, **options)

    return watch


async def _until(monitor: UsageMonitor, holds: Callable[[UsageSample], bool]) -> UsageSample:
    with trio.fail_after(20):
        while True:
            sample = await monitor.next_sample()
            if holds(sample):
                return sample


async def test_vram_in_use_is_told_for_each_gpu(watched: Callable[..., UsageMonitor], fake_nvml: Behave) -> None:
    monitor = watched()
    async with trio.open_nursery() as nursery:
        await nursery.start(monitor.run)
        assert [gpu.vram for gpu in monitor.get_usage().gpus] == [0, 0]
        fake_nvml(devices=2, used=8 * GIB)
        sample = await _until(monitor, lambda sample: sample.usage.gpus[0].vram > 0)
        assert [gpu.vram for gpu in sample.usage.gpus] == [8 * GIB, 0]
        assert [gpu.vram for gpu in sample.free.gpus] == [32 * GIB, 40 * GIB]
        # A change of the use is no change of the machine.
        assert [gpu.vram for gpu in monitor.machine.gpus] == [40 * GIB, 40 * GIB]
        assert len(psutil.Process().children()) == 1
        nursery.cancel_scope.cancel()
    assert psutil.Process().children() == []


async def test_a_gpu_that_is_lost_is_missing_until_it_comes_back(
    watched: Callable[..., UsageMonitor], fake_nvml: Behave
) -> None:
    monitor = watched()
    onboarded = _onboard_all(monitor.machine)
    lost = onboarded.gpus[1]
    async with trio.open_nursery() as nursery:
        await nursery.start(monitor.run)
        assert missing_resources(onboarded, monitor.machine) == ()
        fake_nvml(devices=2, fail="nvmlDeviceGetMemoryInfo:15:1")
        await _until(monitor, lambda sample: len(sample.usage.gpus) == 1)
        assert missing_resources(onboarded, monitor.machine) == (
            GPUMissing(uuid=lost.uuid, model=lost.model, onboarded=40 * GIB, present=0),
        )
        assert monitor.machine.problems == ("NVIDIA GPU 1: GPU is lost",)
        fake_nvml(devices=2)
        await _until(monitor, lambda sample: len(sample.usage.gpus) == 2)
        assert missing_resources(onboarded, monitor.machine) == ()
        nursery.cancel_scope.cancel()


async def test_a_compute_mode_that_changes_is_followed(watched: Callable[..., UsageMonitor], fake_nvml: Behave) -> None:
    monitor = watched()
    names = [gpu.uuid for gpu in monitor.machine.gpus]
    async with trio.open_nursery() as nursery:
        await nursery.start(monitor.run)
        fake_nvml(devices=2, mode=3)
        await _until(monitor, lambda _: all(gpu.exclusive for gpu in monitor.machine.gpus))
        assert [gpu.uuid for gpu in monitor.machine.gpus] == names
        fake_nvml(devices=2, mode=2)
        await _until(monitor, lambda _: monitor.machine.gpus == ())
        fake_nvml(devices=2)
        await _until(monitor, lambda _: [gpu.exclusive for gpu in monitor.machine.gpus] == [False, False])
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("how", [{"fail": "nvmlInitWithFlags:999"}, {"crash": "nvmlInitWithFlags"}])
async def test_a_driver_that_fails_has_lost_its_gpus_only_when_it_keeps_failing(
    watched: Callable[..., UsageMonitor], fake_nvml: Behave, how: dict[str, str]
) -> None:
    monitor = watched()
    async with trio.open_nursery() as nursery:
        await nursery.start(monitor.run)
        fake_nvml(devices=2, **how)
        sample = await _until(monitor, lambda sample: bool(sample.problems))
        assert len(sample.usage.gpus) == 2
        await _until(monitor, lambda sample: sample.usage.gpus == ())
        assert monitor.machine.gpus == ()
        fake_nvml(devices=2)
        sample = await _until(monitor, lambda sample: len(sample.usage.gpus) == 2)
        assert sample.problems == ()
        nursery.cancel_scope.cancel()


async def test_a_driver_that_hangs_stops_nothing_else(watched: Callable[..., UsageMonitor], fake_nvml: Behave) -> None:
    monitor = watched(gpu_deadline=2.0)
    async with trio.open_nursery() as nursery:
        await nursery.start(monitor.run)
        fake_nvml(devices=2, hang="nvmlDeviceGetCount_v2")
        sample = await _until(monitor, lambda sample: sample.gpu_age > 0.2)
        # The rest is still sampled while the library does not answer.
        assert sample.age < sample.gpu_age
        nursery.cancel_scope.cancel()
    assert psutil.Process().children() == []


_ASK = """
    import ctypes, gc, os, sys
    from pathlib import Path
    import trio
    from dms_resources.demands import CPUDemand, Demand, GPUDemand, RAMDemand
    from dms_resources.machine.guard import physical_shortages
    from dms_resources.machine.hardware import HOST, measure_machine
    from dms_resources.machine.hardware.gpu import GPUReport
    from dms_resources.units import Cores
    from dms_resources.machine.usage import UsageMonitor

    machine = measure_machine(Path("/"), HOST, ask_gpus=lambda _: GPUReport())
    async def run_inline(call):
        call()

    # The kernel watches one thread, and another one would have to be waited for.
    monitor = UsageMonitor(machine, Path("/"), worker=run_inline)

    async def sample():
        async with trio.open_nursery() as nursery:
            await nursery.start(monitor.run)
            nursery.cancel_scope.cancel()

    def ask():
        monitor.get_usage(), monitor.physically_free()
        demand = Demand(cpu=CPUDemand(cores=Cores(10**9)), ram=RAMDemand(size=1), gpus=(GPUDemand(vram=1),))
        assert len(physical_shortages(demand, monitor.sample, monitor.machine)) == 2

    trio.run(sample)
    questions = {"usage": ask, "control": os.getppid}
    question = questions[sys.argv[1]]
    question()
    gc.disable()
    strict = ctypes.CDLL(None).prctl
    if strict(22, 1, 0, 0, 0):
        os.write(1, b"refused")
        os._exit(0)
    # From here on the kernel kills this process for any call but read and write.
    for _ in range(100):
        question()
    os.write(1, b"answered")
"""


def _ask_without_system_calls(question: str) -> bytes:
    command = [sys.executable, "-P", "-c", textwrap.dedent(_ASK), question]
    answer = subprocess.run(command, env=environment(), capture_output=True)
    if answer.stdout == b"refused" or b"prctl" in answer.stderr:
        pytest.skip("this kernel has no strict mode for system calls")
    return answer.stdout


def test_asking_for_the_use_makes_no_system_call() -> None:
    assert _ask_without_system_calls("usage") == b"answered"


def test_a_question_that_makes_a_system_call_would_be_noticed() -> None:
    assert _ask_without_system_calls("control") == b""
