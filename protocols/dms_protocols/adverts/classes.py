"""Capability classes: a provider announces them and a requester looks them up, before they know each other.

A class is a minimum for one dimension, a power of two ("vram ≥ 16 GiB", "cores ≥ 8"). A provider is in each class that
its *free* capacity reaches. A requester looks up the rarest class that its demand needs, and queries only the peers in
it.

Rules:
1. The class that is looked up never exceeds the demand, so that the lookup misses no peer that could run the job. A
   peer that is found may still have too little (16 GiB of VRAM for a demand of 20): the class only narrows the search.
2. Each dimension has a lowest and a highest class, so that a provider announces few records, however large its machine
   is. A demand below the lowest class needs no class in this dimension; every demand needs at least one core. A demand
   above the highest class needs the highest.
3. The key of a class depends on its name alone, so that peers of all languages and versions use the same key.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from enum import Enum
from functools import cached_property, lru_cache
from typing import Final

from msgspec import Struct

from dms_resources.components import FreeResources
from dms_resources.demands import Demand
from dms_resources.units import format_size

from ..messages.bid import EnsembleRequest

__all__ = ["CLASSES", "CapabilityClass", "Dimension", "classes_needed", "classes_reached", "classes_to_look_up"]

_NAMESPACE: Final = "/dms/class/1.0.0"
# The multihash (https://multiformats.io/multihash/) of SHA-256: code 0x12, length 32.
_MULTIHASH: Final = b"\x12\x20"


class Dimension(Enum):
    """What a class counts: whole cores, bytes of RAM or disk, bytes of VRAM of the largest GPU, or GPUs."""

    GPUS = "gpus"
    VRAM = "vram"
    RAM = "ram"
    CORES = "cores"
    DISK = "disk"


class _Range(Struct, frozen=True):
    """Exponents of two: the lowest class, the highest class, and what a usual machine has."""

    lowest: int
    highest: int
    usual: int


# `usual` orders classes of different dimensions by rarity: a class is rare by the number of doublings above a usual
# machine. Most machines have no GPU, so the lowest class of GPUs counts as rare as eight times the usual memory.
_RANGES: Final = {
    Dimension.GPUS: _Range(0, 4, -3),  # 1 to 16 devices
    Dimension.VRAM: _Range(32, 37, 29),  # 4 GiB to 128 GiB
    Dimension.RAM: _Range(31, 40, 34),  # 2 GiB to 1 TiB; usual: 16 GiB
    Dimension.CORES: _Range(0, 8, 3),  # 1 to 256; usual: 8
    Dimension.DISK: _Range(36, 44, 38),  # 64 GiB to 16 TiB; usual: 256 GiB
}
# Decides between two classes that are equally rare.
_ORDER: Final = {dimension: place for place, dimension in enumerate(Dimension)}


class CapabilityClass(Struct, frozen=True, dict=True):
    """Peers that have at least `at_least` (cores, bytes or devices; a power of two) of one dimension free."""

    dimension: Dimension
    at_least: int

    @property
    def name(self) -> str:
        """The name that the key follows from, such as "/dms/class/1.0.0/vram/17179869184"."""
        return f"{_NAMESPACE}/{self.dimension.value}/{self.at_least}"

    @cached_property
    def key(self) -> bytes:
        """The key of its provider records: the SHA-256 multihash of the name (34 bytes)."""
        return _MULTIHASH + hashlib.sha256(self.name.encode()).digest()

    @property
    def rarity(self) -> int:
        """The number of doublings above a usual machine. The higher it is, the fewer peers are in the class."""
        return self.at_least.bit_length() - 1 - _RANGES[self.dimension].usual

    def __str__(self) -> str:
        counted = self.dimension in (Dimension.CORES, Dimension.GPUS)
        return f"{self.dimension.value} ≥ {self.at_least if counted else format_size(self.at_least)}"


CLASSES: Final = tuple(
    CapabilityClass(dimension, 1 << exponent)
    for dimension, extent in _RANGES.items()
    for exponent in range(extent.lowest, extent.highest + 1)
)
"""All classes."""


@lru_cache(maxsize=64)
def classes_reached(free: FreeResources) -> tuple[CapabilityClass, ...]:
    """The classes that this free capacity reaches. None for a peer that offers nothing or drains."""
    if not free.onboarded or free.draining:
        return ()
    vram = [gpu.vram for gpu in free.gpus if gpu.vram and not gpu.exclusive]
    amounts = {
        Dimension.GPUS: len(vram),
        Dimension.VRAM: max(vram, default=0),
        Dimension.RAM: free.ram.size,
        Dimension.CORES: free.cpu.cores.millicores // 1000,
        Dimension.DISK: free.disk.size,
    }
    return tuple(one for one in CLASSES if one.at_least <= amounts[one.dimension])


@lru_cache(maxsize=1024)
def classes_needed(demand: Demand) -> tuple[CapabilityClass, ...]:
    """The class of each dimension that the demand needs, the rarest first. Never empty."""
    amounts = {
        Dimension.GPUS: len(demand.gpus),
        Dimension.VRAM: max((gpu.vram for gpu in demand.gpus), default=0),
        Dimension.RAM: demand.ram.size,
        # An empty demand still needs a provider.
        Dimension.CORES: max(1, demand.cpu.cores.millicores // 1000),
        Dimension.DISK: demand.disk.size,
    }
    needed = (_highest_within(dimension, amount) for dimension, amount in amounts.items())
    return _rarest_first(one for one in needed if one)


def classes_to_look_up(request: EnsembleRequest) -> tuple[CapabilityClass, ...]:
    """The rarest class of each node of a request, without duplicates, the rarest first."""
    return _rarest_first({classes_needed(node.resources)[0] for node in request.request})


def _rarest_first(classes: Iterable[CapabilityClass]) -> tuple[CapabilityClass, ...]:
    return tuple(sorted(classes, key=lambda one: (-one.rarity, _ORDER[one.dimension], one.at_least)))


def _highest_within(dimension: Dimension, amount: int) -> CapabilityClass | None:
    extent = _RANGES[dimension]
    exponent = min(amount.bit_length() - 1, extent.highest)
    return None if exponent < extent.lowest else CapabilityClass(dimension, 1 << exponent)
