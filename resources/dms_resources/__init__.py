"""The machine and the ledger: what exists and what is promised. Knows no network.

`open_manager` opens the ledger of a machine; `ResourceManager` answers what is free and makes promises of it.
`dms_resources.hardware` measures the machine, `dms_resources.usage` watches what it uses.
"""

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
from .leases import EndedLease, Lease, LeaseRequest, LeaseState, ResourceAllocation
from .manager import ResourceManager, open_manager
from .units import Cores
from .usage import UsageMonitor

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
