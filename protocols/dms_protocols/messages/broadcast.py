"""Broadcast requests for bids, and `/dms/bid-delivery/1.0.0`, which carries the answers of providers.

The requester serves this protocol while it waits. A provider that can bid dials the requester, or uses an open
connection.
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
"""The domain of the signature, so that it is valid for broadcast requests only."""

BROADCAST_PAYLOAD_TYPE: Final = b"/dms/broadcast/1.0.0"

MAX_BROADCAST_SIZE: Final = 16 * 1024
"""The largest signed broadcast request, in bytes. Every peer has to carry it."""

LONGEST_BROADCAST: Final = 300.0
"""The longest time between the issue of a broadcast request and the deadline of its ensemble, in seconds."""


class BroadcastRequest(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A request for the bids of all peers. `ensemble`, `hold` and `ttl` are those of BidRequest.

    `want` is the number of answers that are enough. In a large network only about this many capable providers answer.
    """

    requester: PeerID
    addrs: Addrs
    ensemble: dict[str, Any]
    issued_at: float
    hold: Annotated[float, Meta(ge=0, le=3600)] = 0.0
    ttl: Annotated[float, Meta(ge=0)] = 0.0
    want: Annotated[int, Meta(ge=1, le=256)] = 16


class DeliverBidsRequest(Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="op", tag="deliver_bids"):
    """Delivers the caller's bids on a broadcast request, and its refusals of the other nodes.

    The answer is DeliverBidsAnswer, or the error `not_waiting` if the requester does not wait for bids.
    """

    ensemble_id: Annotated[str, Meta(min_length=1, max_length=128)]
    nonce: Amount
    bids: Annotated[tuple[bytes, ...], Meta(min_length=1, max_length=MAX_NODES)]
    refusals: Annotated[tuple[Refusal, ...], Meta(max_length=MAX_NODES)] = ()


class DeliverBidsAnswer(Struct, frozen=True):
    """The bids were accepted."""
