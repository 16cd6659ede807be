"""The machine and the ledger: what exists and what is promised. Knows no network.

`open_manager` opens the ledger of a machine; `ResourceManager` answers what is free and makes promises of it.
`dms_resources.machine.hardware` measures the machine, `dms_resources.machine.usage` watches what it uses.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from .components import (
    CPU,
    GPU,
    RAM,
    Disk,
    FreeResources,
    GPUs,
    GPUVendor,
    Headroom,
    HoldLimits,
    MachineResources,
    NetworkInfo,
    OnboardedResources,
    PortRange,
    Resources,
)
from .demands import CPUDemand, Demand, DiskDemand, GPUDemand, PortDemand, RAMDemand, Shortage
from .errors import ResourcesError
from .ledger.leases import EndedLease, Lease, LeaseRequest, LeaseState, ResourceAllocation
from .units import Cores

if TYPE_CHECKING:
    from .machine.usage import UsageMonitor
    from .manager import ResourceManager, open_manager

__all__ = [
    "CPU",
    "GPU",
    "RAM",
    "CPUDemand",
    "Cores",
    "Demand",
    "Disk",
    "DiskDemand",
    "EndedLease",
    "FreeResources",
    "GPUDemand",
    "GPUVendor",
    "GPUs",
    "Headroom",
    "HoldLimits",
    "Lease",
    "LeaseRequest",
    "LeaseState",
    "MachineResources",
    "NetworkInfo",
    "OnboardedResources",
    "PortDemand",
    "PortRange",
    "RAMDemand",
    "ResourceAllocation",
    "ResourceManager",
    "Resources",
    "ResourcesError",
    "Shortage",
    "UsageMonitor",
    "open_manager",
]

# Imported when asked for: trio and psutil would cost every short command a tenth of a second.
_LATER = {"ResourceManager": ".manager", "open_manager": ".manager", "UsageMonitor": ".machine.usage"}


def __getattr__(name: str) -> object:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_LATER[name], __name__), name)
