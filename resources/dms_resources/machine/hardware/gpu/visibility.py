"""Which NVIDIA devices the environment lets this process use.

`CUDA_VISIBLE_DEVICES` is obeyed as CUDA does: the list ends at the first entry that names no device, and an empty one
shows nothing. `NVIDIA_VISIBLE_DEVICES` is what a container's runtime was asked to show. Sources: NVIDIA's CUDA C++
programming guide (environment variables) and the container toolkit's documentation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from .devices import GPUDevice

__all__ = ["Visible", "visible_devices"]


class Visible(NamedTuple):
    """The devices left, and a sentence where that is not all of them."""

    devices: tuple[GPUDevice, ...]
    limits: tuple[str, ...] = ()


def visible_devices(devices: Sequence[GPUDevice], environment: Mapping[str, str]) -> Visible:
    """The NVIDIA devices that both variables allow, in the driver's order."""
    shown = _shown_by_runtime(devices, environment.get("NVIDIA_VISIBLE_DEVICES"))
    limits = _sentences(shown, devices, "NVIDIA_VISIBLE_DEVICES")
    left = _shown_by_cuda(shown, environment.get("CUDA_VISIBLE_DEVICES"))
    return Visible(left, limits + _sentences(left, shown, "CUDA_VISIBLE_DEVICES"))


def _sentences(left: Sequence[GPUDevice], devices: Sequence[GPUDevice], name: str) -> tuple[str, ...]:
    return (f"{len(left)} of {len(devices)} GPUs: {name}",) if len(left) < len(devices) else ()


def _shown_by_runtime(devices: Sequence[GPUDevice], value: str | None) -> tuple[GPUDevice, ...]:
    names = _split(value or "all")
    if "all" in names:
        return tuple(devices)
    if names[0] in ("none", "void"):
        return ()
    # Where the runtime has hidden the others, those that are left have new numbers: "3" is then number 0.
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
    """The devices of a number, a uuid or the beginning of one; a GPU in MIG mode stands for all its MIG devices."""
    if name.replace(":", "", 1).isdecimal():
        return [d for d in devices if name in (d.position, d.position.partition(":")[0])]
    if not name.startswith(("GPU-", "MIG-")):
        return []
    own = [device for device in devices if device.gpu.uuid.startswith(name)]
    if own:
        return own if len(own) == 1 else [device for device in own if device.gpu.uuid == name]
    boards = {device.parent_uuid for device in devices if device.parent_uuid.startswith(name)}
    return [device for device in devices if device.parent_uuid in boards] if len(boards) == 1 else []
