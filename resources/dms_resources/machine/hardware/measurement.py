"""Measures the whole machine."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path

from msgspec.structs import replace

from ...components import RAM, Disk, MachineResources
from ...units import format_size
from .cgroups import read_cgroups
from .cpu import read_cpu
from .disk import is_in_memory, read_disk
from .gpu.devices import GPUReport
from .gpu.inventory import Ask, read_gpus
from .network import read_network
from .process_limits import process_sentences, read_process_limits
from .ram import read_ram
from .roots import HOST, Reading, Roots

__all__ = ["measure_machine", "read_machine"]

_log = logging.getLogger(__name__)


def measure_machine(
    work_dir: Path,
    roots: Roots = HOST,
    *,
    environment: Mapping[str, str] = os.environ,
    ask_gpus: Ask | None = None,
) -> MachineResources:
    """What this machine has, as far as this process may use it. The disk is the file system of `work_dir` (bytes,
    hertz).

    Never raises because of the machine: what could not be read is a sentence in `problems`. It may take several seconds
    if the driver of a GPU is slow, and cannot be cancelled. Call it in a thread from async code.
    """
    gpus = read_gpus(roots, environment, ask_gpus)
    machine = read_machine(work_dir, roots, gpus)
    for note in gpus.notes:
        _log.info("%s", note)
    for problem in machine.problems:
        _log.warning("%s", problem)
    return machine


def read_machine(work_dir: Path, roots: Roots, gpus: GPUReport) -> MachineResources:
    """Read everything but the GPUs, which are an argument. Takes milliseconds. Never raises because of the machine."""
    cgroups = read_cgroups(roots)
    cpu = read_cpu(roots, cgroups.value)
    ram, disk = read_ram(roots, cgroups.value), read_disk(work_dir, roots)
    if is_in_memory(work_dir, roots):
        ram, disk = _divide(ram, disk)
    network = read_network(roots)
    parts = (cgroups, cpu, ram, disk, network, gpus)
    return MachineResources(
        cpu=cpu.value,
        ram=ram.value,
        disk=disk.value,
        gpus=tuple(device.gpu for device in gpus.devices),
        network=network.value,
        limits=tuple(limit for part in parts for limit in part.limits)
        + process_sentences(cgroups.value, read_process_limits(roots)),
        problems=tuple(problem for part in parts for problem in part.problems),
    )


def _divide(ram: Reading[RAM], disk: Reading[Disk]) -> tuple[Reading[RAM], Reading[Disk]]:
    """The two readings if the disk lies in main memory: each byte is offered either as RAM or as disk,
    never as both.
    """
    total = format_size(ram.value.size)
    disk_size = min(disk.value.size, ram.value.size // 2)
    ram_size = ram.value.size - disk_size
    sentence = f"{format_size(ram_size)} of {total} RAM and {format_size(disk_size)} of disk: the disk is in memory"
    return (
        ram._replace(value=replace(ram.value, size=ram_size), limits=(*ram.limits, sentence)),
        disk._replace(value=replace(disk.value, size=disk_size)),
    )
