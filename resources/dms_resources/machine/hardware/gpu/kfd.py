"""AMD's compute topology in `/sys/class/kfd`: the devices that its runtime shows.

A card in a compute partition mode other than SPX is several devices, each with a part of the memory.
Source: the kernel's drivers/gpu/drm/amd/amdkfd/kfd_topology.c.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from ..roots import Roots, bounded, list_names, parse_amount, read_text

__all__ = ["ComputeNode", "parse_properties", "read_nodes"]

_LINE = re.compile(r"^([a-z0-9_]{1,40}) ([0-9]{1,20})$", re.MULTILINE)
# Heaps on the card: visible to the CPU, and not.
_CARD_HEAPS = frozenset({1, 2})


class ComputeNode(NamedTuple):
    """One device of the runtime: the PCI address of its card, its number on the card, its own number, and bytes of
    memory.

    `render_node` is the name of its device node below `/dev/dri`, or "" if it has none.
    """

    address: str
    part: int
    unique_id: int
    size: int
    render_node: str


def read_nodes(roots: Roots, address: str) -> tuple[ComputeNode, ...]:
    """The devices of the card at this PCI address, in the runtime's order; none if the topology cannot be read."""
    folder = roots.sys / "class" / "kfd" / "kfd" / "topology" / "nodes"
    found: list[ComputeNode] = []
    for name in list_names(folder):
        properties = parse_properties(read_text(folder / name / "properties") or "")
        if not properties.get("simd_count"):
            continue
        banks = folder / name / "mem_banks"
        memory = [parse_properties(read_text(banks / bank / "properties") or "") for bank in list_names(banks)]
        node = _parse_node(properties, memory)
        if node.address == address:
            found.append(node)
    return tuple(found)


def parse_properties(text: str) -> dict[str, int]:
    """The numbers of a `properties` file. Invalid lines are left out."""
    return {match[1]: parse_amount(match[2]) or 0 for match in _LINE.finditer(text)}


def _parse_node(properties: dict[str, int], memory: list[dict[str, int]]) -> ComputeNode:
    location = properties.get("location_id", 0)
    minor = properties.get("drm_render_minor", 0)
    sizes = (bank.get("size_in_bytes", 0) for bank in memory if bank.get("heap_type") in _CARD_HEAPS)
    return ComputeNode(
        # The kernel writes the number of the part in place of the PCI function.
        address=f"{properties.get('domain', 0):04x}:{location >> 8 & 0xFF:02x}:{location >> 3 & 0x1F:02x}.0",
        part=location & 7,
        unique_id=properties.get("unique_id", 0),
        size=bounded(sum(sizes)),
        render_node=f"renderD{minor}" if minor else "",
    )
