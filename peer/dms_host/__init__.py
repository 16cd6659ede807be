"""A py-libp2p host that strangers cannot exhaust. It knows nothing of the DMS: any program on libp2p can use it.

The front of the package; each name is loaded when it is first used, because libp2p takes more than a second to load and
errors, limits and logs do not need it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .addresses import PeerAddress, host_addresses, parse_listen_address, parse_peer_address
    from .builder import open_host
    from .errors import HostError
    from .host import HardenedHost
    from .keys.identity import Identity, load_or_create_identity, new_identity
    from .limits import HostLimits, RelayLimits
    from .streams.outbound import open_stream
    from .streams.protocols import StreamHandler, attach_protocols
    from .streams.stream import PeerStream
    from .swarm.connection_gater import ConnectionGater
    from .swarm.dialing import dial, dial_any

__all__ = [
    "ConnectionGater",
    "HardenedHost",
    "HostError",
    "HostLimits",
    "Identity",
    "PeerAddress",
    "PeerStream",
    "RelayLimits",
    "StreamHandler",
    "attach_protocols",
    "dial",
    "dial_any",
    "host_addresses",
    "load_or_create_identity",
    "new_identity",
    "open_host",
    "open_stream",
    "parse_listen_address",
    "parse_peer_address",
]

_MODULES = {
    "addresses": ("PeerAddress", "host_addresses", "parse_listen_address", "parse_peer_address"),
    "builder": ("open_host",),
    "swarm.connection_gater": ("ConnectionGater",),
    "swarm.dialing": ("dial", "dial_any"),
    "errors": ("HostError",),
    "host": ("HardenedHost",),
    "keys.identity": ("Identity", "load_or_create_identity", "new_identity"),
    "limits": ("HostLimits", "RelayLimits"),
    "streams.outbound": ("open_stream",),
    "streams.protocols": ("StreamHandler", "attach_protocols"),
    "streams.stream": ("PeerStream",),
}


def __getattr__(name: str) -> Any:
    for module, names in _MODULES.items():
        if name in names:
            return getattr(importlib.import_module(f".{module}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
