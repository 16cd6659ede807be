"""A libp2p peer that offers a machine's free compute and uses that of other machines.

`serve` attaches the DMS protocols to a libp2p host, and `open_requester` finds peers, collects bids and reserves. Each
name is loaded when it is first used, so that short commands start quickly.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dms_host import Identity, dial, host_addresses, load_or_create_identity, new_identity, open_host

    from .clients import open_allocations, open_bids, open_jobs, open_resources
    from .config.ensemble import parse_ensemble, read_ensemble_file
    from .connections.limits import ConnectionLimits
    from .connections.pool import ConnectionPool, open_connections
    from .discovery.gossip.limits import GossipLimits
    from .discovery.open import Discovery, open_discovery, open_requester
    from .discovery.settings import DiscoverySettings
    from .errors import AbortedError, DocumentError, PeerError, PolicyError, RefusedError, StoppedError, UsageError
    from .home.home import Home
    from .node import Node
    from .requesting.assignment import Assignment, AssignmentRules, Option
    from .requesting.bids import ReceivedBid
    from .requesting.collecting import BidCollection
    from .requesting.discovering import FoundPeer, FoundPeers
    from .requesting.errors import JobRequestError, ReservationError, ReservationLostError, StrategyError
    from .requesting.jobs import RemoteJob
    from .requesting.limits import RequesterLimits
    from .requesting.network import Candidate, CandidateSource, PeerNetwork
    from .requesting.node_jobs import NodeJob
    from .requesting.requester import Requester
    from .requesting.reservations import Reservation
    from .requesting.strategies import Strategy, StrategyOptions
    from .serving import serve
    from .signing import EnvelopeChecker, IdentitySigner

__all__ = [
    "AbortedError",
    "Assignment",
    "AssignmentRules",
    "BidCollection",
    "Candidate",
    "CandidateSource",
    "ConnectionLimits",
    "ConnectionPool",
    "Discovery",
    "DiscoverySettings",
    "DocumentError",
    "EnvelopeChecker",
    "FoundPeer",
    "FoundPeers",
    "GossipLimits",
    "Home",
    "Identity",
    "IdentitySigner",
    "JobRequestError",
    "Node",
    "NodeJob",
    "Option",
    "PeerError",
    "PeerNetwork",
    "PolicyError",
    "ReceivedBid",
    "RefusedError",
    "RemoteJob",
    "Requester",
    "RequesterLimits",
    "Reservation",
    "ReservationError",
    "ReservationLostError",
    "StoppedError",
    "Strategy",
    "StrategyError",
    "StrategyOptions",
    "UsageError",
    "dial",
    "host_addresses",
    "load_or_create_identity",
    "new_identity",
    "open_allocations",
    "open_bids",
    "open_connections",
    "open_discovery",
    "open_host",
    "open_jobs",
    "open_requester",
    "open_resources",
    "parse_ensemble",
    "read_ensemble_file",
    "serve",
]

# The module that defines each name.
_MODULES = {
    ".clients": ("open_allocations", "open_bids", "open_jobs", "open_resources"),
    ".config.ensemble": ("parse_ensemble", "read_ensemble_file"),
    ".connections.limits": ("ConnectionLimits",),
    ".connections.pool": ("ConnectionPool", "open_connections"),
    ".discovery.gossip.limits": ("GossipLimits",),
    ".discovery.open": ("Discovery", "open_discovery", "open_requester"),
    ".discovery.settings": ("DiscoverySettings",),
    ".errors": (
        "AbortedError",
        "DocumentError",
        "PeerError",
        "PolicyError",
        "RefusedError",
        "StoppedError",
        "UsageError",
    ),
    ".home.home": ("Home",),
    ".node": ("Node",),
    ".requesting.assignment": ("Assignment", "AssignmentRules", "Option"),
    ".requesting.bids": ("ReceivedBid",),
    ".requesting.collecting": ("BidCollection",),
    ".requesting.discovering": ("FoundPeer", "FoundPeers"),
    ".requesting.errors": ("JobRequestError", "ReservationError", "ReservationLostError", "StrategyError"),
    ".requesting.jobs": ("RemoteJob",),
    ".requesting.node_jobs": ("NodeJob",),
    ".requesting.limits": ("RequesterLimits",),
    ".requesting.network": ("Candidate", "CandidateSource", "PeerNetwork"),
    ".requesting.requester": ("Requester",),
    ".requesting.reservations": ("Reservation",),
    ".requesting.strategies": ("Strategy", "StrategyOptions"),
    ".serving": ("serve",),
    ".signing": ("EnvelopeChecker", "IdentitySigner"),
    "dms_host": ("Identity", "dial", "host_addresses", "load_or_create_identity", "new_identity", "open_host"),
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("dms-peer")
    for module, names in _MODULES.items():
        if name in names:
            return getattr(importlib.import_module(module, __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
