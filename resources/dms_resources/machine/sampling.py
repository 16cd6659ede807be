"""Takes one sample of the machine's use: what is in use, and what is physically free.

Both add up to the machine. CPU, memory, disk and VRAM that any program uses are not free. Jobs whose cgroups are
followed are reported separately from the rest.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path

from msgspec import Struct
from msgspec.structs import replace

from ..components import CPU, RAM, Amount, Disk, GPUs, MachineResources, Resources
from ..units import Cores
from .hardware.gpu.devices import GPUDevice
from .hardware.load import (
    CPUTimes,
    Domain,
    cgroup_usage,
    cores_in_use,
    free_disk,
    free_ram,
    quota_left,
    read_domain,
    read_times,
)
from .hardware.roots import Roots

__all__ = ["JobUsage", "Sampler", "UsageSample"]


class JobUsage(Struct, frozen=True, kw_only=True):
    """What the followed cgroup of one lease uses: CPU since the last sample, and bytes of RAM."""

    lease_id: str
    cpu: Cores
    ram: Amount


class UsageSample(Struct, frozen=True, kw_only=True):
    """One reading of the machine: `usage` is what is in use, `free` what is physically free.

    `taken_at` and `gpus_taken_at` are seconds of `time.monotonic`. `jobs` are the followed leases; `rest` is the usage
    without their CPU and RAM. `problems` are sentences on what could not be read; it counts as free.
    """

    usage: Resources
    free: Resources
    rest: Resources
    taken_at: float
    gpus_taken_at: float
    jobs: tuple[JobUsage, ...] = ()
    problems: tuple[str, ...] = ()

    @property
    def age(self) -> float:
        """Seconds since the sample was taken."""
        return time.monotonic() - self.taken_at

    @property
    def gpu_age(self) -> float:
        """Seconds since the GPUs were last read."""
        return time.monotonic() - self.gpus_taken_at


class Sampler:
    """Takes samples one after the other. Not to be used by two threads at a time."""

    def __init__(self, work_dir: Path, roots: Roots, clock: Callable[[], float] = time.monotonic) -> None:
        self._work_dir = work_dir
        self._roots = roots
        self._clock = clock
        self._domain = Domain(frozenset(), (), {})
        self._before = CPUTimes()
        self._job_times: dict[str, tuple[float, int]] = {}

    def begin(self) -> None:
        """Read the limits of this process again, and the first counters: CPU use is the difference of two readings."""
        self._domain = read_domain(self._roots)
        if not self._before.taken_at:
            self._before = read_times(self._roots, self._domain, self._clock())

    def take(
        self,
        machine: MachineResources,
        devices: tuple[GPUDevice, ...],
        gpus_taken_at: float,
        followed: Mapping[str, str],
    ) -> UsageSample:
        """One sample. `followed` are cgroup names by lease id. It reads a few files and never raises
        because of them.
        """
        now = self._clock()
        if machine.simulated:
            return _unused(machine, now)
        free_amounts = {
            "RAM": free_ram(self._roots, self._domain),
            "disk": free_disk(self._work_dir),
        }
        problems = tuple(f"the free {name} cannot be read" for name, free in free_amounts.items() if free is None)
        ram, disk = (
            total if free is None else min(free, total)
            for total, free in zip((machine.ram.size, machine.disk.size), free_amounts.values(), strict=True)
        )
        cores = self._free_cores(machine.cpu.cores.millicores, now)
        used = _amounts(machine.cpu.cores.millicores - cores, machine.ram.size - ram, machine.disk.size - disk)
        jobs = tuple(self._job_usage(lease_id, name, now) for lease_id, name in followed.items())
        self._job_times = {lease: times for lease, times in self._job_times.items() if lease in followed}
        return UsageSample(
            usage=replace(used, gpus=_vram(devices, lambda device: device.used)),
            free=replace(_amounts(cores, ram, disk), gpus=_vram(devices, lambda d: d.gpu.vram - d.used)),
            rest=replace(_without_jobs(used, jobs), gpus=_vram(devices, lambda device: device.used)),
            taken_at=now,
            gpus_taken_at=gpus_taken_at,
            jobs=jobs,
            problems=problems,
        )

    def _free_cores(self, millicores: int, now: float) -> int:
        """The millicores that were idle since the last reading, of those that this process may use."""
        before, self._before = self._before, read_times(self._roots, self._domain, now)
        cpus = len(self._domain.cpus)
        idle = cpus * 1000 - cores_in_use(before, self._before, cpus) if cpus else millicores
        left = quota_left(before, self._before, self._domain)
        return min(millicores, idle, millicores if left is None else left)

    def _job_usage(self, lease_id: str, name: str, now: float) -> JobUsage:
        found = cgroup_usage(name, self._roots)
        cpu_time = found.cpu_time or 0
        then, before = self._job_times.get(lease_id, (now, cpu_time))
        self._job_times[lease_id] = (now, cpu_time)
        busy = max(0, cpu_time - before) / (now - then) / 1000 if now > then else 0
        return JobUsage(lease_id=lease_id, cpu=Cores(round(busy)), ram=found.ram or 0)


def _amounts(millicores: int, ram: int, disk: int) -> Resources:
    return Resources(cpu=CPU(cores=Cores(millicores)), ram=RAM(size=ram), disk=Disk(size=disk), gpus=())


def _vram(devices: tuple[GPUDevice, ...], amount: Callable[[GPUDevice], int]) -> GPUs:
    return tuple(replace(device.gpu, vram=amount(device)) for device in devices)


def _without_jobs(used: Resources, jobs: tuple[JobUsage, ...]) -> Resources:
    # The two are not read at the same instant, so that jobs may seem to use more than is in use.
    cpu = sum(job.cpu.millicores for job in jobs)
    ram = sum(job.ram for job in jobs)
    return _amounts(max(0, used.cpu.cores.millicores - cpu), max(0, used.ram.size - ram), used.disk.size)


def _unused(machine: MachineResources, now: float) -> UsageSample:
    """The sample of a simulated machine: all of it is free."""
    none = replace(_amounts(0, 0, 0), gpus=tuple(replace(gpu, vram=0) for gpu in machine.gpus))
    free = Resources(cpu=machine.cpu, ram=machine.ram, disk=machine.disk, gpus=machine.gpus)
    return UsageSample(usage=none, free=free, rest=none, taken_at=now, gpus_taken_at=now)
