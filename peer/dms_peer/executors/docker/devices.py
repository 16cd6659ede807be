"""How the GPUs of a lease are given to a container, and whether it has those and no other.

NVIDIA's are named by their uuid: to Docker in a request for devices, to Podman (which ignores such a request) as a CDI
device. Those of AMD and Intel are device nodes: the one render node of the card, found by its PCI address; AMD's also
need `/dev/kfd`. A folder of nodes is never given.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from dms_resources.components import GPU, GPUVendor
from dms_resources.machine.hardware.gpu.nodes import render_nodes
from dms_resources.machine.hardware.roots import HOST, Roots, list_names, read_text

from ..executor import ExecutorError

__all__ = ["DevicePlan", "plan_devices", "visible_gpu_nodes", "wrong_devices"]

_CDI_FOLDERS: Final = (Path("/etc/cdi"), Path("/var/run/cdi"))
_CDI_KIND: Final = "nvidia.com/gpu"
_KFD: Final = "kfd"


class DevicePlan(NamedTuple):
    """What the body of a container says of its GPUs, and the device nodes that it must have then."""

    requests: tuple[Mapping[str, Any], ...] = ()
    devices: tuple[Mapping[str, str], ...] = ()
    nodes: tuple[str, ...] = ()


def plan_devices(
    gpus: tuple[GPU, ...], podman: bool, roots: Roots = HOST, cdi: tuple[Path, ...] = _CDI_FOLDERS
) -> DevicePlan:
    """How these GPUs are given. Blocks. Raises ExecutorError `failed` where one cannot be given by itself."""
    nvidia = tuple(gpu for gpu in gpus if gpu.vendor is GPUVendor.NVIDIA)
    others = tuple(gpu for gpu in gpus if gpu.vendor is not GPUVendor.NVIDIA)
    requests: tuple[Mapping[str, Any], ...] = ()
    devices: list[Mapping[str, str]] = []
    nodes = [f"nvidia{minor}" for gpu in nvidia if (minor := _nvidia_minor(gpu, roots)) is not None]
    if nvidia and podman:
        for gpu in nvidia:
            if not any(gpu.uuid in (read_text(folder / name) or "") for folder in cdi for name in list_names(folder)):
                raise ExecutorError(
                    f"no CDI specification names GPU {gpu.uuid}",
                    code="failed",
                    hint="nvidia-ctk cdi generate --device-name-strategy=uuid --output=/etc/cdi/nvidia.yaml",
                )
            name = f"{_CDI_KIND}={gpu.uuid}"
            devices.append({"PathOnHost": name, "PathInContainer": name, "CgroupPermissions": "rw"})
    elif nvidia:
        requests = (
            {
                "Driver": "nvidia",
                "DeviceIDs": [gpu.uuid for gpu in nvidia],
                "Capabilities": [["gpu", "compute", "utility"]],
            },
        )
    given = [node for gpu in others for node in _nodes(gpu, roots)]
    for node in dict.fromkeys(given):
        devices.append(
            {"PathOnHost": str(_dev(roots) / node), "PathInContainer": f"/dev/{node}", "CgroupPermissions": "rw"}
        )
    return DevicePlan(requests, tuple(devices), tuple(dict.fromkeys([*nodes, *given])))


def _nodes(gpu: GPU, roots: Roots) -> list[str]:
    found = render_nodes(roots.sys / "bus" / "pci" / "devices" / gpu.pci_address) if gpu.pci_address else []
    if not found:
        raise ExecutorError(f"GPU {gpu.uuid} has no device node of its own", code="failed")
    return [*([_KFD] if gpu.vendor is GPUVendor.AMD else []), f"dri/{found[0]}"]


def _nvidia_minor(gpu: GPU, roots: Roots) -> int | None:
    """The number of the node, which is neither the index nor NVML's order."""
    text = read_text(roots.proc / "driver" / "nvidia" / "gpus" / gpu.pci_address / "information") or ""
    for line in text.splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "Device Minor" and value.strip().isdecimal():
            return int(value)
    return None


def visible_gpu_nodes(process: int, roots: Roots = HOST) -> dict[str, int]:
    """The GPU nodes that a process sees below /dev, and their device numbers. Blocks. Raises OSError."""
    root = roots.proc / str(process) / "root" / "dev"
    found: dict[str, int] = {}
    for folder in ("", "dri"):
        try:
            names = os.listdir(root / folder)
        except FileNotFoundError:
            continue
        for name in names:
            node = f"{folder}/{name}".lstrip("/")
            if _is_gpu_node(node) and stat.S_ISCHR((status := os.stat(root / node)).st_mode):
                found[node] = status.st_rdev
    return found


def _is_gpu_node(node: str) -> bool:
    number = node.removeprefix("nvidia")
    return node == _KFD or node.startswith("dri/") or (number != node and number.isdecimal())


def wrong_devices(process: int, plan: DevicePlan, roots: Roots = HOST) -> str:
    """What is wrong about the GPUs that a process sees, "" for nothing. Blocks. Raises OSError."""
    seen = visible_gpu_nodes(process, roots)
    if missing := sorted({*plan.nodes} - {*seen}):
        return f"the engine did not give /dev/{', /dev/'.join(missing)}"
    if surplus := sorted({*seen} - {*plan.nodes}):
        return f"the engine gave /dev/{', /dev/'.join(surplus)}, which the lease does not have"
    for node in plan.nodes:
        with_number = _dev(roots) / node
        if with_number.exists() and os.stat(with_number).st_rdev != seen[node]:
            return f"/dev/{node} in the container is another device"
    return ""


def _dev(roots: Roots) -> Path:
    return roots.dev or Path("/dev")
