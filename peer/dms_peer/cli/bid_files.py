"""Files with signed bids: one bid is its envelope, several bids are a map of CBOR with the list `bids`.

An envelope begins with the tag of its first field, with which no map begins, so that the two cannot be confused.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from dms_protocols.errors import CBORError, EnvelopeError
from dms_protocols.messages.bid import MAX_NODES
from dms_protocols.wire.cbor import decode_map, encode_deterministic

__all__ = ["bids_document", "read_bids", "read_bids_file"]

_LARGEST: Final = 4 * 1024 * 1024
_ENVELOPE_BEGINS: Final = b"\x0a"
_KEY: Final = "bids"


def bids_document(envelopes: Sequence[bytes]) -> bytes:
    """The content of a file with these bids, at least one."""
    return envelopes[0] if len(envelopes) == 1 else encode_deterministic({_KEY: list(envelopes)})


def read_bids(content: bytes) -> tuple[bytes, ...]:
    """The envelopes in the content of a file, unopened. Raises EnvelopeError `bad_envelope`."""
    if content[:1] == _ENVELOPE_BEGINS:
        return (content,)
    try:
        envelopes = decode_map(content).get(_KEY)
    except CBORError:
        envelopes = None
    if not isinstance(envelopes, list) or not 1 <= len(envelopes) <= MAX_NODES:
        raise EnvelopeError("the file has no signed bids")
    if not all(isinstance(envelope, bytes) for envelope in envelopes):
        raise EnvelopeError("the file has entries that are not signed bids")
    return tuple(envelopes)


def read_bids_file(path: Path) -> tuple[bytes, ...]:
    """The envelopes in a file, unopened. Raises EnvelopeError and OSError. Blocks on disk."""
    with open(path, "rb") as file:
        content = file.read(_LARGEST + 1)
    if len(content) > _LARGEST:
        raise EnvelopeError(f"the file is larger than {_LARGEST} bytes")
    return read_bids(content)
