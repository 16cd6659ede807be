"""Which parts of a hardware description other peers may see."""

from __future__ import annotations

from typing import TypeVar

from msgspec.structs import replace

from dms_resources.components import FreeResources, OnboardedResources, Resources

__all__ = ["for_strangers"]

Described = TypeVar("Described", Resources, FreeResources, OnboardedResources)


def for_strangers(resources: Described) -> Described:
    """The same resources without the PCI addresses of the GPUs, which only the machine's own executor needs.

    The uuids stay: a bid names the devices that the requester would get, and a demand may name one.
    """
    if not any(gpu.pci_address for gpu in resources.gpus):
        return resources
    return replace(resources, gpus=tuple(replace(gpu, pci_address="") for gpu in resources.gpus))
