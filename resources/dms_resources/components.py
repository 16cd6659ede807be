"""The DMS's resource types, with the DMS's field names and units.

Sizes and VRAM are in bytes, clocks in hertz, cores are exact to 0.001. All values are immutable. Unknown values are
left out. The same types describe what a machine has, what its owner onboards, what is free and what a lease was
granted; in each case the devices are real ones. What a job *requests* is a `Demand` (see `demands`). Source of the
names: NuNet device-management-service, package `types`.
"""

from __future__ import annotations

from enum import Enum
from typing import Annotated, TypeAlias

from msgspec import Meta, Struct

from .units import Cores

__all__ = [
    "CPU",
    "DEFAULT_PORT_RANGE",
    "GPU",
    "RAM",
    "Amount",
    "AvailableResources",
    "Disk",
    "FreeResources",
    "GPUVendor",
    "GPUs",
    "Headroom",
    "HoldLimits",
    "MachineResources",
    "NetworkInfo",
    "NetworkInterface",
    "OnboardedResources",
    "Port",
    "PortRange",
    "Resources",
]

Amount: TypeAlias = Annotated[int, Meta(ge=0, le=2**63 - 1)]
Port: TypeAlias = Annotated[int, Meta(ge=1, le=65535)]
Permille: TypeAlias = Annotated[int, Meta(ge=0, le=1000)]


class GPUVendor(Enum):
    """The manufacturer of a GPU, in the DMS's spelling. A demand for `UNKNOWN` or `NONE` accepts any vendor."""

    NVIDIA = "NVIDIA"
    AMD = "AMD/ATI"
    INTEL = "Intel"
    UNKNOWN = "Unknown"
    NONE = "None"

    @classmethod
    def _missing_(cls, value: object) -> GPUVendor | None:
        # A Go struct without a vendor sends the empty string.
        return cls.UNKNOWN if value == "" else None


class CPU(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """CPU cores and their description.

    `cores` are those that may be used (a cgroup quota may make this a fraction), `threads` the logical CPUs and
    `physical_cores` the physical cores of the machine. `clock_speed` is the highest clock in hertz, `base_clock_speed`
    the guaranteed one. `cache_size` is the last-level cache in bytes. `architecture` is spelled as in "x86_64" or
    "arm64".
    """

    cores: Cores
    clock_speed: Amount = 0
    architecture: str = ""
    vendor: str = ""
    model: str = ""
    threads: Amount = 0
    cache_size: Amount = 0
    physical_cores: Amount = 0
    base_clock_speed: Amount = 0


class RAM(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Main memory: `size` in bytes, `clock_speed` in hertz, `type` such as "DDR5" if known."""

    size: Amount
    clock_speed: Amount = 0
    type: str = ""


class Disk(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Disk space: `size` in bytes; `type` is "NVMe", "SSD", "HDD" or "network" if known; speeds in bytes/s."""

    size: Amount
    model: str = ""
    vendor: str = ""
    type: str = ""
    interface: str = ""
    read_speed: Amount = 0
    write_speed: Amount = 0


class GPU(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One GPU device. `uuid` identifies it permanently; `index` is its current number in the list of all devices.

    `vram` is in bytes. For a device of the machine it is all of it; otherwise it is the part that is onboarded, free or
    granted. For a lease, `exclusive` means that the lease has the whole device. For a device of the machine, it means
    that every lease must, because the driver allows only one process at a time.
    """

    uuid: str
    index: Amount = 0
    vendor: GPUVendor = GPUVendor.UNKNOWN
    model: str = ""
    vram: Amount
    pci_address: str = ""
    exclusive: bool = False
    driver_version: str = ""
    cuda_version: str = ""
    compute_capability: str = ""


GPUs: TypeAlias = tuple[GPU, ...]
"""The GPU devices of one machine or lease, by index."""


class Resources(Struct, frozen=True, kw_only=True):
    """An amount of each resource: CPU, RAM, disk and named GPU devices."""

    cpu: CPU
    ram: RAM
    disk: Disk
    gpus: GPUs


class NetworkInterface(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One network interface: `link_speed` in bits per second (0 if unknown), `type` such as "ethernet"."""

    name: str
    type: str = "unknown"
    link_speed: Amount = 0
    up: bool = False
    addresses: tuple[str, ...] = ()


class NetworkInfo(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The machine's network interfaces. `public` is None if it cannot be known without sending packets."""

    interfaces: tuple[NetworkInterface, ...] = ()
    public: bool | None = None


class MachineResources(Resources, frozen=True, kw_only=True, omit_defaults=True):
    """The resources of the hardware that this process may use, within containers and cgroups.

    `limits` are sentences on what is below the hardware, and why ("2 of 64 cores: cgroup quota"). `problems` are
    sentences on what could not be read. `simulated` is true if a file describes the machine.
    """

    network: NetworkInfo = NetworkInfo()
    limits: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    simulated: bool = False


class PortRange(Struct, frozen=True, kw_only=True):
    """The public ports that a provider grants, both ends included."""

    first: Port
    last: Port

    def __len__(self) -> int:
        return max(0, self.last - self.first + 1)

    def __contains__(self, port: int) -> bool:
        return self.first <= port <= self.last


# The DMS's public ports, up to the range that Linux uses for outgoing connections.
DEFAULT_PORT_RANGE = PortRange(first=16384, last=32767)


class Headroom(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The part of the onboarded resources that is kept back and never offered.

    The amounts (cores, bytes) and the share (in thousandths of what is onboarded) are added up. For VRAM only the share
    is kept back, on every GPU.
    """

    share: Permille = 0
    cpu: Cores = Cores(0)
    ram: Amount = 0
    disk: Amount = 0

    def cut(self, onboarded: int, amount: int) -> int:
        """What remains of `onboarded` after its share (rounded up) and `amount` are kept back. Never negative."""
        return max(0, onboarded - -(-onboarded * self.share // 1000) - amount)


class HoldLimits(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The owner's limits for holds, which reserve capacity for bids.

    `max_seconds` is the longest hold (0: no holds). `per_holder` and `total` are the largest numbers of holds for one
    peer and for all. `share` is the largest part of each dimension that all holds together may take, in thousandths.
    """

    max_seconds: float = 0.0
    per_holder: Amount = 2
    total: Amount = 64
    share: Permille = 500


class OnboardedResources(Resources, frozen=True, kw_only=True, omit_defaults=True):
    """The part of the machine that the owner offers to the network, and the terms.

    `windows` are the times at which capacity may be committed (see `windows.Window.parse`). Without windows it may be
    committed at any time.
    """

    port_range: PortRange = DEFAULT_PORT_RANGE
    headroom: Headroom = Headroom()
    windows: tuple[str, ...] = ()
    holds: HoldLimits = HoldLimits()


AvailableResources: TypeAlias = OnboardedResources
"""The name of `OnboardedResources` in the seed of this project and in older versions of the DMS."""


class FreeResources(Resources, frozen=True, kw_only=True, omit_defaults=True):
    """What could be committed now: the offer minus all leases. It is derived, never stored.

    `ports` is the number of free public ports. Every offered GPU is listed, with its free VRAM; `exclusive` marks a
    device of which a lease gets the whole.
    """

    ports: Amount
    onboarded: bool
    draining: bool
    simulated: bool
