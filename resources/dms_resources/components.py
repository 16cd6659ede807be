"""What a machine has: the DMS's resource types, with the DMS's field names and units.

Sizes and VRAM are bytes, clocks are hertz, cores are exact to 0.001. All values are immutable; what
is unknown is left out. The same types say what
a machine has, what its owner onboards, what is free and what a lease was granted: in each case the devices are real
ones. What a job *asks for* is a `Demand` (see `demands`).
Source of the names: NuNet device-management-service, package `types`.
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
    """Who made a GPU, in the DMS's spelling. A demand for `UNKNOWN` or `NONE` means any vendor."""

    NVIDIA = "NVIDIA"
    AMD = "AMD/ATI"
    INTEL = "Intel"
    UNKNOWN = "Unknown"
    NONE = "None"

    @classmethod
    def _missing_(cls, value: object) -> GPUVendor | None:
        # A Go struct that leaves the vendor out sends the empty string.
        return cls.UNKNOWN if value == "" else None


class CPU(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """CPU cores and what they are.

    `cores` is what may be used (a cgroup quota may make it a fraction), `threads` the logical CPUs and `physical_cores`
    the physical ones of the machine, `clock_speed` the highest clock in hertz, `base_clock_speed` the guaranteed one,
    `cache_size` the last-level cache in bytes, `architecture` as in "x86_64" or "arm64".
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
    """Main memory: `size` in bytes, `clock_speed` in hertz, `type` such as "DDR5" where known."""

    size: Amount
    clock_speed: Amount = 0
    type: str = ""


class Disk(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Disk space: `size` in bytes, `type` one of "NVMe", "SSD", "HDD", "network" where known; speeds in bytes/s."""

    size: Amount
    model: str = ""
    vendor: str = ""
    type: str = ""
    interface: str = ""
    read_speed: Amount = 0
    write_speed: Amount = 0


class GPU(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One GPU device. `uuid` identifies it for good; `index` is its number in the list of all devices now.

    `vram` is in bytes: all of it for a machine's device, the part concerned for what is onboarded, free or granted.
    `exclusive` says that a lease has the whole device to itself; of a machine's device it says that it must, because
    the driver lets one process at a time use it.
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
    """An amount of everything: CPU, RAM, disk and named GPU devices."""

    cpu: CPU
    ram: RAM
    disk: Disk
    gpus: GPUs


class NetworkInterface(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One network interface: `link_speed` in bits per second (0 where unknown), `type` such as "ethernet"."""

    name: str
    type: str = "unknown"
    link_speed: Amount = 0
    up: bool = False
    addresses: tuple[str, ...] = ()


class NetworkInfo(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The machine's network interfaces; `public` is None where nothing can be known without leaving the machine."""

    interfaces: tuple[NetworkInterface, ...] = ()
    public: bool | None = None


class MachineResources(Resources, frozen=True, kw_only=True, omit_defaults=True):
    """What the hardware has, as this process may use it (containers and cgroups included).

    `limits` explains in sentences what is below the hardware and why ("2 of 64 cores: cgroup quota"), `problems` what
    could not be read; `simulated` is true when a file stood in for the hardware.
    """

    network: NetworkInfo = NetworkInfo()
    limits: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    simulated: bool = False


class PortRange(Struct, frozen=True, kw_only=True):
    """The public ports a provider gives out, both ends included."""

    first: Port
    last: Port

    def __len__(self) -> int:
        return max(0, self.last - self.first + 1)

    def __contains__(self, port: int) -> bool:
        return self.first <= port <= self.last


# The DMS's public ports, up to where Linux begins to take ports for outgoing connections.
DEFAULT_PORT_RANGE = PortRange(first=16384, last=32767)


class Headroom(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What is kept back of the onboarded resources and never offered.

    The amounts (cores, bytes) and the share (in thousandths of what is onboarded) are added up; VRAM is kept back by
    the share alone, on every GPU.
    """

    share: Permille = 0
    cpu: Cores = Cores(0)
    ram: Amount = 0
    disk: Amount = 0

    def cut(self, onboarded: int, amount: int) -> int:
        """What is left of `onboarded` when the share of it (rounded up) and `amount` are kept back; never negative."""
        return max(0, onboarded - -(-onboarded * self.share // 1000) - amount)


class HoldLimits(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What the owner lets bids hold before they are taken.

    `max_seconds` is the longest hold (0: no holds), `per_holder` and `total` bound how many holds there may be for one
    peer and for all, `share` bounds what all holds together may take, in thousandths of each dimension.
    """

    max_seconds: float = 0.0
    per_holder: Amount = 2
    total: Amount = 64
    share: Permille = 500


class OnboardedResources(Resources, frozen=True, kw_only=True, omit_defaults=True):
    """The part of the machine that the owner offers to the network, and on what terms.

    `windows` are the times at which capacity may be promised (see `windows.Window.parse`); none means always.
    """

    port_range: PortRange = DEFAULT_PORT_RANGE
    headroom: Headroom = Headroom()
    windows: tuple[str, ...] = ()
    holds: HoldLimits = HoldLimits()


AvailableResources: TypeAlias = OnboardedResources
"""The name of `OnboardedResources` in the seed of this project and in older versions of the DMS."""


class FreeResources(Resources, frozen=True, kw_only=True, omit_defaults=True):
    """What could be taken at this instant: offered less what is promised; derived, never stored.

    `ports` counts the free public ports. Every GPU that is offered is listed, with the VRAM free on it; `exclusive`
    marks a device that one lease has to itself.
    """

    ports: Amount
    onboarded: bool
    draining: bool
    simulated: bool
