"""NVIDIA's GPUs through its management library (NVML).

The library is foreign code in this process: call `report_nvidia` only in a process that may hang or crash.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from ....components import GPU, GPUVendor
from .devices import GPUDevice, GPUReport
from .pci import short_address

__all__ = ["report_nvidia"]

# More than any machine has; a count beyond it is a broken library's.
_MOST_DEVICES = 256

Answer = TypeVar("Answer")


def report_nvidia() -> GPUReport:
    """Asks NVML for every device; a device that fails is a problem, and the others are still told of."""
    try:
        import pynvml  # type: ignore[import-untyped]  # NVIDIA ships no types
    except ImportError as error:
        return GPUReport.failure(f"NVIDIA GPUs cannot be asked: {error}")
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError_LibraryNotFound:
        return GPUReport(notes=("no NVIDIA driver is installed",))
    except pynvml.NVMLError as error:
        return GPUReport.failure(f"the NVIDIA driver fails: {error}")
    try:
        return _report_devices(pynvml)
    except pynvml.NVMLError as error:
        return GPUReport.failure(f"the NVIDIA driver fails: {error}")
    finally:
        with contextlib.suppress(pynvml.NVMLError):
            pynvml.nvmlShutdown()


def _report_devices(nvml: Any) -> GPUReport:
    versions = _versions(nvml)
    count = nvml.nvmlDeviceGetCount()
    if count == 0:
        return GPUReport(notes=("the NVIDIA driver sees no GPU",))
    devices: list[GPUDevice] = []
    problems: list[str] = []
    for index in range(min(count, _MOST_DEVICES)):
        # Part of a device's answers is no device: it may be lost between two calls.
        try:
            found = tuple(_read_devices(nvml, index, versions))
        except nvml.NVMLError as error:
            problems.append(f"NVIDIA GPU {index}: {error}")
            continue
        devices += found
        if not found:
            problems.append(f"NVIDIA GPU {index} is in MIG mode, but has no MIG device")
    return GPUReport(devices=tuple(devices), problems=tuple(problems))


def _versions(nvml: Any) -> tuple[str, str]:
    """The driver's version and the CUDA version that it offers ("12.4"), "" where it does not tell."""
    cuda = _where_offered(nvml, nvml.nvmlSystemGetCudaDriverVersion_v2, 0)
    return (
        _as_text(_where_offered(nvml, nvml.nvmlSystemGetDriverVersion, "")),
        f"{cuda // 1000}.{cuda % 1000 // 10}" if cuda else "",
    )


def _read_devices(nvml: Any, index: int, versions: tuple[str, str]) -> Iterator[GPUDevice]:
    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    parent = _read_device(nvml, handle, handle, index, versions)
    if not _is_split(nvml, handle):
        yield parent
        return
    slots = _where_offered(nvml, lambda: nvml.nvmlDeviceGetMaxMigDeviceCount(handle), 0)
    position = 0
    for slot in range(min(slots, _MOST_DEVICES)):
        try:
            part = nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, slot)
        except (nvml.NVMLError_NotFound, nvml.NVMLError_InvalidArgument):
            continue
        device = _read_device(nvml, part, handle, index, versions)
        yield GPUDevice(gpu=device.gpu, used=device.used, position=f"{index}:{position}", parent_uuid=parent.gpu.uuid)
        position += 1


def _is_split(nvml: Any, handle: Any) -> bool:
    """Whether a GPU is in MIG mode; a driver that does not let us know is an error, for the GPU may not be whole."""
    try:
        return bool(nvml.nvmlDeviceGetMigMode(handle)[0])
    except (nvml.NVMLError_NotSupported, nvml.NVMLError_FunctionNotFound):
        return False


def _read_device(nvml: Any, handle: Any, board: Any, index: int, versions: tuple[str, str]) -> GPUDevice:
    """One device; what belongs to the whole `board` is asked of it. Raises `NVMLError`."""
    memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    capability = _where_offered(nvml, lambda: nvml.nvmlDeviceGetCudaComputeCapability(board), None)
    pci = _where_offered(nvml, lambda: nvml.nvmlDeviceGetPciInfo(board).busId, "")
    gpu = GPU(
        uuid=_as_text(nvml.nvmlDeviceGetUUID(handle)),
        index=index,
        vendor=GPUVendor.NVIDIA,
        model=_as_text(_where_offered(nvml, lambda: nvml.nvmlDeviceGetName(handle), "")),
        vram=memory.total,
        pci_address=short_address(_as_text(pci)),
        driver_version=versions[0],
        cuda_version=versions[1],
        compute_capability=f"{capability[0]}.{capability[1]}" if capability else "",
    )
    return GPUDevice(gpu=gpu, used=min(memory.used, memory.total), position=str(index))


def _where_offered(nvml: Any, ask: Callable[[], Answer], otherwise: Answer) -> Answer:
    """The answer, or `otherwise` where this driver or this device does not offer the question."""
    try:
        return ask()
    except (nvml.NVMLError_NotSupported, nvml.NVMLError_FunctionNotFound, nvml.NVMLError_NoPermission):
        return otherwise


def _as_text(value: str | bytes) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value
