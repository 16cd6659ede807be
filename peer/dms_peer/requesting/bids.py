"""Bids that a requester received, with what is known about their providers."""

from __future__ import annotations

from dataclasses import dataclass

from dms_protocols.clients import SignedBid
from dms_protocols.messages.bid import Bid, Refusal
from dms_resources.components import FreeResources

__all__ = ["PeerAnswer", "ReceivedBid"]


@dataclass(frozen=True, slots=True)
class ReceivedBid:
    """One checked bid. Bids are always fresh: apart from its travel time, a bid was made at `received_at` (Unix
    seconds).

    `answer` is the number of the answer that contained the bid: bids of one answer can be committed together, bids of
    two answers of one peer perhaps not. `round_trip` is in seconds, None if the peer was not queried directly. `free`
    is what the peer had free at `free_at` (Unix seconds), if known.
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
        """The bid itself."""
        return self.signed.bid

    @property
    def node_id(self) -> str:
        """The node of the bid."""
        return self.signed.bid.node_id


@dataclass(frozen=True, slots=True)
class PeerAnswer:
    """One answer of a peer: bids on some nodes and refusals of others."""

    peer_id: str
    number: int
    bids: tuple[ReceivedBid, ...]
    refusals: tuple[Refusal, ...]
