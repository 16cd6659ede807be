"""A libp2p peer that offers a machine's free compute and takes that of others.

The front of the package; what it names is loaded when it is first used, because libp2p takes more than a second to load
and local commands do not need it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .attach import serve
    from .home import Home
    from .host import dial, host_addresses, open_host
    from .identity import Identity, load_or_create_identity, new_identity
    from .node import Node
    from .requester import open_allocations, open_bids, open_resources

__all__ = [
    "Home",
    "Identity",
    "Node",
    "dial",
    "host_addresses",
    "load_or_create_identity",
    "new_identity",
    "open_allocations",
    "open_bids",
    "open_host",
    "open_resources",
    "serve",
]

_MODULES = {
    "attach": ("serve",),
    "home": ("Home",),
    "host": ("dial", "host_addresses", "open_host"),
    "identity": ("Identity", "load_or_create_identity", "new_identity"),
    "node": ("Node",),
    "requester": ("open_allocations", "open_bids", "open_resources"),
}


def __getattr__(name: str) -> Any:
    for module, names in _MODULES.items():
        if name in names:
            return getattr(importlib.import_module(f".{module}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
