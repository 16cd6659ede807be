"""The memory of NVIDIA's devices: how much of it a job can have, and what is wrong with it. `nvml` is `pynvml`.

The library is foreign code: see `nvidia`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeVar

__all__ = ["DeviceMemory", "memory_warnings", "optional", "read_memory"]

Answer = TypeVar("Answer")

# nvmlPageRetirementCause_t: single-bit errors, double-bit errors.
_RETIREMENT_CAUSES = (0, 1)
_RETIRED_PAGE = 64 * 1024
_MOST_PAGES = 4096


class DeviceMemory(NamedTuple):
    """Bytes: `total` as the driver counts it, `usable` by jobs, and `used` now."""

    total: int
    usable: int
    used: int


def optional(ask: Callable[[], Answer], otherwise: Answer) -> Answer:
    """Return the result of a query that only describes a device, or `otherwise` after any error.

    The device exists without it.
    """
    try:
        return ask()
    except Exception:  # pynvml also raises UnicodeDecodeError, AttributeError and TypeError
        return otherwise


def read_memory(nvml: Any, handle: Any) -> DeviceMemory | None:
    """Return the memory of a device, None if it has none of its own. Raises what NVML raises.

    What the driver reserves for itself is not usable, and neither are the pages that it has retired.
    """
    found = _ask_memory(nvml, handle)
    if found is None:
        return None
    usable = max(0, found.total - getattr(found, "reserved", 0) - _retired_bytes(nvml, handle))
    return DeviceMemory(found.total, usable, min(found.used, usable))


def _ask_memory(nvml: Any, handle: Any) -> Any:
    version = getattr(nvml, "nvmlMemory_v2", None)
    if version is not None:
        unoffered = (
            nvml.NVMLError_FunctionNotFound,
            nvml.NVMLError_NotSupported,
            nvml.NVMLError_InvalidArgument,
            getattr(nvml, "NVMLError_ArgumentVersionMismatch", nvml.NVMLError_FunctionNotFound),
        )
        with contextlib.suppress(*unoffered):
            return nvml.nvmlDeviceGetMemoryInfo(handle, version=version)
    with contextlib.suppress(nvml.NVMLError_NotSupported):
        return nvml.nvmlDeviceGetMemoryInfo(handle)
    return None


def _retired_bytes(nvml: Any, handle: Any) -> int:
    pages = sum(
        len(optional(lambda cause=cause: nvml.nvmlDeviceGetRetiredPages(handle, cause), []))  # type: ignore[misc]
        for cause in _RETIREMENT_CAUSES
    )
    return min(pages, _MOST_PAGES) * _RETIRED_PAGE


def memory_warnings(nvml: Any, handle: Any, name: str) -> tuple[str, ...]:
    """Return a sentence on everything that is wrong with the memory of a device, or will change at its next reset."""
    return tuple(f"{name}: {sentence}" for sentence in _warnings(nvml, handle))


def _warnings(nvml: Any, handle: Any) -> Iterator[str]:
    _, _, pending, failed = optional(lambda: nvml.nvmlDeviceGetRemappedRows(handle), (0, 0, 0, 0))
    if failed:
        yield "a row of its memory is broken and could not be remapped: have it replaced"
    if pending or optional(lambda: nvml.nvmlDeviceGetRetiredPagesPendingStatus(handle), 0):
        yield "a part of its memory is broken, and is taken out of use at the next reset: reset it"
    now, later = optional(lambda: nvml.nvmlDeviceGetEccMode(handle), (0, 0))
    if later and not now:
        yield "its ECC is turned on at the next reset: it may have less memory then"
