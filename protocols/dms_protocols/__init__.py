"""The DMS protocols on any byte stream: frames, messages, services and clients. This package does not use libp2p.

A service is made of `Operations` and answers a stream with `serve_stream`. A client sends its requests through
`open_client`. Each name is loaded when it is first used, so that short commands start quickly.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .adverts.adverts import AdvertTable, open_advert, seal_advert
    from .adverts.exchange import PeersClient, advert_exchange_operations
    from .allocations import allocation_operations
    from .bidding.checks import BidChecker, Bids, SignedBid
    from .bidding.policies import AsyncPolicy, Decision, NodeOffer, PeerList, Policy, PolicyRequest
    from .bidding.prices import PricesPerHour
    from .bidding.service import BidTerms, bid_operations
    from .bidding.signing import EnvelopeOpener, Signer
    from .clients import AllocationClient, BidClient, ResourcesClient
    from .errors import (
        AccessError,
        AdvertError,
        AnswerTooLargeError,
        BidError,
        BroadcastError,
        BusyError,
        CBORError,
        ConnectionLostError,
        DeadlineExceededError,
        EnvelopeError,
        FrameError,
        InternalError,
        JobError,
        MessageError,
        ProtocolError,
        RemoteError,
        UnknownOperationError,
    )
    from .jobs.client import JOB_CLIENT_LIMITS, JobClient
    from .jobs.service import JobService, job_limits, job_operations
    from .jobs.tunnels import TunnelLimits, TunnelsInUse, open_tunnel, serve_tunnel
    from .messages.adverts import CapacityAdvert
    from .messages.bid import (
        Bid,
        BidAnswer,
        EnsembleRequest,
        GeneralRequirements,
        Location,
        NodeRequest,
        Place,
        Price,
        Reason,
        Refusal,
    )
    from .messages.job import Execution, Job, JobExit, JobFile, JobOutput, JobPort, JobStatus, job_digest
    from .protocol_ids import (
        ALLOCATION_PROTOCOL,
        BID_DELIVERY_PROTOCOL,
        BID_PROTOCOL,
        BID_PROTOCOL_1_1,
        JOB_PROTOCOL,
        KADEMLIA_PROTOCOL,
        PEERS_PROTOCOL,
        RESOURCES_PROTOCOL,
        TUNNEL_PROTOCOL,
    )
    from .queries import resource_operations
    from .rpc.access import Access, AccessRule, AccessRules
    from .rpc.blocking_client import BlockingClient
    from .rpc.client import Client, open_client
    from .rpc.client_limits import ClientLimits
    from .rpc.limits import ServiceLimits, Share, Shares
    from .rpc.operations import Caller, Operation, Operations
    from .rpc.service import refuse_stream, serve_stream
    from .rpc.shares import SharesInUse
    from .tokens.biscuits import attenuate_token, create_token, open_token
    from .tokens.checks import TokenChecker
    from .tokens.grants import Grant, GrantTerms

__all__ = [
    "ALLOCATION_PROTOCOL",
    "BID_DELIVERY_PROTOCOL",
    "BID_PROTOCOL",
    "BID_PROTOCOL_1_1",
    "JOB_CLIENT_LIMITS",
    "JOB_PROTOCOL",
    "KADEMLIA_PROTOCOL",
    "PEERS_PROTOCOL",
    "RESOURCES_PROTOCOL",
    "TUNNEL_PROTOCOL",
    "Access",
    "AccessError",
    "AccessRule",
    "AccessRules",
    "AdvertError",
    "AdvertTable",
    "AllocationClient",
    "AnswerTooLargeError",
    "AsyncPolicy",
    "Bid",
    "BidAnswer",
    "BidChecker",
    "BidClient",
    "BidError",
    "BidTerms",
    "Bids",
    "BlockingClient",
    "BroadcastError",
    "BusyError",
    "CBORError",
    "Caller",
    "CapacityAdvert",
    "Client",
    "ClientLimits",
    "ConnectionLostError",
    "DeadlineExceededError",
    "Decision",
    "EnsembleRequest",
    "EnvelopeError",
    "EnvelopeOpener",
    "Execution",
    "FrameError",
    "GeneralRequirements",
    "Grant",
    "GrantTerms",
    "InternalError",
    "Job",
    "JobClient",
    "JobError",
    "JobExit",
    "JobFile",
    "JobOutput",
    "JobPort",
    "JobService",
    "JobStatus",
    "Location",
    "MessageError",
    "NodeOffer",
    "NodeRequest",
    "Operation",
    "Operations",
    "PeerList",
    "PeersClient",
    "Place",
    "Policy",
    "PolicyRequest",
    "Price",
    "PricesPerHour",
    "ProtocolError",
    "Reason",
    "Refusal",
    "RemoteError",
    "ResourcesClient",
    "ServiceLimits",
    "Share",
    "Shares",
    "SharesInUse",
    "SignedBid",
    "Signer",
    "TokenChecker",
    "TunnelLimits",
    "TunnelsInUse",
    "UnknownOperationError",
    "advert_exchange_operations",
    "allocation_operations",
    "attenuate_token",
    "bid_operations",
    "create_token",
    "job_digest",
    "job_limits",
    "job_operations",
    "open_advert",
    "open_client",
    "open_token",
    "open_tunnel",
    "refuse_stream",
    "resource_operations",
    "seal_advert",
    "serve_stream",
    "serve_tunnel",
]

# The module that defines each name.
_MODULES = {
    ".adverts.adverts": ("AdvertTable", "open_advert", "seal_advert"),
    ".adverts.exchange": ("PeersClient", "advert_exchange_operations"),
    ".allocations": ("allocation_operations",),
    ".bidding.checks": ("BidChecker", "Bids", "SignedBid"),
    ".bidding.policies": ("AsyncPolicy", "Decision", "NodeOffer", "PeerList", "Policy", "PolicyRequest"),
    ".bidding.prices": ("PricesPerHour",),
    ".bidding.service": ("BidTerms", "bid_operations"),
    ".bidding.signing": ("EnvelopeOpener", "Signer"),
    ".clients": ("AllocationClient", "BidClient", "ResourcesClient"),
    ".errors": (
        "AccessError",
        "AdvertError",
        "AnswerTooLargeError",
        "BidError",
        "BroadcastError",
        "BusyError",
        "CBORError",
        "ConnectionLostError",
        "DeadlineExceededError",
        "EnvelopeError",
        "FrameError",
        "InternalError",
        "JobError",
        "MessageError",
        "ProtocolError",
        "RemoteError",
        "UnknownOperationError",
    ),
    ".jobs.client": ("JOB_CLIENT_LIMITS", "JobClient"),
    ".jobs.service": ("JobService", "job_limits", "job_operations"),
    ".messages.adverts": ("CapacityAdvert",),
    ".messages.bid": (
        "Bid",
        "BidAnswer",
        "EnsembleRequest",
        "GeneralRequirements",
        "Location",
        "NodeRequest",
        "Place",
        "Price",
        "Reason",
        "Refusal",
    ),
    ".messages.job": (
        "Execution",
        "Job",
        "JobExit",
        "JobFile",
        "JobOutput",
        "JobPort",
        "JobStatus",
        "job_digest",
    ),
    ".protocol_ids": (
        "ALLOCATION_PROTOCOL",
        "BID_DELIVERY_PROTOCOL",
        "BID_PROTOCOL",
        "BID_PROTOCOL_1_1",
        "JOB_PROTOCOL",
        "KADEMLIA_PROTOCOL",
        "PEERS_PROTOCOL",
        "RESOURCES_PROTOCOL",
        "TUNNEL_PROTOCOL",
    ),
    ".queries": ("resource_operations",),
    ".rpc.access": ("Access", "AccessRule", "AccessRules"),
    ".rpc.blocking_client": ("BlockingClient",),
    ".rpc.client": ("Client", "open_client"),
    ".rpc.client_limits": ("ClientLimits",),
    ".rpc.limits": ("ServiceLimits", "Share", "Shares"),
    ".rpc.operations": ("Caller", "Operation", "Operations"),
    ".rpc.service": ("refuse_stream", "serve_stream"),
    ".rpc.shares": ("SharesInUse",),
    ".tokens.biscuits": ("attenuate_token", "create_token", "open_token"),
    ".tokens.checks": ("TokenChecker",),
    ".tokens.grants": ("Grant", "GrantTerms"),
    ".jobs.tunnels": ("TunnelLimits", "TunnelsInUse", "open_tunnel", "serve_tunnel"),
}


def __getattr__(name: str) -> Any:
    for module, names in _MODULES.items():
        if name in names:
            return getattr(importlib.import_module(module, __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
