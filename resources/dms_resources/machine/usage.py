"""What the machine uses now, from a background sample: reading it makes no system call."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

import trio
from msgspec.structs import replace

from ..components import GPUVendor, MachineResources, Resources
from ..errors import UsageUnknownError
from .hardware.gpu.devices import GPUDevice, GPUReport
from .hardware.gpu.inventory import merge_reports
from .hardware.gpu.process import DEADLINE
from .hardware.gpu.watch import GPUWatch, open_gpu_watch
from .hardware.load import free_disk, free_ram, read_domain
from .hardware.measurement import read_machine
from .hardware.roots import HOST, Roots
from .sampling import JobUsage, Sampler, UsageSample

if TYPE_CHECKING:
    from ..tasks import Worker

__all__ = ["JobUsage", "UsageMonitor", "UsageSample", "free_now"]

_log = logging.getLogger(__name__)

# The first sample needs two readings of the CPUs' counters, at different times.
_FIRST_INTERVAL: Final = 0.2
# After one failure of a driver its devices are still assumed to exist. After several in a row they are assumed gone.
_FAILURES_UNTIL_GONE: Final = 3


class _Started(Protocol):
    """The type of a nursery's `task_status`. The outdated stubs that libp2p installs hide trio's own name for it."""

    def started(self) -> None:
        """Report that the service is ready."""


def free_now(work_dir: Path, roots: Roots = HOST) -> tuple[int | None, int | None]:
    """The bytes of RAM and of the disk of `work_dir` that are free now; None for what cannot be read. Blocks."""
    return free_ram(roots, read_domain(roots)), free_disk(work_dir)


class UsageMonitor:
    """Samples the machine's use every `interval` seconds, and surveys the machine every `survey_interval` seconds.

    A survey reads the GPUs and measures the machine again, so that `machine` follows what disappears, shrinks or comes
    back. While `run` runs, a sample is never older than `interval` plus the time to take one (milliseconds). GPU
    readings are never older than `survey_interval` plus the GPU deadline, unless `sample.problems` says so. `worker`
    reads the files in a thread.
    """

    def __init__(
        self,
        machine: MachineResources,
        work_dir: Path,
        *,
        interval: float = 5.0,
        survey_interval: float = 30.0,
        gpu_deadline: float = DEADLINE,
        roots: Roots = HOST,
        environment: Mapping[str, str] = os.environ,
        worker: Worker = trio.to_thread.run_sync,
    ) -> None:
        self._machine = machine
        self._work_dir = work_dir
        self._interval = interval
        self._survey_interval = survey_interval
        self._gpu_deadline = gpu_deadline
        self._roots = roots
        self._environment = environment
        self._worker = worker
        self._sampler = Sampler(work_dir, roots)
        self._sample: UsageSample | None = None
        self._sampled = trio.Event()
        self._followed: dict[str, str] = {}
        self._known = {gpu.uuid: gpu for gpu in machine.gpus}
        self._nvidia = _assumed_report(machine)
        self._failures = 0
        self._devices: tuple[GPUDevice, ...] = ()
        self._gpus_taken_at = time.monotonic()
        self._problems: tuple[str, ...] = machine.problems

    @property
    def machine(self) -> MachineResources:
        """The machine as last surveyed. It is a new object only if something has changed."""
        return self._machine

    @property
    def sample(self) -> UsageSample | None:
        """The last sample, with its age; None before the first one."""
        return self._sample

    async def next_sample(self) -> UsageSample:
        """Wait for the next sample. May be cancelled. It returns only while `run` runs."""
        await self._sampled.wait()
        return self._last()

    def get_usage(self) -> Resources:
        """What the machine uses now: cores, bytes of RAM and disk, and the bytes of VRAM on each GPU.

        It is the last sample and makes no system call. Raises `UsageUnknownError` before the first one.
        """
        return self._last().usage

    def physically_free(self) -> Resources:
        """What is physically free, by the last sample. Raises `UsageUnknownError` before the first one."""
        return self._last().free

    def _last(self) -> UsageSample:
        if self._sample is None:
            raise UsageUnknownError("the machine's use is not known yet", hint="wait for the monitor to have started")
        return self._sample

    def follow(self, lease_id: str, cgroup: str) -> None:
        """Report the use of a lease's cgroup (its name as in `/proc/PID/cgroup`) separately from the rest."""
        self._followed = {**self._followed, lease_id: cgroup}

    def unfollow(self, lease_id: str) -> None:
        """Stop reporting a lease's use separately. Has no effect on a lease that is not followed."""
        self._followed = {lease: cgroup for lease, cgroup in self._followed.items() if lease != lease_id}

    async def run(self, *, task_status: _Started = trio.TASK_STATUS_IGNORED) -> None:
        """Sample until cancelled. It reports as started when there is a first sample.

        When it ends, the reading thread has returned and the process that queries the GPUs' library has ended.
        """
        async with AsyncExitStack() as stack:
            watch = None
            if not self._machine.simulated and self._roots.is_host and self._nvidia.devices:
                watch = await stack.enter_async_context(open_gpu_watch("nvidia", self._gpu_deadline))
            await self._survey(watch)
            await trio.sleep(min(self._interval, _FIRST_INTERVAL))
            await self._take_sample()
            task_status.started()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._keep_surveying, watch)
                while True:
                    await trio.sleep(self._interval)
                    await self._take_sample()

    async def _take_sample(self) -> None:
        # A file system may be slow, and so may a /proc with hundreds of CPUs, so this never runs in trio's thread.
        state = (self._machine, self._devices, self._gpus_taken_at, self._followed)
        taken: list[UsageSample] = []
        await self._worker(lambda: taken.append(self._sampler.take(*state)))
        self._sample = replace(taken[0], problems=taken[0].problems + self._gpu_problems())
        self._sampled.set()
        self._sampled = trio.Event()

    def _gpu_problems(self) -> tuple[str, ...]:
        return self._nvidia.problems if self._nvidia.failed else ()

    async def _keep_surveying(self, watch: GPUWatch | None) -> None:
        while True:
            await trio.sleep(self._survey_interval)
            await self._survey(watch)

    async def _survey(self, watch: GPUWatch | None) -> None:
        if self._machine.simulated:
            return
        if watch is not None:
            self._accept(await watch.report())
        nvidia = self._nvidia
        measured: list[tuple[MachineResources, tuple[GPUDevice, ...]]] = []
        await self._worker(lambda: measured.append(self._measure(nvidia)))
        machine, self._devices = measured[0]
        if machine != self._machine:
            self._machine = machine
        for problem in sorted({*machine.problems} - {*self._problems}):
            _log.warning("%s", problem)
        self._problems = machine.problems

    def _accept(self, report: GPUReport) -> None:
        """Use a report. If it failed, the devices stay as they were, until too many reports have failed."""
        self._failures = self._failures + 1 if report.failed else 0
        if not report.failed:
            self._gpus_taken_at = time.monotonic()
        elif self._failures < _FAILURES_UNTIL_GONE:
            report = replace(report, devices=self._nvidia.devices)
        self._nvidia = report

    def _measure(self, nvidia: GPUReport) -> tuple[MachineResources, tuple[GPUDevice, ...]]:
        self._sampler.begin()
        report = merge_reports(nvidia, self._roots, self._environment, None)
        devices = tuple(self._with_known_names(device) for device in report.devices)
        return read_machine(self._work_dir, self._roots, replace(report, devices=devices)), devices

    def _with_known_names(self, device: GPUDevice) -> GPUDevice:
        """The device with the names that were measured first: later surveys do not query every library for names."""
        known = self._known.get(device.gpu.uuid)
        if known is None or known.vram != device.gpu.vram:
            return device
        return replace(device, gpu=replace(known, index=device.gpu.index, exclusive=device.gpu.exclusive))


def _assumed_report(machine: MachineResources) -> GPUReport:
    """The report of NVIDIA's library that matches the measured machine."""
    ours = [gpu for gpu in machine.gpus if gpu.vendor is GPUVendor.NVIDIA]
    return GPUReport(devices=tuple(GPUDevice(gpu=gpu, position=str(gpu.index)) for gpu in ours))
