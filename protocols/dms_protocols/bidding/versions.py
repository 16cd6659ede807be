"""The differences between the versions of `/dms/bid`. In everything else they are the same.

1.1.0: the request digest depends on the value of a number and not on its encoding, so that 2.0 and 2 are the same. A
peer whose language has a single type of number (JavaScript) computes the digest from the decoded message, without
knowing how a number was encoded.
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
    """One version: its protocol id, and the function that computes the digest of an ensemble request's map."""

    protocol: str
    digest: Callable[[dict[str, Any]], bytes]


def _digest_of_worth(ensemble: dict[str, Any]) -> bytes:
    return hashlib.sha256(encode_deterministic(whole_numbers_as_integers(ensemble))).digest()


BID_1_0: Final = BidVersion(BID_PROTOCOL, request_digest)
BID_1_1: Final = BidVersion(BID_PROTOCOL_1_1, _digest_of_worth)

BID_VERSIONS: Final = (BID_1_1, BID_1_0)
"""All versions, the newest first."""


def bid_version(protocol: str) -> BidVersion:
    """The version of a protocol id. Streams without a negotiated protocol, which do not belong to libp2p, get the first
    version.
    """
    return next((version for version in BID_VERSIONS if version.protocol == protocol), BID_1_0)
