"""AMD's GPUs: identity and memory from the amdgpu driver's files, names and versions from the optional `amdsmi`.

The identity always comes from the files, so that no device changes its identity if `amdsmi` is installed later.
"""

from __future__ import annotations

import contextlib
import re
from typing import Any, Final

from msgspec.structs import replace

from ....components import GPU, GPUVendor
from ..roots import Roots, bounded, parse_amount, parse_hex, read_text
from .devices import GPUDevice, GPUReport
from .kfd import read_nodes
from .nodes import missing_node
from .pci import PCIDevice, model_name, short_address

__all__ = ["name_amd", "read_amd", "report_amdsmi"]


# Accelerators whose memory is the machine's main memory, by PCI device id.
_SHARING_MEMORY: Final = {0x74A0: "AMD Instinct MI300A"}
_BAD_PAGE: Final = re.compile(r"^0x[0-9a-f]{1,16} : (0x[0-9a-f]{1,16}) : [RPF]$", re.MULTILINE)


def read_amd(devices: tuple[PCIDevice, ...], roots: Roots) -> GPUReport:
    """Read AMD's devices from sysfs. Never raises."""
    reports = [_read_card(device, roots) for device in devices if device.vendor is GPUVendor.AMD]
    return sum(reports, GPUReport())


def _read_card(device: PCIDevice, roots: Roots) -> GPUReport:
    name = f"AMD GPU at {device.address}"
    if device.device_id in _SHARING_MEMORY:
        return GPUReport(limits=(f"{name}: {_SHARING_MEMORY[device.device_id]} shares main memory: it is not offered",))
    size = parse_amount(read_text(device.folder / "mem_info_vram_total"))
    if size is None:
        reason = f"{device.driver} has it" if device.driver not in ("", "amdgpu") else "the amdgpu driver has no size"
        return GPUReport(problems=(f"{name} is not offered: {reason}",))
    gpu = GPU(
        uuid=_identity(device, read_text(device.folder / "unique_id")),
        vendor=GPUVendor.AMD,
        model=read_text(device.folder / "product_name") or model_name(device, roots),
        vram=max(0, size - _retired(read_text(device.folder / "ras" / "gpu_vram_bad_pages") or "")),
        pci_address=device.address,
        driver_version=read_text(roots.sys / "module" / "amdgpu" / "version") or "",
    )
    mode = (read_text(device.folder / "current_compute_partition") or "").upper()
    if mode in ("", "SPX", "N/A", "UNKNOWN"):
        missing = missing_node(device, roots)
        if missing is not None:
            return GPUReport(limits=(f"{name} is not offered: this process cannot open {missing}",))
        used = parse_amount(read_text(device.folder / "mem_info_vram_used")) or 0
        return GPUReport(devices=(GPUDevice(gpu=gpu, used=min(used, gpu.vram), physical=size),))
    return _read_parts(device, gpu, mode, roots)


def _read_parts(device: PCIDevice, card: GPU, mode: str, roots: Roots) -> GPUReport:
    """The devices into which a card is divided. Together they have at most what the card has."""
    name = f"AMD GPU at {device.address}"
    nodes = [node for node in read_nodes(roots, device.address) if node.size]
    if not nodes:
        problem = f"{name} is divided ({mode}), but its parts cannot be read: it is not offered"
        return GPUReport(problems=(problem,))
    own = {node.unique_id for node in nodes if node.unique_id}
    distinct = len(own) == len(nodes)
    share = card.vram // len(nodes)
    fits = sum(node.size for node in nodes) <= card.vram
    devices: list[GPUDevice] = []
    limits = [f"{name} is divided ({mode}) into {len(nodes)} devices"]
    for number, node in enumerate(nodes):
        missing = missing_node(device, roots, node.render_node or None)
        if missing is not None:
            limits.append(f"{name}, part {number}, is not offered: this process cannot open {missing}")
            continue
        uuid = f"GPU-{node.unique_id:016x}" if distinct else f"{card.uuid}:{number}"
        # In some modes every part reports the memory that it shares with the others.
        size = node.size if fits else min(node.size, share)
        devices.append(GPUDevice(gpu=replace(card, uuid=uuid, vram=size), parent_uuid=card.uuid, physical=node.size))
    return GPUReport(devices=tuple(devices), limits=tuple(limits))


def _identity(device: PCIDevice, unique_id: str | None) -> str:
    """The card's own number, as ROCm writes it. Cards without a number are named by their slot and kind.

    Because the kind is part of the name, another kind of card in the same slot is another device.
    """
    number = parse_hex(unique_id)
    return f"GPU-{number:016x}" if number else f"AMD-{device.address}-{device.device_id:04x}"


def _retired(text: str) -> int:
    """The bytes of pages that the driver has retired, or will retire, because of memory errors."""
    return bounded(sum(int(match[1], 16) for match in _BAD_PAGE.finditer(text)))


def report_amdsmi() -> GPUReport:
    """Query `amdsmi`. It is foreign code: call this only in a process that may hang or crash."""
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
    """The devices of `report`, with the names and versions that `amdsmi` reports for the same PCI addresses."""
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
    changed = replace(gpu, model=named.model or gpu.model, driver_version=named.driver_version or gpu.driver_version)
    return replace(device, gpu=changed)
