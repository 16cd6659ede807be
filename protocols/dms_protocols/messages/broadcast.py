"""A request for bids that is published to everybody, and `/dms/bid-delivery/1.0.0`, by which providers answer it.

The requester serves that protocol while it waits: whoever can bid dials it, or uses the connection that lives.
"""

from __future__ import annotations

from typing import Annotated, Any, Final

from msgspec import Meta, Struct

from dms_resources.components import Amount

from .adverts import Addrs, PeerID
from .bid import MAX_NODES, Refusal

__all__ = [
    "BROADCAST_DOMAIN",
    "BROADCAST_PAYLOAD_TYPE",
    "LONGEST_BROADCAST",
    "MAX_BROADCAST_SIZE",
    "BroadcastRequest",
    "DeliverBidsAnswer",
    "DeliverBidsRequest",
]

BROADCAST_DOMAIN: Final = "dms-broadcast"
"""Keeps a signature under a broadcast request from counting for anything else."""

BROADCAST_PAYLOAD_TYPE: Final = b"/dms/broadcast/1.0.0"

MAX_BROADCAST_SIZE: Final = 16 * 1024
"""Bytes of a signed broadcast request, which everybody has to carry."""

LONGEST_BROADCAST: Final = 300.0
"""Seconds from the issue of a broadcast request to the deadline of its ensemble."""


class BroadcastRequest(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A request for bids of everybody. The fields `ensemble`, `hold` and `ttl` are those of BidRequest.

    `want` is how many answers are enough: in a large network only about so many able providers give one.
    """

    requester: PeerID
    addrs: Addrs
    ensemble: dict[str, Any]
    issued_at: float
    hold: Annotated[float, Meta(ge=0, le=3600)] = 0.0
    ttl: Annotated[float, Meta(ge=0)] = 0.0
    want: Annotated[int, Meta(ge=1, le=256)] = 16


class DeliverBidsRequest(Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="op", tag="deliver_bids"):
    """Brings the caller's bids on a broadcast request, and its refusals of the other nodes.

    Answered with DeliverBidsAnswer, or `not_waiting` where nobody waits for answers (any more).
    """

    ensemble_id: Annotated[str, Meta(min_length=1, max_length=128)]
    nonce: Amount
    bids: Annotated[tuple[bytes, ...], Meta(min_length=1, max_length=MAX_NODES)]
    refusals: Annotated[tuple[Refusal, ...], Meta(max_length=MAX_NODES)] = ()


class DeliverBidsAnswer(Struct, frozen=True):
    """The bids were taken."""
