"""A libp2p peer that offers a machine's free compute and takes that of others.

The front of the package; what it names is loaded when it is first used, because libp2p takes more than a second to load
and local commands do not need it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dms_host import dial, host_addresses, open_host
    from dms_host.keys.identity import Identity, load_or_create_identity, new_identity

    from .clients import open_allocations, open_bids, open_resources
    from .config.ensemble import read_ensemble_file
    from .discovery.open import open_discovery, open_requester
    from .discovery.settings import DiscoverySettings
    from .errors import PeerError
    from .home.home import Home
    from .node import Node
    from .requesting import AssignmentRules, Requester, Reservation
    from .requesting.errors import ReservationError
    from .serving import serve

__all__ = [
    "AssignmentRules",
    "DiscoverySettings",
    "Home",
    "Identity",
    "Node",
    "PeerError",
    "Requester",
    "Reservation",
    "ReservationError",
    "dial",
    "host_addresses",
    "load_or_create_identity",
    "new_identity",
    "open_allocations",
    "open_bids",
    "open_discovery",
    "open_host",
    "open_requester",
    "open_resources",
    "read_ensemble_file",
    "serve",
]

_MODULES = {
    "dms_host": ("dial", "host_addresses", "open_host"),
    "dms_host.keys.identity": ("Identity", "load_or_create_identity", "new_identity"),
    ".serving": ("serve",),
    ".discovery.open": ("open_discovery", "open_requester"),
    ".discovery.settings": ("DiscoverySettings",),
    ".config.ensemble": ("read_ensemble_file",),
    ".errors": ("PeerError",),
    ".home.home": ("Home",),
    ".node": ("Node",),
    ".clients": ("open_allocations", "open_bids", "open_resources"),
    ".requesting": ("AssignmentRules", "Requester", "Reservation"),
    ".requesting.errors": ("ReservationError",),
}


def __getattr__(name: str) -> Any:
    for module, names in _MODULES.items():
        if name in names:
            return getattr(importlib.import_module(module, __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
