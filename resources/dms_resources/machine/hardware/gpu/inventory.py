"""All GPUs of a machine in one list: NVIDIA's, then AMD's, then Intel's."""

from __future__ import annotations

import importlib.util
import re
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Final, TypeAlias

from msgspec.structs import replace

from ....components import GPUVendor
from ..ram import parse_meminfo
from ..roots import Roots, read_text
from .amd import name_amd, read_amd
from .devices import GPUDevice, GPUReport
from .intel import read_intel
from .pci import PCIDevice, read_display_devices
from .process import ask_process
from .visibility import visible_devices

__all__ = ["Ask", "merge_reports", "number_devices", "read_gpus"]

# Systems on a chip whose GPU has no memory of its own.
_SHARING_MEMORY: Final = re.compile(r"\b(GB10|Tegra|Xavier|Orin|Thor)\b|_GB10\b", re.IGNORECASE)
_ROUNDING: Final = 1 << 20

Ask: TypeAlias = Callable[[str], GPUReport]
"""Queries the library of a vendor ("nvidia", "amd")."""


def read_gpus(roots: Roots, environment: Mapping[str, str], ask: Ask | None = None) -> GPUReport:
    """Every GPU that this process may use, with its used VRAM. Never raises.

    Only the vendor libraries of the running machine can be queried. For other roots pass `ask`; without it, only sysfs
    is read.
    """
    if ask is None and roots.is_host:
        ask = ask_process
    return merge_reports(ask("nvidia") if ask else GPUReport(), roots, environment, ask)


def merge_reports(nvidia: GPUReport, roots: Roots, environment: Mapping[str, str], ask: Ask | None) -> GPUReport:
    """The report of NVIDIA with what the files report, and AMD's library if it is installed."""
    every = read_display_devices(roots)
    # The parts of a divided card are not counted in addition to the card.
    found = tuple(device for device in every if not device.virtual)
    amd = read_amd(found, roots)
    if amd.devices and ask is not None and importlib.util.find_spec("amdsmi") is not None:
        amd = name_amd(amd, ask("amd"))
    ours = _without_shared_memory(nvidia, roots)
    report = ours + _unseen(nvidia, found, environment) + amd + read_intel(found, roots) + _unknown(found)
    report = number_devices(_with_identity(_undivided(report, found)))
    visible = visible_devices(report.devices, environment)
    return replace(report, devices=visible.devices, limits=report.limits + visible.limits)


def _without_shared_memory(nvidia: GPUReport, roots: Roots) -> GPUReport:
    """NVIDIA's devices without those that use the machine's main memory, which is offered as RAM."""
    total = parse_meminfo(read_text(roots.proc / "meminfo") or "").get("MemTotal", 0)
    shared = [
        device
        for device in nvidia.devices
        if _SHARING_MEMORY.search(device.gpu.model) or (total and abs(device.physical - total) < _ROUNDING)
    ]
    limits = tuple(
        f"NVIDIA GPU {device.gpu.index}: {device.gpu.model or 'it'} shares main memory: it is not offered"
        for device in shared
    )
    left = tuple(device for device in nvidia.devices if device not in shared)
    return replace(nvidia, devices=left, limits=nvidia.limits + limits)


def _undivided(report: GPUReport, found: tuple[PCIDevice, ...]) -> GPUReport:
    """The report without the cards that are divided into virtual functions, which may belong to virtual machines."""
    divided = {device.address: device.virtual_functions for device in found if device.virtual_functions}
    hit = {device.gpu.pci_address for device in report.devices} & divided.keys()
    limits = tuple(
        f"GPU at {address} is divided into {divided[address]} virtual functions: it is not offered"
        for address in sorted(hit)
    )
    left = tuple(device for device in report.devices if device.gpu.pci_address not in hit)
    return replace(report, devices=left, limits=report.limits + limits)


def _with_identity(report: GPUReport) -> GPUReport:
    """The report without devices that have no uuid or the uuid of another device, because no lease could name them."""
    counts = Counter(device.gpu.uuid for device in report.devices)
    unnamed = [device for device in report.devices if not device.gpu.uuid.strip()]
    twice = sorted(uuid for uuid, count in counts.items() if count > 1 and uuid.strip())
    problems = tuple(
        f"GPU {device.position or device.gpu.pci_address} has no uuid: it is not offered" for device in unnamed
    )
    problems += tuple(f"{counts[uuid]} GPUs have the uuid {uuid}: none of them is offered" for uuid in twice)
    left = tuple(device for device in report.devices if device.gpu.uuid.strip() and counts[device.gpu.uuid] == 1)
    empty = [device for device in left if not device.gpu.vram]
    problems += tuple(f"GPU {device.gpu.uuid}: its driver shows no memory: it is not offered" for device in empty)
    left = tuple(device for device in left if device.gpu.vram)
    return replace(report, devices=left, problems=report.problems + problems)


def number_devices(report: GPUReport) -> GPUReport:
    """Number the devices of all vendors together, so that each number means one device."""
    devices = tuple(_numbered(device, index) for index, device in enumerate(report.devices))
    return replace(report, devices=devices)


def _numbered(device: GPUDevice, index: int) -> GPUDevice:
    return replace(device, gpu=replace(device.gpu, index=index))


def _unseen(nvidia: GPUReport, found: tuple[PCIDevice, ...], environment: Mapping[str, str]) -> GPUReport:
    """A report on NVIDIA's cards on the bus that its library neither lists nor reports a problem with."""
    listed = {device.gpu.pci_address for device in nvidia.devices} | set(nvidia.listed)
    # A device without an address may be any of them.
    if nvidia.failed or "" in listed:
        return GPUReport()
    cards = [device for device in found if device.vendor is GPUVendor.NVIDIA and device.address not in listed]
    sentences = tuple(f"NVIDIA GPU at {card.address}: {_why_unseen(card)}" for card in cards)
    # The runtime of a container hides devices on purpose.
    if listed and environment.get("NVIDIA_VISIBLE_DEVICES"):
        return GPUReport(limits=sentences)
    return GPUReport(problems=sentences)


def _unknown(found: tuple[PCIDevice, ...]) -> GPUReport:
    """A sentence on each accelerator whose vendor this program does not know."""
    names = [f"{device.address} ({device.vendor_id:04x}:{device.device_id:04x})" for device in found if device.unknown]
    reason = "is of a vendor that is not known here: it is not offered"
    return GPUReport(limits=tuple(f"accelerator at {name} {reason}" for name in names))


def _why_unseen(card: PCIDevice) -> str:
    if card.driver in ("", "nvidia"):
        return "no driver shows it"
    return f"no driver shows it ({card.driver} has it)"
