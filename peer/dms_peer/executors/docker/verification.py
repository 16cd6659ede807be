"""Compares what a container has with what it was promised. Engines ignore what they do not know, and say nothing."""

from __future__ import annotations

from ..executor import JobSpec
from ..process_groups import kernel_limits
from ..settings import DockerSettings
from .devices import DevicePlan, wrong_devices

__all__ = ["wrong_limits", "wrong_start"]

_MILLICORE_TOLERANCE = 5
_PAGE = 65536


def wrong_start(process: int, spec: JobSpec, settings: DockerSettings, plan: DevicePlan) -> str:
    """What is wrong with a container whose first process runs; "" where the kernel enforces its lease. Blocks."""
    try:
        return wrong_limits(process, spec, settings) or wrong_devices(process, plan)
    except OSError as error:
        return f"what the kernel enforces cannot be read: {error.strerror}"


def wrong_limits(process: int, spec: JobSpec, settings: DockerSettings) -> str:
    """The first limit that the kernel does not hold for a process; "" for none. Blocks."""
    limits = kernel_limits(process)
    memory = spec.resources.ram.size
    millicores = spec.resources.cpu.cores.millicores
    if limits.memory is None or limits.memory > memory + _PAGE:
        return f"its memory is limited to {limits.memory} bytes, and its lease has {memory}"
    if limits.memory_and_swap is None or limits.memory_and_swap > memory + _PAGE:
        return "its swap is not limited"
    if limits.millicores is None or limits.millicores > millicores + _MILLICORE_TOLERANCE:
        return f"its CPU is limited to {limits.millicores} millicores, and its lease has {millicores}"
    if limits.processes is None or limits.processes > settings.processes:
        return f"its processes are limited to {limits.processes}, and the owner allows {settings.processes}"
    return ""
