"""The machine and the ledger: which resources exist, and which are committed to whom. This package uses no network.

`measure_machine` measures the machine, `open_manager` opens its ledger, and the `ResourceManager` offers resources and
grants leases. Each name is loaded when it is first used, so that short commands start quickly.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .components import (
        CPU,
        GPU,
        RAM,
        AvailableResources,
        Disk,
        FreeResources,
        GPUs,
        GPUVendor,
        Headroom,
        HoldLimits,
        MachineResources,
        NetworkInfo,
        NetworkInterface,
        OnboardedResources,
        PortRange,
        Resources,
    )
    from .demands import CPUDemand, Demand, DiskDemand, GPUDemand, PortDemand, RAMDemand, Shortage, describe_shortage
    from .errors import (
        AmountError,
        ConflictError,
        EndedError,
        EventsGoneError,
        ExpiredError,
        LeaseError,
        LedgerDamagedError,
        LedgerInUseError,
        LedgerVersionError,
        MachineFileError,
        MachineInUseError,
        NotAllocatedError,
        NotCommittedError,
        NotHolderError,
        OnboardingError,
        ResourcesError,
        StaleFenceError,
        StillPromisedError,
        StorageError,
        UsageUnknownError,
    )
    from .ledger.events import EventKind, LeaseEvent
    from .ledger.history import Finding, HistoryEntry
    from .ledger.leases import EndedLease, EndReason, Lease, LeaseJob, LeaseRequest, LeaseState, ResourceAllocation
    from .ledger.windows import Window
    from .machine.file import read_machine_file, write_machine_file
    from .machine.guard import Guard
    from .machine.hardware import measure_machine
    from .machine.usage import JobUsage, UsageMonitor, UsageSample
    from .manager import ResourceManager, open_manager
    from .refusals import (
        AccountError,
        DrainingError,
        HoldLimitError,
        InsufficientError,
        NotOnboardedError,
        PhysicalError,
        RequestError,
        ShareError,
        WindowError,
    )
    from .units import GIB, KIB, MIB, TIB, Cores, format_duration, format_size, parse_duration, parse_size

__all__ = [
    "CPU",
    "GIB",
    "GPU",
    "KIB",
    "MIB",
    "RAM",
    "TIB",
    "AccountError",
    "AmountError",
    "AvailableResources",
    "CPUDemand",
    "ConflictError",
    "Cores",
    "Demand",
    "Disk",
    "DiskDemand",
    "DrainingError",
    "EndReason",
    "EndedError",
    "EndedLease",
    "EventKind",
    "EventsGoneError",
    "ExpiredError",
    "Finding",
    "FreeResources",
    "GPUDemand",
    "GPUVendor",
    "GPUs",
    "Guard",
    "Headroom",
    "HistoryEntry",
    "HoldLimitError",
    "HoldLimits",
    "InsufficientError",
    "JobUsage",
    "Lease",
    "LeaseError",
    "LeaseEvent",
    "LeaseJob",
    "LeaseRequest",
    "LeaseState",
    "LedgerDamagedError",
    "LedgerInUseError",
    "LedgerVersionError",
    "MachineFileError",
    "MachineInUseError",
    "MachineResources",
    "NetworkInfo",
    "NetworkInterface",
    "NotAllocatedError",
    "NotCommittedError",
    "NotHolderError",
    "NotOnboardedError",
    "OnboardedResources",
    "OnboardingError",
    "PhysicalError",
    "PortDemand",
    "PortRange",
    "RAMDemand",
    "RequestError",
    "ResourceAllocation",
    "ResourceManager",
    "Resources",
    "ResourcesError",
    "ShareError",
    "Shortage",
    "StaleFenceError",
    "StillPromisedError",
    "StorageError",
    "UsageMonitor",
    "UsageSample",
    "UsageUnknownError",
    "Window",
    "WindowError",
    "describe_shortage",
    "format_duration",
    "format_size",
    "measure_machine",
    "open_manager",
    "parse_duration",
    "parse_size",
    "read_machine_file",
    "write_machine_file",
]

# The module that defines each name.
_MODULES = {
    ".components": (
        "CPU",
        "GPU",
        "RAM",
        "Disk",
        "FreeResources",
        "GPUVendor",
        "GPUs",
        "Headroom",
        "HoldLimits",
        "MachineResources",
        "NetworkInfo",
        "NetworkInterface",
        "AvailableResources",
        "OnboardedResources",
        "PortRange",
        "Resources",
    ),
    ".demands": (
        "CPUDemand",
        "Demand",
        "DiskDemand",
        "GPUDemand",
        "PortDemand",
        "RAMDemand",
        "Shortage",
        "describe_shortage",
    ),
    ".errors": (
        "AmountError",
        "ConflictError",
        "EndedError",
        "EventsGoneError",
        "ExpiredError",
        "LeaseError",
        "LedgerDamagedError",
        "LedgerInUseError",
        "LedgerVersionError",
        "MachineFileError",
        "MachineInUseError",
        "NotAllocatedError",
        "NotCommittedError",
        "NotHolderError",
        "OnboardingError",
        "ResourcesError",
        "StaleFenceError",
        "StillPromisedError",
        "StorageError",
        "UsageUnknownError",
    ),
    ".ledger.events": ("EventKind", "LeaseEvent"),
    ".ledger.history": ("Finding", "HistoryEntry"),
    ".ledger.leases": (
        "EndReason",
        "EndedLease",
        "Lease",
        "LeaseJob",
        "LeaseRequest",
        "LeaseState",
        "ResourceAllocation",
    ),
    ".ledger.windows": ("Window",),
    ".machine.file": ("read_machine_file", "write_machine_file"),
    ".machine.guard": ("Guard",),
    ".machine.hardware": ("measure_machine",),
    ".machine.usage": ("JobUsage", "UsageMonitor", "UsageSample"),
    ".manager": ("ResourceManager", "open_manager"),
    ".refusals": (
        "AccountError",
        "DrainingError",
        "HoldLimitError",
        "InsufficientError",
        "NotOnboardedError",
        "PhysicalError",
        "RequestError",
        "ShareError",
        "WindowError",
    ),
    ".units": ("GIB", "KIB", "MIB", "TIB", "Cores", "format_duration", "format_size", "parse_duration", "parse_size"),
}


def __getattr__(name: str) -> Any:
    for module, names in _MODULES.items():
        if name in names:
            return getattr(importlib.import_module(module, __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
