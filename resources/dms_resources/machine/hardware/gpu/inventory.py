"""All GPUs of a machine in one list: NVIDIA's, then AMD's, then Intel's."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from typing import TypeAlias

import msgspec

from ....components import GPUVendor
from ..roots import Roots
from .amd import name_amd, read_amd
from .devices import GPUDevice, GPUReport
from .intel import read_intel
from .pci import PCIDevice, read_display_devices
from .process import ask_process
from .visibility import visible_devices

__all__ = ["Ask", "merge_reports", "number_devices", "read_gpus"]

Ask: TypeAlias = Callable[[str], GPUReport]
"""Asks the library of a vendor ("nvidia", "amd")."""


def read_gpus(roots: Roots, environment: Mapping[str, str], ask: Ask | None = None) -> GPUReport:
    """Every GPU that this process may use, with the VRAM used on it; never raises.

    Only the running machine's vendor libraries can be asked: for other roots give `ask`, or there is only sysfs.
    """
    if ask is None and roots.is_host:
        ask = ask_process
    return merge_reports(ask("nvidia") if ask else GPUReport(), roots, environment, ask)


def merge_reports(nvidia: GPUReport, roots: Roots, environment: Mapping[str, str], ask: Ask | None) -> GPUReport:
    """Adds to NVIDIA's report what the files, and AMD's library where it is installed, tell."""
    found = read_display_devices(roots)
    amd = read_amd(found, roots)
    if amd.devices and ask is not None and importlib.util.find_spec("amdsmi") is not None:
        amd = name_amd(amd, ask("amd"))
    report = number_devices(nvidia + _unseen(nvidia, found) + amd + read_intel(found, roots))
    ours = [device for device in report.devices if device.gpu.vendor is GPUVendor.NVIDIA]
    visible = visible_devices(ours, environment)
    others = tuple(device for device in report.devices if device.gpu.vendor is not GPUVendor.NVIDIA)
    return msgspec.structs.replace(report, devices=visible.devices + others, limits=report.limits + visible.limits)


def number_devices(report: GPUReport) -> GPUReport:
    """Numbers the devices through all vendors, so that a number means one device."""
    devices = tuple(_numbered(device, index) for index, device in enumerate(report.devices))
    return msgspec.structs.replace(report, devices=devices)


def _numbered(device: GPUDevice, index: int) -> GPUDevice:
    return msgspec.structs.replace(device, gpu=msgspec.structs.replace(device.gpu, index=index))


def _unseen(nvidia: GPUReport, found: tuple[PCIDevice, ...]) -> GPUReport:
    """NVIDIA's cards on the bus when its library shows none and does not say why."""
    if nvidia.devices or nvidia.problems:
        return GPUReport()
    cards = [device.address for device in found if device.vendor is GPUVendor.NVIDIA]
    return GPUReport(problems=tuple(f"NVIDIA GPU at {address}: no driver shows it" for address in cards))
