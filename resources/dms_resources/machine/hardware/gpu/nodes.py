"""Checks whether this process may open the device nodes of a GPU.

`/sys` shows every card of the machine, even to a container. A program needs the device nodes to use a card.
"""

from __future__ import annotations

import re
from pathlib import Path

from ....components import GPUVendor
from ..roots import Roots, can_open, list_names
from .pci import PCIDevice

__all__ = ["missing_node", "render_nodes"]

_RENDER_NODE = re.compile(r"renderD[0-9]{1,6}")


def render_nodes(folder: Path) -> list[str]:
    """The names of the render nodes of a device, such as "renderD128", from its folder in `/sys`."""
    return [name for name in list_names(folder / "drm") if _RENDER_NODE.fullmatch(name)]


def missing_node(device: PCIDevice, roots: Roots, node: str | None = None) -> str | None:
    """A device node that a program needs for this card but this process cannot open; None if it can open all of them.

    `node` is the render node of a part of the card. The result is also None if the device nodes were not recorded.
    """
    if roots.dev is None:
        return None
    needed = ["kfd"] if device.vendor is GPUVendor.AMD else []
    found = [node] if node is not None else render_nodes(device.folder)
    needed += [f"dri/{name}" for name in found[:1]] or ["dri/renderD*"]
    return next((f"/dev/{name}" for name in needed if not can_open(roots.dev / name)), None)
