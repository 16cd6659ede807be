"""Checks that a bid answers the request, by whichever way it arrived."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..errors import BidError
from ..messages.bid import Bid, EnsembleRequest, Refusal, bid_lease_id
from .signing import EnvelopeOpener, open_bid
from .versions import BidVersion

__all__ = ["BidChecker", "Bids", "SignedBid"]


@dataclass(frozen=True, slots=True)
class SignedBid:
    """A checked bid and the envelope to commit it with."""

    bid: Bid
    envelope: bytes


@dataclass(frozen=True, slots=True)
class Bids:
    """One provider's answer: bids on some nodes and refusals of the others."""

    bids: tuple[SignedBid, ...]
    refusals: tuple[Refusal, ...]


@dataclass(frozen=True, slots=True)
class BidChecker:
    """Opens bids for one requester. `clock` returns the Unix time in seconds.

    A bid is accepted if its envelope is valid, the provider signed it, and it is for this requester and this request
    and has not expired. Otherwise `open` raises BidError `bad_bid`, `not_my_bid`, `not_your_bid` or `bid_expired`, or
    EnvelopeError.
    """

    opener: EnvelopeOpener
    requester: str
    clock: Callable[[], float]

    def open(
        self, raw: bytes, ensemble: EnsembleRequest, asked: dict[str, Any], *, provider: str, version: BidVersion
    ) -> SignedBid:
        """The provider's bid on the request that was sent as the map `asked`, in this version of the protocol."""
        bid = open_bid(raw, self.opener)
        if bid.provider != provider:
            raise BidError(f"the bid is {bid.provider}'s, not {provider}'s", code="not_my_bid")
        if bid.requester != self.requester:
            raise BidError("the bid is for another requester", code="not_your_bid")
        digest = version.digest(asked)
        node = next((node for node in ensemble.request if node.node_id == bid.node_id), None)
        if node is None or bid.request_digest != digest:
            raise BidError("the bid answers another request")
        lease_id = bid_lease_id(requester=self.requester, digest=digest, node_id=bid.node_id, provider=provider)
        if (bid.lease_id, bid.demand, bid.public_ports) != (lease_id, node.resources, node.public_ports):
            raise BidError("the bid offers something else than was requested")
        if bid.valid_until < self.clock():
            # The bid has just been made, so the clocks of the two machines differ.
            ago = self.clock() - bid.valid_until
            raise BidError(
                "the bid was no longer valid when it arrived: "
                f"the clock of this machine is at least {ago:.0f} s ahead of the provider's",
                code="bid_expired",
                hint="set the clock of one of them",
            )
        return SignedBid(bid, raw)
