"""Display devices on the PCI bus, with or without a driver."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final, NamedTuple

from ....components import GPUVendor
from ..roots import HOST, Roots, link_name, list_names, parse_amount, parse_hex, read_text

__all__ = ["VENDORS", "PCIDevice", "model_name", "parse_models", "read_display_devices", "short_address"]

VENDORS: Final = {0x10DE: GPUVendor.NVIDIA, 0x1002: GPUVendor.AMD, 0x8086: GPUVendor.INTEL}
_DISPLAY_CLASS: Final = 0x03
# A "processing accelerator", as AMD's Instinct cards call themselves.
_ACCELERATOR_CLASS: Final = 0x12
_3D_CLASS: Final = 0x0302
_LONG_ADDRESS: Final = re.compile(r"0000([0-9a-f]{4}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7])")
_NAMES: Final = (Path("/usr/share/misc/pci.ids"), Path("/usr/share/hwdata/pci.ids"))


class PCIDevice(NamedTuple):
    """One display device: its address ("0000:17:00.0"), the ids of its vendor and of its kind, and its folder.

    `driver` is the kernel driver that uses it ("" for none). `virtual_functions` is the number of devices into which it
    is divided now. `virtual` is true if it is itself such a part of another device of this machine.
    """

    address: str
    vendor_id: int
    device_id: int
    folder: Path
    driver: str = ""
    virtual_functions: int = 0
    virtual: bool = False

    @property
    def unknown(self) -> bool:
        """Whether its vendor's devices cannot be read here."""
        return self.vendor is GPUVendor.UNKNOWN

    @property
    def vendor(self) -> GPUVendor:
        """The manufacturer, by the PCI vendor id."""
        return VENDORS.get(self.vendor_id, GPUVendor.UNKNOWN)


def short_address(address: str) -> str:
    """A PCI address in lower case with the usual four digits of domain."""
    folded = address.strip().casefold()
    found = _LONG_ADDRESS.fullmatch(folded)
    return found[1] if found else folded


def read_display_devices(roots: Roots) -> tuple[PCIDevice, ...]:
    """The display devices of the three vendors on the PCI bus, and accelerators of all vendors."""
    bus = roots.sys / "bus" / "pci" / "devices"
    found = (_read_device(bus / name) for name in list_names(bus))
    return tuple(device for device in found if device is not None)


def _read_device(folder: Path) -> PCIDevice | None:
    kind, vendor, device = (parse_hex(read_text(folder / name)) for name in ("class", "vendor", "device"))
    if kind is None or vendor is None or device is None:
        return None
    # Of vendors that are not known, a plain display (of a hypervisor, or of a server's console) computes nothing.
    computes = kind >> 16 == _ACCELERATOR_CLASS or kind >> 8 == _3D_CLASS
    if not computes and (kind >> 16 != _DISPLAY_CLASS or vendor not in VENDORS):
        return None
    return PCIDevice(
        short_address(folder.name),
        vendor,
        device,
        folder,
        driver=link_name(folder / "driver"),
        virtual_functions=parse_amount(read_text(folder / "sriov_numvfs")) or 0,
        virtual=(folder / "physfn").exists(),
    )


def model_name(device: PCIDevice, roots: Roots) -> str:
    """The name of a device in the PCI name list of this machine, otherwise its ids. Never empty."""
    text = next(filter(None, map(read_text, _NAMES)), "") if roots == HOST else ""
    named = parse_models(text, device.vendor_id).get(device.device_id)
    return named or f"{device.vendor.value} {device.vendor_id:04x}:{device.device_id:04x}"


def parse_models(text: str, vendor_id: int) -> dict[int, str]:
    """The models of one vendor in a `pci.ids` list, by device id."""
    found = re.search(rf"^{vendor_id:04x}  .*\n((?:(?:\t|#).*\n)*)", text + "\n", re.MULTILINE)
    lines = re.findall(r"^\t([0-9a-f]{4})  (.+)$", found[1], re.MULTILINE) if found else []
    return {int(number, 16): name.strip() for number, name in lines}
