"""The requester: finds free capacity, collects bids, and takes all nodes of an ensemble or none.

Nothing here imports libp2p: the requester runs on a `PeerNetwork`.

Each name is loaded when it is first used, because every command needs the errors but few need the rest.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .assignment import AssignmentRules
    from .bids import ReceivedBid
    from .collecting import BidCollection
    from .discovering import FoundPeer, FoundPeers
    from .errors import JobRequestError, ReservationError, ReservationLostError, StrategyError
    from .forwarding import Forward
    from .jobs import RemoteJob
    from .limits import RequesterLimits
    from .network import Broadcast, BroadcastBids, Candidate, CandidateSource, PeerNetwork, PeerObserver
    from .node_jobs import NodeJob
    from .progress import OnProgress, SearchProgress
    from .reasons import CountedReason, NodeReasons
    from .requester import Requester
    from .reservations import Reservation
    from .strategies import Strategy, StrategyOptions, strategy_named, strategy_names

__all__ = [
    "AssignmentRules",
    "BidCollection",
    "Broadcast",
    "BroadcastBids",
    "Candidate",
    "CandidateSource",
    "CountedReason",
    "Forward",
    "FoundPeer",
    "FoundPeers",
    "JobRequestError",
    "NodeJob",
    "NodeReasons",
    "OnProgress",
    "PeerNetwork",
    "PeerObserver",
    "ReceivedBid",
    "RemoteJob",
    "Requester",
    "RequesterLimits",
    "Reservation",
    "ReservationError",
    "ReservationLostError",
    "SearchProgress",
    "Strategy",
    "StrategyError",
    "StrategyOptions",
    "strategy_named",
    "strategy_names",
]

_MODULES = {
    "assignment": ("AssignmentRules",),
    "bids": ("ReceivedBid",),
    "collecting": ("BidCollection",),
    "discovering": (
        "FoundPeers",
        "FoundPeer",
    ),
    "errors": (
        "JobRequestError",
        "ReservationError",
        "ReservationLostError",
        "StrategyError",
    ),
    "forwarding": ("Forward",),
    "jobs": ("RemoteJob",),
    "node_jobs": ("NodeJob",),
    "limits": ("RequesterLimits",),
    "network": (
        "Broadcast",
        "BroadcastBids",
        "Candidate",
        "CandidateSource",
        "PeerNetwork",
        "PeerObserver",
    ),
    "progress": (
        "OnProgress",
        "SearchProgress",
    ),
    "reasons": (
        "CountedReason",
        "NodeReasons",
    ),
    "requester": ("Requester",),
    "reservations": ("Reservation",),
    "strategies": (
        "Strategy",
        "StrategyOptions",
        "strategy_named",
        "strategy_names",
    ),
}


def __getattr__(name: str) -> Any:
    for module, names in _MODULES.items():
        if name in names:
            return getattr(importlib.import_module(f".{module}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
