"""The hardened libp2p host: one place that knows how to keep py-libp2p alive on the open internet.

Importing this package imports libp2p, which takes more than a second.
"""

from .addresses import PeerAddress, host_addresses, parse_listen_address, parse_peer_address
from .builder import HardenedHost, open_host
from .dialing import dial, dial_any
from .gate import ConnectionGate
from .limits import HostLimits, RelayLimits
from .outbound_streams import open_stream
from .protocols import StreamHandler, attach_protocols

__all__ = [
    "ConnectionGate",
    "HardenedHost",
    "HostLimits",
    "PeerAddress",
    "RelayLimits",
    "StreamHandler",
    "attach_protocols",
    "dial",
    "dial_any",
    "host_addresses",
    "open_host",
    "open_stream",
    "parse_listen_address",
    "parse_peer_address",
]
