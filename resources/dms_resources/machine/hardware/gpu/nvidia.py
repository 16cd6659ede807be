"""NVIDIA's GPUs through its management library (NVML).

The library is foreign code in this process: call `report_nvidia` only in a process that may hang or crash.
"""

from __future__ import annotations

import contextlib
from typing import Any, NamedTuple

from msgspec.structs import replace

from ....components import GPU, GPUVendor
from .devices import GPUDevice, GPUReport
from .nvidia_memory import DeviceMemory, memory_warnings, optional, read_memory
from .pci import short_address

__all__ = ["report_nvidia"]

# More than any machine has. A library that reports more is broken.
_MOST_DEVICES = 256

# nvmlComputeMode_t
_PROHIBITED = 2
_ONE_AT_A_TIME = frozenset({1, 3})
# nvmlGpuVirtualizationMode_t: a host of vGPUs, or of shared graphics. No program of the host can compute on it.
_FOR_VIRTUAL_MACHINES = frozenset({3, 4})


class _Versions(NamedTuple):
    """The driver's version, and the CUDA version that it offers ("12.4"); "" if the driver does not report it."""

    driver: str
    cuda: str


def report_nvidia() -> GPUReport:
    """Query NVML for every device. A device that fails is reported as a problem; the others are still reported."""
    try:
        import pynvml  # type: ignore[import-untyped]  # NVIDIA ships no types
    except ImportError as error:
        return GPUReport.failure(f"NVIDIA GPUs cannot be queried: {error}")
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
    count = nvml.nvmlDeviceGetCount()
    if count == 0:
        return GPUReport(notes=("the NVIDIA driver sees no GPU",))
    cuda = optional(nvml.nvmlSystemGetCudaDriverVersion_v2, 0)
    versions = _Versions(
        driver=_as_text(optional(nvml.nvmlSystemGetDriverVersion, "")),
        cuda=f"{cuda // 1000}.{cuda % 1000 // 10}" if cuda else "",
    )
    reports = [_report_board(nvml, index, versions) for index in range(min(count, _MOST_DEVICES))]
    return sum(reports, GPUReport())


def _report_board(nvml: Any, index: int, versions: _Versions) -> GPUReport:
    bus = optional(lambda: nvml.nvmlDeviceGetPciInfo(nvml.nvmlDeviceGetHandleByIndex(index)).busId, "")
    return replace(_ask_board(nvml, index, versions), listed=(short_address(_as_text(bus)),))


def _ask_board(nvml: Any, index: int, versions: _Versions) -> GPUReport:
    """One GPU, or its MIG devices. It may disappear between two calls, so only a complete answer makes a device."""
    name = f"NVIDIA GPU {index}"
    try:
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        split = _is_split(nvml, handle)
        mode = optional(lambda: nvml.nvmlDeviceGetComputeMode(handle), 0)
        if mode == _PROHIBITED:
            return GPUReport(limits=(f"{name}: its compute mode is PROHIBITED: it is not offered",))
        if optional(lambda: nvml.nvmlDeviceGetVirtualizationMode(handle), 0) in _FOR_VIRTUAL_MACHINES:
            return GPUReport(limits=(f"{name} is divided for virtual machines (vGPU): it is not offered",))
        if split:
            return _report_parts(nvml, handle, index, versions)
        memory = read_memory(nvml, handle)
        if memory is None:
            model = _as_text(optional(lambda: nvml.nvmlDeviceGetName(handle), "")) or "it"
            return GPUReport(limits=(f"{name}: {model} has no memory of its own: it is not offered",))
        device = _read_device(nvml, handle, handle, index, versions, memory)
    except (nvml.NVMLError, UnicodeDecodeError) as error:
        return GPUReport(problems=(f"{name}: {_reason(error)}",))
    limits: tuple[str, ...] = ()
    if mode in _ONE_AT_A_TIME:
        device = replace(device, gpu=replace(device.gpu, exclusive=True))
        limits = (f"{name}: its compute mode is EXCLUSIVE_PROCESS: one lease at a time has all of it",)
    return GPUReport(devices=(device,), limits=limits, problems=memory_warnings(nvml, handle, name))


def _report_parts(nvml: Any, handle: Any, index: int, versions: _Versions) -> GPUReport:
    """The MIG devices of a GPU. Of the GPU itself only the name is read, which may fail in a container."""
    parent = _as_text(optional(lambda: nvml.nvmlDeviceGetUUID(handle), ""))
    devices: list[GPUDevice] = []
    problems: list[str] = []
    slots = nvml.nvmlDeviceGetMaxMigDeviceCount(handle)
    for slot in range(min(slots, _MOST_DEVICES)):
        try:
            part = nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, slot)
            memory = read_memory(nvml, part)
            device = None if memory is None else _read_device(nvml, part, handle, index, versions, memory)
        except (nvml.NVMLError_NotFound, nvml.NVMLError_InvalidArgument):
            continue
        except (nvml.NVMLError, UnicodeDecodeError) as error:
            problems.append(f"NVIDIA GPU {index}, MIG device in slot {slot}: {_reason(error)}")
            continue
        if device is None:
            problems.append(f"NVIDIA GPU {index}, MIG device in slot {slot}: the driver reports no memory size")
            continue
        devices.append(replace(device, position=f"{index}:{len(devices)}", parent_uuid=parent))
    if not devices and not problems:
        problems.append(f"NVIDIA GPU {index} is in MIG mode, but has no MIG device")
    return GPUReport(devices=tuple(devices), problems=tuple(problems))


def _is_split(nvml: Any, handle: Any) -> bool:
    """Whether a GPU is in MIG mode. An error of the driver is raised, because the GPU may not be whole."""
    try:
        return bool(nvml.nvmlDeviceGetMigMode(handle)[0])
    except (nvml.NVMLError_NotSupported, nvml.NVMLError_FunctionNotFound):
        return False


def _read_device(
    nvml: Any, handle: Any, board: Any, index: int, versions: _Versions, memory: DeviceMemory
) -> GPUDevice:
    """One device. What belongs to the whole `board` is read from it. Raises if the device has no uuid."""
    capability = optional(lambda: nvml.nvmlDeviceGetCudaComputeCapability(board), None)
    pci = optional(lambda: nvml.nvmlDeviceGetPciInfo(board).busId, "")
    gpu = GPU(
        uuid=_as_text(nvml.nvmlDeviceGetUUID(handle)),
        index=index,
        vendor=GPUVendor.NVIDIA,
        model=_as_text(optional(lambda: nvml.nvmlDeviceGetName(handle), "")),
        vram=memory.usable,
        pci_address=short_address(_as_text(pci)),
        driver_version=versions.driver,
        cuda_version=versions.cuda,
        compute_capability=f"{capability[0]}.{capability[1]}" if capability else "",
    )
    return GPUDevice(gpu=gpu, used=memory.used, position=str(index), physical=memory.total)


def _reason(error: Exception) -> str:
    return "its uuid is not text" if isinstance(error, UnicodeDecodeError) else str(error)


def _as_text(value: str | bytes) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value
