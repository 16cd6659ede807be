"""Intel's GPUs from sysfs. Those that share the machine's main memory have no VRAM to offer."""

from __future__ import annotations

from ....components import GPU, GPUVendor
from ..roots import Roots, bounded, list_names, parse_amount, parse_hex, read_text
from .devices import GPUDevice, GPUReport
from .pci import PCIDevice, model_name

__all__ = ["read_intel"]


def read_intel(devices: tuple[PCIDevice, ...], roots: Roots) -> GPUReport:
    """Reads Intel's devices from sysfs; never raises."""
    reports = [_read_device(device, roots) for device in devices if device.vendor is GPUVendor.INTEL]
    return sum(reports, GPUReport())


def _read_device(device: PCIDevice, roots: Roots) -> GPUReport:
    size = _local_memory(device)
    model = model_name(device, roots)
    if not size:
        return GPUReport(limits=(f"{model} at {device.address} has no memory of its own: it is not offered",))
    gpu = GPU(
        uuid=f"Intel-{device.address}", vendor=GPUVendor.INTEL, model=model, vram=size, pci_address=device.address
    )
    return GPUReport(devices=(GPUDevice(gpu=gpu),))


def _local_memory(device: PCIDevice) -> int:
    """The bytes of memory on the card: the xe driver tells them for each tile, i915 for the card."""
    tiles = [name for name in list_names(device.folder) if name.startswith("tile")]
    sizes = [_parse_size(read_text(device.folder / tile / "physical_vram_size_bytes")) for tile in tiles]
    if any(sizes):
        return bounded(sum(sizes))
    cards = [name for name in list_names(device.folder / "drm") if name.startswith("card")]
    return max((_parse_size(read_text(device.folder / "drm" / c / "lmem_total_bytes")) for c in cards), default=0)


def _parse_size(text: str | None) -> int:
    if text is not None and text.casefold().startswith("0x"):
        return parse_hex(text) or 0
    return parse_amount(text) or 0
