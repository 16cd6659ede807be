"""The interfaces that sign and open bids. Other packages implement them with libp2p's signed envelopes."""

from __future__ import annotations

from typing import Protocol

from ..errors import BidError, CBORError, EnvelopeError, MessageError
from ..messages.bid import BID_DOMAIN, BID_PAYLOAD_TYPE, Bid
from ..wire.cbor import decode_map
from ..wire.conversion import from_map, sealed_bytes

__all__ = ["EnvelopeOpener", "Signer", "open_bid", "seal_bid"]


class Signer(Protocol):
    """Signs with the key of one peer."""

    @property
    def peer_id(self) -> str:
        """The id of the peer whose key signs."""

    def sign(self, domain: str, payload_type: bytes, payload: bytes) -> bytes:
        """The bytes of an envelope around the payload, signed for this domain."""


class EnvelopeOpener(Protocol):
    """Checks the envelopes of any peer."""

    def open(self, raw: bytes, domain: str, payload_type: bytes) -> tuple[str, bytes]:
        """The peer id of the signer, and the payload.

        Raises EnvelopeError with code `bad_envelope` (unreadable, or of another payload type) or `bad_signature`.
        """


def seal_bid(bid: Bid, signer: Signer) -> bytes:
    """The bytes of a bid's signed envelope."""
    return signer.sign(BID_DOMAIN, BID_PAYLOAD_TYPE, sealed_bytes(bid))


def open_bid(raw: bytes, opener: EnvelopeOpener) -> Bid:
    """The bid in an envelope, signed by the provider that it names. Raises EnvelopeError or BidError."""
    signed_by, payload = opener.open(raw, BID_DOMAIN, BID_PAYLOAD_TYPE)
    try:
        bid = from_map(decode_map(payload), Bid)
    except (CBORError, MessageError) as error:
        raise EnvelopeError(f"the envelope holds no bid: {error.message}") from None
    if bid.provider != signed_by:
        raise BidError(f"the bid names {bid.provider} and is signed by {signed_by}")
    return bid
