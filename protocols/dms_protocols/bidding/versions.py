"""What the versions of `/dms/bid` do differently; everything else is the same in all of them.

1.1.0: the request digest depends on the value of a number and not on its form, so that 2.0 and 2 are the same. A peer
whose language has one type of number (JavaScript) computes it from what it decoded, without knowing how a number came.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from ..messages.bid import request_digest
from ..protocol_ids import BID_PROTOCOL, BID_PROTOCOL_1_1
from ..wire.cbor import encode_deterministic, whole_numbers_as_integers

__all__ = ["BID_1_0", "BID_1_1", "BID_VERSIONS", "BidVersion", "bid_version"]


@dataclass(frozen=True, slots=True)
class BidVersion:
    """One version: its protocol id, and how the digest of an ensemble request's map is computed."""

    protocol: str
    digest: Callable[[dict[str, Any]], bytes]


def _digest_of_worth(ensemble: dict[str, Any]) -> bytes:
    return hashlib.sha256(encode_deterministic(whole_numbers_as_integers(ensemble))).digest()


BID_1_0: Final = BidVersion(BID_PROTOCOL, request_digest)
BID_1_1: Final = BidVersion(BID_PROTOCOL_1_1, _digest_of_worth)

BID_VERSIONS: Final = (BID_1_1, BID_1_0)
"""All of them, the newest first."""


def bid_version(protocol: str) -> BidVersion:
    """The version of a protocol id; the first one where none was agreed on, as on a stream that is not libp2p's."""
    return next((version for version in BID_VERSIONS if version.protocol == protocol), BID_1_0)
