"""AMD's GPUs: the amdgpu driver's files tell identity and memory, the optional `amdsmi` tells names and versions.

The identity comes from the files in both cases, so that installing `amdsmi` later renames no device.
"""

from __future__ import annotations

import contextlib
import re
from typing import Any

import msgspec

from ....components import GPU, GPUVendor
from ..roots import Roots, parse_amount, parse_hex, read_text
from .devices import GPUDevice, GPUReport
from .pci import PCIDevice, model_name, short_address

__all__ = ["name_amd", "read_amd", "report_amdsmi"]


def read_amd(devices: tuple[PCIDevice, ...], roots: Roots) -> GPUReport:
    """Reads AMD's devices from sysfs; never raises."""
    reports = [_read_device(device, roots) for device in devices if device.vendor is GPUVendor.AMD]
    return sum(reports, GPUReport())


def _read_device(device: PCIDevice, roots: Roots) -> GPUReport:
    size = parse_amount(read_text(device.folder / "mem_info_vram_total"))
    if size is None:
        return GPUReport(problems=(f"AMD GPU at {device.address}: the amdgpu driver does not tell its memory",))
    gpu = GPU(
        uuid=_identity(device.address, read_text(device.folder / "unique_id")),
        vendor=GPUVendor.AMD,
        model=read_text(device.folder / "product_name") or model_name(device, roots),
        vram=size,
        pci_address=device.address,
        driver_version=read_text(roots.sys / "module" / "amdgpu" / "version") or "",
    )
    used = parse_amount(read_text(device.folder / "mem_info_vram_used")) or 0
    return GPUReport(devices=(GPUDevice(gpu=gpu, used=min(used, size)),))


def _identity(address: str, unique_id: str | None) -> str:
    """The device's own number, as ROCm writes it; cards without one are named by their slot."""
    number = parse_hex(unique_id)
    return f"GPU-{number:016x}" if number else f"AMD-{address}"


def report_amdsmi() -> GPUReport:
    """Asks `amdsmi`; as foreign code, only in a process that may hang or crash."""
    try:
        import amdsmi  # type: ignore[import-not-found]  # installed with ROCm, if at all
    except ImportError as error:
        return GPUReport(notes=(f"amdsmi is not used: {error}",))
    try:
        amdsmi.amdsmi_init()
        try:
            return GPUReport(devices=tuple(_ask(amdsmi, handle) for handle in amdsmi.amdsmi_get_processor_handles()))
        finally:
            with contextlib.suppress(amdsmi.AmdSmiException):
                amdsmi.amdsmi_shut_down()
    except amdsmi.AmdSmiException as error:
        return GPUReport.failure(f"amdsmi fails: {error}")


def _ask(amdsmi: Any, handle: Any) -> GPUDevice:
    asic = amdsmi.amdsmi_get_gpu_asic_info(handle)
    driver = amdsmi.amdsmi_get_gpu_driver_info(handle)
    gpu = GPU(
        uuid="",
        vendor=GPUVendor.AMD,
        model=_told(asic.get("market_name")),
        vram=0,
        pci_address=short_address(_told(amdsmi.amdsmi_get_gpu_device_bdf(handle))),
        driver_version=_told(driver.get("driver_version")),
    )
    return GPUDevice(gpu=gpu)


def _told(value: object) -> str:
    text = str(value or "").strip()
    return "" if re.fullmatch(r"(?i)n/?a|none|unknown", text) else text


def name_amd(report: GPUReport, named: GPUReport) -> GPUReport:
    """The devices of `report` with the names and versions that `amdsmi` tells for the same PCI addresses."""
    by_address = {device.gpu.pci_address: device.gpu for device in named.devices}
    devices = tuple(_rename(device, by_address.get(device.gpu.pci_address)) for device in report.devices)
    return GPUReport(
        devices=devices,
        notes=report.notes + named.notes,
        limits=report.limits,
        problems=report.problems + named.problems,
    )


def _rename(device: GPUDevice, named: GPU | None) -> GPUDevice:
    if named is None:
        return device
    gpu = device.gpu
    changed = msgspec.structs.replace(
        gpu, model=named.model or gpu.model, driver_version=named.driver_version or gpu.driver_version
    )
    return GPUDevice(gpu=changed, used=device.used)
