"""Intel's GPUs from sysfs. GPUs that share the machine's main memory have no VRAM to offer."""

from __future__ import annotations

from typing import Final

from ....components import GPU, GPUVendor
from ..roots import Roots, bounded, list_names, parse_amount, parse_hex, read_text
from .devices import GPUDevice, GPUReport
from .nodes import missing_node
from .pci import PCIDevice, model_name

__all__ = ["read_intel"]


# None where the machine does not show it.
_DRIVERS: Final = frozenset({"", "i915", "xe"})


def read_intel(devices: tuple[PCIDevice, ...], roots: Roots) -> GPUReport:
    """Read Intel's devices from sysfs. Never raises."""
    reports = [_read_device(device, roots) for device in devices if device.vendor is GPUVendor.INTEL]
    return sum(reports, GPUReport())


def _read_device(device: PCIDevice, roots: Roots) -> GPUReport:
    if device.driver not in _DRIVERS:
        return GPUReport(problems=(f"Intel GPU at {device.address} is not offered: {device.driver} has it",))
    size, tiles = _local_memory(device)
    model = model_name(device, roots)
    if not size:
        return GPUReport(limits=(f"{model} at {device.address} has no memory of its own: it is not offered",))
    missing = missing_node(device, roots)
    if missing is not None:
        sentence = f"Intel GPU at {device.address} is not offered: this process cannot open {missing}"
        return GPUReport(limits=(sentence,))
    gpu = GPU(
        # The drivers report no serial number. Because the kind is part of the name, another kind of card in the slot is
        # another device.
        uuid=f"Intel-{device.address}-{device.device_id:04x}",
        vendor=GPUVendor.INTEL,
        model=model,
        vram=size,
        pci_address=device.address,
    )
    return GPUReport(devices=(GPUDevice(gpu=gpu, physical=size, parts=tiles),))


def _local_memory(device: PCIDevice) -> tuple[int, int]:
    """The bytes of memory on the card, and its tiles. The xe driver has a size for each tile, i915 one for the card."""
    tiles = [name for name in list_names(device.folder) if name.startswith("tile")]
    sizes = [_parse_size(read_text(device.folder / tile / "physical_vram_size_bytes")) for tile in tiles]
    if any(sizes):
        return bounded(sum(sizes)), len(sizes)
    cards = [name for name in list_names(device.folder / "drm") if name.startswith("card")]
    size = max((_parse_size(read_text(device.folder / "drm" / c / "lmem_total_bytes")) for c in cards), default=0)
    return size, 1


def _parse_size(text: str | None) -> int:
    if text is not None and text.casefold().startswith("0x"):
        return parse_hex(text) or 0
    return parse_amount(text) or 0
