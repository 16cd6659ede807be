"""The requester: finds free capacity, collects bids, and takes all of an ensemble or none of it.

Nothing here imports libp2p: it runs on a `PeerNetwork`.
"""

from __future__ import annotations

from .assignment import AssignmentRules
from .bids import ReceivedBid
from .collecting import BidCollection
from .discovering import Discovery, FoundPeer
from .limits import RequesterLimits
from .network import Broadcast, BroadcastBids, Candidate, CandidateSource, PeerNetwork, PeerObserver
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
    "Discovery",
    "FoundPeer",
    "NodeReasons",
    "OnProgress",
    "PeerNetwork",
    "PeerObserver",
    "ReceivedBid",
    "Requester",
    "RequesterLimits",
    "Reservation",
    "SearchProgress",
    "Strategy",
    "StrategyOptions",
    "strategy_named",
    "strategy_names",
]
