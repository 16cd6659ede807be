"""The expected measurement of a recorded machine: the lines `key: value` before its first file.

Keys: `cores`, `threads`, `physical cores`, `clock`, `base clock` (hertz), `architecture`, `model`, `ram`, `free ram`,
`disk` (sizes), `gpus` ("UUID SIZE, …" or "none"), `limit` and `problem` (a whole sentence; may be repeated), `limits`
and `problems` ("none"). What the recording cannot contain is also given: `statvfs` (total, free and reserved space of
the work directory), `nvidia` (a device that NVIDIA's library lists: uuid, size, PCI address, model), `env` (a
variable).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from dms_resources.components import GPU, GPUVendor, MachineResources
from dms_resources.machine.hardware.disk import Space
from dms_resources.machine.hardware.gpu import GPUDevice, GPUReport
from dms_resources.units import Cores, parse_size

__all__ = ["Expected", "differences", "parse_expected"]

_LINE = re.compile(r"^([a-z ]+): (.+)$", re.MULTILINE)


class Expected(NamedTuple):
    """The lines of one machine, by key, and why its values are right."""

    why: str
    lines: dict[str, list[str]]

    @property
    def environment(self) -> dict[str, str]:
        """The environment of the measuring process."""
        return dict(line.split("=", 1) for line in self.lines.get("env", []))

    @property
    def nvidia(self) -> GPUReport:
        """What NVIDIA's library reports."""
        return GPUReport(devices=tuple(_device(*pair) for pair in enumerate(self.lines.get("nvidia", []))))

    @property
    def space(self) -> Space:
        """The space of the work directory's file system."""
        total, free, reserved = self.lines.get("statvfs", ["100GiB 50GiB 0B"])[0].split()
        return Space(parse_size(total), parse_size(free), parse_size(reserved))


def parse_expected(text: str) -> Expected:
    """Reads the head of a recorded machine's file."""
    head = re.split(r"^== ", text, maxsplit=1, flags=re.MULTILINE)[0]
    lines: dict[str, list[str]] = {}
    for match in _LINE.finditer("\n".join(line for line in head.splitlines() if not line.startswith("#"))):
        lines.setdefault(match[1], []).append(match[2])
    why = " ".join(line.lstrip("# ") for line in head.splitlines() if line.startswith("#"))
    return Expected(why, lines)


def _device(number: int, line: str) -> GPUDevice:
    uuid, size, address, model = line.split(" ", 3)
    vram = parse_size(size)
    gpu = GPU(uuid=uuid, index=number, vendor=GPUVendor.NVIDIA, model=model, vram=vram, pci_address=address)
    return GPUDevice(gpu=gpu, position=str(number), physical=vram)


def differences(expected: Expected, machine: MachineResources, free_ram: int | None) -> Iterator[str]:
    """A sentence for every value of the machine that is not as expected."""
    measured: dict[str, Any] = {
        "cores": machine.cpu.cores,
        "threads": machine.cpu.threads,
        "physical cores": machine.cpu.physical_cores,
        "clock": machine.cpu.clock_speed,
        "base clock": machine.cpu.base_clock_speed,
        "architecture": machine.cpu.architecture,
        "model": machine.cpu.model,
        "ram": machine.ram.size,
        "free ram": free_ram,
        "disk": machine.disk.size,
        "gpus": {gpu.uuid: gpu.vram for gpu in machine.gpus},
        "limits": machine.limits,
        "problems": machine.problems,
    }
    for key, values in expected.lines.items():
        if key in ("env", "nvidia", "statvfs"):
            continue
        if key in ("limit", "problem"):
            found = measured[f"{key}s"]
            yield from (f"no {key} {value!r} in {found}" for value in values if value not in found)
        elif measured[key] != _value(key, values[0]):
            yield f"{key}: {measured[key]} measured, {values[0]} expected"


def _value(key: str, text: str) -> Any:
    if key in ("limits", "problems"):
        return () if text == "none" else text
    if key == "gpus":
        pairs = [] if text == "none" else [pair.rsplit(" ", 1) for pair in text.split(", ")]
        return {uuid: parse_size(size) for uuid, size in pairs}
    if key == "cores":
        return Cores.of(text)
    if key in ("ram", "free ram", "disk"):
        return parse_size(text)
    return int(text) if key in ("threads", "physical cores", "clock", "base clock") else text
