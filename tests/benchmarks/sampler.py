"""Measures the cost of watching the machine, as a share of one core.

    python tests/benchmarks/sampler.py [--seconds 60] [--json]

It runs the usage monitor as a peer does, at its default intervals, and counts the CPU time of this process with all its
threads, and of the process that queries the GPUs' library if there is one. Then it takes many samples and surveys in a
row, for the cost of each.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import psutil
import trio

from dms_resources.components import MachineResources
from dms_resources.machine.hardware import HOST, measure_machine
from dms_resources.machine.hardware.gpu.devices import GPUReport
from dms_resources.machine.hardware.measurement import read_machine
from dms_resources.machine.sampling import Sampler
from dms_resources.machine.usage import UsageMonitor

REPEATS: Final = 200


@dataclass(frozen=True)
class Figures:
    """CPU seconds, and shares of one core in percent."""

    cpu: str
    cores: int
    gpus: int
    seconds: float
    percent_of_a_core: float
    percent_in_gpu_process: float
    sample_seconds: float
    survey_seconds: float


def child_seconds() -> float:
    """CPU seconds of the running child processes."""
    times = [child.cpu_times() for child in psutil.Process().children()]
    return sum(one.user + one.system for one in times)


def seconds_of(call: Callable[[], object]) -> float:
    """CPU seconds of one call, as the mean of many."""
    began = time.process_time()
    for _ in range(REPEATS):
        call()
    return (time.process_time() - began) / REPEATS


async def watch(machine: MachineResources, seconds: float) -> tuple[float, float]:
    """The CPU seconds of a monitor that runs for this time: in this process, and in the one that queries the GPUs."""
    monitor = UsageMonitor(machine, Path.cwd())
    async with trio.open_nursery() as nursery:
        await nursery.start(monitor.run)
        began, children_began = time.process_time(), child_seconds()
        await trio.sleep(seconds)
        used = time.process_time() - began, child_seconds() - children_began
        nursery.cancel_scope.cancel()
    return used


def measure(seconds: float) -> Figures:
    """All figures of this machine."""
    machine = measure_machine(Path.cwd())
    own, children = trio.run(watch, machine, seconds)
    sampler = Sampler(Path.cwd(), HOST)
    sampler.begin()
    return Figures(
        cpu=machine.cpu.model or platform.machine(),
        cores=machine.cpu.threads,
        gpus=len(machine.gpus),
        seconds=seconds,
        percent_of_a_core=100 * (own + children) / seconds,
        percent_in_gpu_process=100 * children / seconds,
        sample_seconds=seconds_of(lambda: sampler.take(machine, (), 0.0, {})),
        survey_seconds=seconds_of(lambda: read_machine(Path.cwd(), HOST, GPUReport())),
    )


def show(figures: Figures) -> None:
    """Print the figures for a person."""
    print(f"{figures.cpu}, {figures.cores} logical CPUs, {figures.gpus} GPUs, watched for {figures.seconds:g} s")
    print(f"the monitor at its default intervals: {figures.percent_of_a_core:.3f} % of one core")
    print(f"of that in the process that asks the GPUs: {figures.percent_in_gpu_process:.3f} %")
    print(f"one sample: {figures.sample_seconds * 1000:.2f} ms, one survey: {figures.survey_seconds * 1000:.2f} ms")


def main() -> None:
    """Read the options, measure and print."""
    options = argparse.ArgumentParser(description="The cost of watching the machine, as a share of one core.")
    options.add_argument("--seconds", type=float, default=60.0, help="how long to watch (default: 60)")
    options.add_argument("--json", action="store_true", help="print one JSON object")
    chosen = options.parse_args()
    figures = measure(chosen.seconds)
    print(json.dumps(asdict(figures))) if chosen.json else show(figures)


if __name__ == "__main__":
    main()
