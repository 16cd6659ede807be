"""Bids that a requester received, with what is known of their providers."""

from __future__ import annotations

from dataclasses import dataclass

from dms_protocols.clients import SignedBid
from dms_protocols.messages.bid import Bid, Refusal
from dms_resources.components import FreeResources

__all__ = ["PeerAnswer", "ReceivedBid"]


@dataclass(frozen=True, slots=True)
class ReceivedBid:
    """One checked bid. A bid is always fresh: `received_at` (Unix seconds) is when it was made, but for its way here.

    `answer` numbers the answer that it came with: bids of one answer can be had together, those of two answers of one
    peer perhaps not. `round_trip` is in seconds, None for what was not asked directly. `free` is what the peer had free
    at `free_at` (Unix seconds), where that is known.
    """

    signed: SignedBid
    peer_id: str
    addrs: tuple[str, ...]
    source: str
    answer: int
    received_at: float
    round_trip: float | None = None
    free: FreeResources | None = None
    free_at: float | None = None

    @property
    def bid(self) -> Bid:
        """What is offered."""
        return self.signed.bid

    @property
    def node_id(self) -> str:
        """The node that it is for."""
        return self.signed.bid.node_id


@dataclass(frozen=True, slots=True)
class PeerAnswer:
    """What one peer answered at once: bids on some nodes and refusals of others."""

    peer_id: str
    number: int
    bids: tuple[ReceivedBid, ...]
    refusals: tuple[Refusal, ...]
