"""The hardware of a machine on one screen: a table for each kind, and sentences on its limits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from dms_resources.components import MachineResources, NetworkInterface
from dms_resources.units import format_size

from ..output import say
from .layout import Column, show_table

__all__ = ["show_hardware"]


def show_hardware(machine: MachineResources) -> None:
    """Print what a machine has, and why it is less than its hardware."""
    say("hardware, as this process may use it" + (" (simulated)" if machine.simulated else ""))
    for title, columns, rows in _tables(machine):
        if rows:
            show_table(title, columns, rows)
    if not machine.gpus:
        say("GPUs: none")
    for sentence in machine.limits:
        say(f"  limit: {sentence}")
    for sentence in machine.problems:
        say(f"  problem: {sentence}")


def _tables(machine: MachineResources) -> Iterator[tuple[str, Sequence[str | Column], list[list[str]]]]:
    cpu, ram, disk = machine.cpu, machine.ram, machine.disk
    threads = f"{cpu.physical_cores or '?'} / {cpu.threads or '?'}"
    yield (
        "CPU",
        (Column("model", sentences=True), "usable cores", "physical / logical", "clock", "cache", "architecture"),
        [
            [
                _words(cpu.vendor, cpu.model) or "unknown",
                str(cpu.cores),
                threads,
                _clock(cpu.clock_speed),
                format_size(cpu.cache_size) if cpu.cache_size else "?",
                cpu.architecture or "?",
            ]
        ],
    )
    yield "memory", ("type", "usable"), [[ram.type or "RAM", format_size(ram.size)]]
    yield (
        "disk",
        ("model", "usable", "type", "interface"),
        [
            [
                _words(disk.vendor, disk.model) or "unknown",
                format_size(disk.size),
                disk.type or "?",
                disk.interface or "?",
            ]
        ],
    )
    yield (
        "GPUs",
        ("index", "VRAM", "vendor", "model", "uuid", "driver"),
        [
            [str(gpu.index), format_size(gpu.vram), gpu.vendor.value, gpu.model, gpu.uuid, gpu.driver_version or "?"]
            for gpu in machine.gpus
        ],
    )
    yield "network", ("interface", "type", "speed", "state"), [_interface(one) for one in machine.network.interfaces]


def _interface(interface: NetworkInterface) -> list[str]:
    speed = f"{interface.link_speed / 1e6:g} Mbit/s" if interface.link_speed else "?"
    return [interface.name, interface.type, speed, "up" if interface.up else "down"]


def _clock(hertz: int) -> str:
    return f"{hertz / 1e9:.1f} GHz" if hertz else "?"


def _words(*words: str) -> str:
    return " ".join(filter(None, words))
