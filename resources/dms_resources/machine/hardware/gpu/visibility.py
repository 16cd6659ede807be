"""The devices that the environment lets this process use, as each vendor's runtime reads it.

- NVIDIA: `NVIDIA_VISIBLE_DEVICES` lists the devices that a container's runtime was told to show.
  `CUDA_VISIBLE_DEVICES` ends at the first entry that names no device. An empty one shows nothing. Its numbers count the
  fastest device first, unless `CUDA_DEVICE_ORDER` is PCI_BUS_ID.
- AMD: `ROCR_VISIBLE_DEVICES` (numbers or uuids), then `HIP_VISIBLE_DEVICES` (else `CUDA_VISIBLE_DEVICES`) and
  `GPU_DEVICE_ORDINAL`, whose numbers count the devices that the variable before it leaves.
- Intel: see `intel_visibility`.

Sources: NVIDIA's CUDA C++ programming guide (environment variables) and container toolkit documentation; AMD's "GPU
isolation techniques".
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from msgspec.structs import replace

from ....components import GPUVendor
from .devices import GPUDevice
from .intel_visibility import masked_tiles, selected_tiles

__all__ = ["Visible", "visible_devices"]


class Visible(NamedTuple):
    """The devices that remain, and a sentence if some are hidden."""

    devices: tuple[GPUDevice, ...]
    limits: tuple[str, ...] = ()


def visible_devices(devices: Sequence[GPUDevice], environment: Mapping[str, str]) -> Visible:
    """The devices that the variables of every vendor's runtime allow, in the order of `devices`."""
    nvidia, amd, intel = (
        [device for device in devices if device.gpu.vendor is vendor]
        for vendor in (GPUVendor.NVIDIA, GPUVendor.AMD, GPUVendor.INTEL)
    )
    shown = [_nvidia(nvidia, environment), _amd(amd, environment), _intel(intel, environment)]
    left = {device.gpu.uuid: device for part in shown for device in part.devices}
    return Visible(
        tuple(left.get(device.gpu.uuid, device) for device in devices if device.gpu.uuid in left or not _known(device)),
        tuple(limit for part in shown for limit in part.limits),
    )


def _known(device: GPUDevice) -> bool:
    return device.gpu.vendor in (GPUVendor.NVIDIA, GPUVendor.AMD, GPUVendor.INTEL)


def _nvidia(devices: Sequence[GPUDevice], environment: Mapping[str, str]) -> Visible:
    shown = _shown_by_runtime(devices, environment.get("NVIDIA_VISIBLE_DEVICES"))
    limits = _sentences(shown, devices, "NVIDIA_VISIBLE_DEVICES")
    value = environment.get("CUDA_VISIBLE_DEVICES")
    if value is not None and _may_be_reordered(shown, value, environment):
        sentence = "CUDA_VISIBLE_DEVICES has numbers, and CUDA may count the GPUs in another order"
        return Visible((), (*limits, f"0 of {len(shown)} GPUs: {sentence} (set CUDA_DEVICE_ORDER=PCI_BUS_ID)"))
    left = _shown_by_cuda(shown, value)
    return Visible(left, limits + _sentences(left, shown, "CUDA_VISIBLE_DEVICES"))


def _may_be_reordered(devices: Sequence[GPUDevice], value: str, environment: Mapping[str, str]) -> bool:
    """Whether the numbers may name other devices than the driver's: CUDA counts the fastest model first."""
    mixed = len({device.gpu.model for device in devices}) > 1
    numbered = _is_number(_split(value)[0])
    return mixed and numbered and environment.get("CUDA_DEVICE_ORDER") != "PCI_BUS_ID"


def _amd(devices: Sequence[GPUDevice], environment: Mapping[str, str]) -> Visible:
    shown, limits = tuple(devices), tuple[str, ...]()
    hip = "HIP_VISIBLE_DEVICES" if "HIP_VISIBLE_DEVICES" in environment else "CUDA_VISIBLE_DEVICES"
    for name in ("ROCR_VISIBLE_DEVICES", hip, "GPU_DEVICE_ORDINAL"):
        value = environment.get(name)
        if value is None:
            continue
        left = _shown_by_number(shown, value)
        limits += _sentences(left, shown, name)
        shown = left
    return Visible(shown, limits)


def _shown_by_number(devices: Sequence[GPUDevice], value: str) -> tuple[GPUDevice, ...]:
    chosen: list[GPUDevice] = []
    for name in _split(value):
        if _is_number(name):
            found = list(devices[int(name) : int(name) + 1])
        else:
            found = [d for d in devices if name and d.gpu.uuid.casefold() == name.casefold()]
        if not found:
            break
        chosen += found
    return _in_order(devices, chosen)


def _intel(devices: Sequence[GPUDevice], environment: Mapping[str, str]) -> Visible:
    parts = [device.parts for device in devices]
    mask, selector = masked_tiles(parts, environment), selected_tiles(parts, environment)
    shown, limits = tuple(devices), tuple[str, ...]()
    left = frozenset((number, tile) for number, count in enumerate(parts) for tile in range(count))
    for name, tiles in (("ZE_AFFINITY_MASK", mask), ("ONEAPI_DEVICE_SELECTOR", selector)):
        if tiles is None:
            continue
        before, left = left, left & tiles
        shown = _with_tiles(devices, left)
        count = len({number for number, _ in before})
        partly = (f"{len(shown)} of {count} GPUs, not all of their tiles: {name}",) if left < before else ()
        limits += (f"{len(shown)} of {count} GPUs: {name}",) if len(shown) < count else partly
    return Visible(shown, limits)


def _with_tiles(devices: Sequence[GPUDevice], tiles: frozenset[tuple[int, int]]) -> tuple[GPUDevice, ...]:
    """The devices with these tiles, and with their share of the memory."""
    counts = Counter(number for number, _ in tiles)
    return tuple(
        replace(device, gpu=replace(device.gpu, vram=device.gpu.vram * counts[number] // device.parts))
        for number, device in enumerate(devices)
        if counts[number]
    )


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) < 9


def _sentences(left: Sequence[GPUDevice], devices: Sequence[GPUDevice], name: str) -> tuple[str, ...]:
    return (f"{len(left)} of {len(devices)} GPUs: {name}",) if len(left) < len(devices) else ()


def _shown_by_runtime(devices: Sequence[GPUDevice], value: str | None) -> tuple[GPUDevice, ...]:
    # "nvidia.com/gpu=0" is the name of device 0 in the Container Device Interface (CDI).
    names = [name.rpartition("=")[2] if "/" in name else name for name in _split(value or "all")]
    # A runtime that uses CDI, or a list of files, writes these, and shows what the container was given.
    if "all" in names or names[0] == "void" or names[0].startswith("/"):
        return tuple(devices)
    if names[0] == "none":
        return ()
    # If the runtime has hidden some devices, the others have new numbers: "3" may then be number 0.
    by_number = [name for name in names if name.replace(":", "").isdecimal()]
    if len(by_number) == len(names) and len(names) >= len({_board(device) for device in devices}):
        return tuple(devices)
    return _in_order(devices, [device for name in names for device in _named(devices, name)])


def _shown_by_cuda(devices: Sequence[GPUDevice], value: str | None) -> tuple[GPUDevice, ...]:
    if value is None:
        return tuple(devices)
    chosen: list[GPUDevice] = []
    for name in _split(value):
        found = _named(devices, name)
        if not found:
            break
        chosen += found
    return _in_order(devices, chosen)


def _split(value: str) -> list[str]:
    return [name.strip() for name in value.split(",")]


def _board(device: GPUDevice) -> str:
    return device.parent_uuid or device.gpu.uuid


def _in_order(devices: Sequence[GPUDevice], chosen: Sequence[GPUDevice]) -> tuple[GPUDevice, ...]:
    return tuple(device for device in devices if device in chosen)


def _named(devices: Sequence[GPUDevice], name: str) -> list[GPUDevice]:
    """The devices that a number, a uuid or the beginning of a uuid names. A GPU in MIG mode stands for its
    MIG devices.
    """
    if name.replace(":", "", 1).isdecimal():
        return [d for d in devices if name in (d.position, d.position.partition(":")[0])]
    if not name.startswith(("GPU-", "MIG-")):
        return []
    own = [device for device in devices if device.gpu.uuid.startswith(name)]
    if own:
        return own if len(own) == 1 else [device for device in own if device.gpu.uuid == name]
    boards = {device.parent_uuid for device in devices if device.parent_uuid.startswith(name)}
    return [device for device in devices if device.parent_uuid in boards] if len(boards) == 1 else []
