"""A py-libp2p host that strangers cannot exhaust. It does not depend on the DMS: any libp2p program can use it.

`open_host` opens the host, `dial` connects to a peer, and `attach_protocols` serves protocols of your own. Each name is
loaded when it is first used, because libp2p takes more than a second to load. Errors and limits load without it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .addresses import PeerAddress, host_addresses, parse_listen_address, parse_peer_address
    from .builder import open_host
    from .errors import (
        AddressError,
        BadEnvelopeError,
        DialError,
        HostError,
        IdentityError,
        ListenError,
        ProtocolTakenError,
    )
    from .host import HardenedHost
    from .keys.envelopes import open_envelope, sign_envelope
    from .keys.identity import Identity, load_identity, load_or_create_identity, new_identity
    from .keys.swarm_key import create_swarm_key, load_swarm_key
    from .limits import HostLimits, RelayLimits
    from .streams.outbound import open_stream
    from .streams.protocols import StreamHandler, attach_protocols
    from .streams.stream import PeerStream
    from .swarm.connection_gater import ConnectionGater
    from .swarm.dialing import dial, dial_any

__all__ = [
    "AddressError",
    "BadEnvelopeError",
    "ConnectionGater",
    "DialError",
    "HardenedHost",
    "HostError",
    "HostLimits",
    "Identity",
    "IdentityError",
    "ListenError",
    "PeerAddress",
    "PeerStream",
    "ProtocolTakenError",
    "RelayLimits",
    "StreamHandler",
    "attach_protocols",
    "create_swarm_key",
    "dial",
    "dial_any",
    "host_addresses",
    "load_identity",
    "load_or_create_identity",
    "load_swarm_key",
    "new_identity",
    "open_envelope",
    "open_host",
    "open_stream",
    "parse_listen_address",
    "parse_peer_address",
    "sign_envelope",
]

# The module that defines each name.
_MODULES = {
    ".addresses": ("PeerAddress", "host_addresses", "parse_listen_address", "parse_peer_address"),
    ".builder": ("open_host",),
    ".errors": (
        "AddressError",
        "BadEnvelopeError",
        "DialError",
        "HostError",
        "IdentityError",
        "ListenError",
        "ProtocolTakenError",
    ),
    ".host": ("HardenedHost",),
    ".keys.envelopes": ("open_envelope", "sign_envelope"),
    ".keys.identity": ("Identity", "load_identity", "load_or_create_identity", "new_identity"),
    ".keys.swarm_key": ("create_swarm_key", "load_swarm_key"),
    ".limits": ("HostLimits", "RelayLimits"),
    ".streams.outbound": ("open_stream",),
    ".streams.protocols": ("StreamHandler", "attach_protocols"),
    ".streams.stream": ("PeerStream",),
    ".swarm.connection_gater": ("ConnectionGater",),
    ".swarm.dialing": ("dial", "dial_any"),
}


def __getattr__(name: str) -> Any:
    for module, names in _MODULES.items():
        if name in names:
            return getattr(importlib.import_module(module, __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
