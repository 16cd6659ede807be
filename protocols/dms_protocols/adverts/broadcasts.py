"""Broadcast requests for bids: creating and checking them, and recognizing copies.

Bids on a broadcast have the digest of `/dms/bid/1.1.0`, whichever version the peers otherwise speak.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from dms_resources.bounded_dict import BoundedDict

from ..bidding.signing import EnvelopeOpener, Signer
from ..bidding.versions import BID_1_1
from ..errors import BroadcastError, CBORError, EnvelopeError, MessageError
from ..messages.bid import EnsembleRequest
from ..messages.broadcast import (
    BROADCAST_DOMAIN,
    BROADCAST_PAYLOAD_TYPE,
    LONGEST_BROADCAST,
    MAX_BROADCAST_SIZE,
    BroadcastRequest,
)
from ..wire.cbor import decode_map
from ..wire.conversion import from_map, sealed_bytes
from .adverts import CLOCK_SKEW

__all__ = ["BROADCAST_BIDS", "OpenedBroadcast", "SeenBroadcasts", "open_broadcast", "seal_broadcast"]

BROADCAST_BIDS: Final = BID_1_1
"""The version of `/dms/bid` that bids on a broadcast use."""


@dataclass(frozen=True, slots=True)
class OpenedBroadcast:
    """A broadcast request whose envelope was opened and checked, and its ensemble."""

    request: BroadcastRequest
    ensemble: EnsembleRequest

    @property
    def key(self) -> tuple[str, str, int]:
        """The requester, the ensemble id and the nonce. Together they identify a request."""
        return self.request.requester, self.ensemble.id, self.ensemble.nonce


def seal_broadcast(request: BroadcastRequest, signer: Signer) -> bytes:
    """The signed envelope of a request. Raises BroadcastError `bad_broadcast` if it has more than MAX_BROADCAST_SIZE
    bytes.
    """
    raw = signer.sign(BROADCAST_DOMAIN, BROADCAST_PAYLOAD_TYPE, sealed_bytes(request))
    if len(raw) > MAX_BROADCAST_SIZE:
        raise BroadcastError(f"a broadcast has at most {MAX_BROADCAST_SIZE} bytes, not {len(raw)}")
    return raw


def open_broadcast(raw: bytes, opener: EnvelopeOpener, *, now: float) -> OpenedBroadcast:
    """The request in an envelope, if the requester that it names has signed it and its deadline is after `now`.

    For any other bytes it raises EnvelopeError, or BroadcastError `bad_broadcast` or `broadcast_expired` (by the clock
    of this peer, the request has expired or lies in the future). It raises nothing else.
    """
    if len(raw) > MAX_BROADCAST_SIZE:
        raise BroadcastError(f"{len(raw)} bytes are too many for a broadcast")
    signed_by, payload = opener.open(raw, BROADCAST_DOMAIN, BROADCAST_PAYLOAD_TYPE)
    try:
        request = from_map(decode_map(payload), BroadcastRequest)
        ensemble = from_map(request.ensemble, EnsembleRequest)
    except (CBORError, MessageError) as error:
        raise EnvelopeError(f"the envelope holds no broadcast request: {error.message}") from None
    if request.requester != signed_by:
        raise BroadcastError(f"the request names {request.requester} and is signed by {signed_by}")
    if ensemble.deadline > request.issued_at + LONGEST_BROADCAST:
        raise BroadcastError(f"the deadline is more than {LONGEST_BROADCAST:g} s after the issue")
    if ensemble.deadline < now or request.issued_at > now + CLOCK_SKEW:
        raise BroadcastError("the deadline has passed, or it was issued in the future", code="broadcast_expired")
    return OpenedBroadcast(request, ensemble)


class SeenBroadcasts:
    """The requests that this peer has seen, until their deadlines. If there are more than `most`, the oldest is
    forgotten.
    """

    def __init__(self, most: int = 8192) -> None:
        self._seen: BoundedDict[tuple[str, str, int], float] = BoundedDict(most)

    def __len__(self) -> int:
        return len(self._seen)

    def add(self, broadcast: OpenedBroadcast, *, now: float) -> bool:
        """Remember a request. Returns whether it was new."""
        self._seen.drop_oldest_while(lambda deadline: deadline < now)
        if broadcast.key in self._seen:
            return False
        self._seen[broadcast.key] = broadcast.ensemble.deadline
        return True
