"""Measures the whole machine."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path

from ...components import MachineResources
from .cgroups import read_cgroups
from .cpu import read_cpu
from .disk import read_disk
from .gpu.devices import GPUReport
from .gpu.inventory import Ask, read_gpus
from .network import read_network
from .ram import read_ram
from .roots import HOST, Roots

__all__ = ["measure_machine", "read_machine"]

_log = logging.getLogger(__name__)


def measure_machine(
    work_dir: Path,
    roots: Roots = HOST,
    *,
    environment: Mapping[str, str] = os.environ,
    ask_gpus: Ask | None = None,
) -> MachineResources:
    """What this machine has, as this process may use it; disk is the file system of `work_dir` (bytes, hertz).

    Never raises for what it finds: what could not be read is a sentence in `problems`. May take some seconds where a
    GPU's driver is slow, and cannot be cancelled; call it in a thread from async code.
    """
    gpus = read_gpus(roots, environment, ask_gpus)
    machine = read_machine(work_dir, roots, gpus)
    for note in gpus.notes:
        _log.info("%s", note)
    for problem in machine.problems:
        _log.warning("%s", problem)
    return machine


def read_machine(work_dir: Path, roots: Roots, gpus: GPUReport) -> MachineResources:
    """Reads everything but the GPUs, which are given; a matter of milliseconds. Never raises for what it finds."""
    cgroups = read_cgroups(roots)
    cpu = read_cpu(roots, cgroups.value)
    ram = read_ram(roots, cgroups.value)
    disk = read_disk(work_dir, roots)
    network = read_network(roots)
    parts = (cgroups, cpu, ram, disk, network, gpus)
    return MachineResources(
        cpu=cpu.value,
        ram=ram.value,
        disk=disk.value,
        gpus=tuple(device.gpu for device in gpus.devices),
        network=network.value,
        limits=tuple(limit for part in parts for limit in part.limits),
        problems=tuple(problem for part in parts for problem in part.problems),
    )
