"""Test vectors of what both sides compute: signed envelopes, and digests of numbers that encoders often get wrong.

The envelopes are those of libp2p (RFC 0002, "Signed Envelopes"). They are assembled here from their parts, because this
package does not use libp2p. A test opens each of them with the code that a peer runs.
"""

from __future__ import annotations

from typing import Any, Final

from nacl.signing import SigningKey

from .bidding.versions import BID_1_1
from .messages.bid import request_digest
from .wire.cbor import encode_deterministic, whole_numbers_as_integers
from .wire.frames import encode_varint

__all__ = ["envelope_vectors", "number_vectors"]

_SEED: Final = bytes(range(32))
# Protobuf of a libp2p PublicKey: type Ed25519 (1), then the 32 bytes.
_KEY_HEAD: Final = bytes.fromhex("08011220")


def number_vectors() -> dict[str, Any]:
    """A request with values that encoders often get wrong, and its digest in each version of `/dms/bid`."""
    ensemble = {
        "id": "ensemble-é",
        "nonce": 2**63 - 1,
        "deadline": 1_700_000_005.5,
        "request": [{"node_id": "node-1", "resources": {"cpu": {"cores": 1.5}, "ram": {"size": 2**53 + 1}}}],
        "x-negative-zero": -0.0,
        "x-2^53-float": 9007199254740992.0,
        "x-below-2^53-float": 9007199254740991.0,
        "x-largest": 2**64 - 1,
        "x-negative": -(2**63),
        "x-tiny": 5e-324,
        "x-a-key-that-is-longer-than-twenty-three-bytes": True,
        "x-schlüssel": None,
    }
    return {
        "map_1_0_deterministic": encode_deterministic(ensemble).hex(),
        "map_1_1_deterministic": encode_deterministic(whole_numbers_as_integers(ensemble)).hex(),
        "request_digest": request_digest(ensemble).hex(),
        "request_digest_1_1": BID_1_1.digest(ensemble).hex(),
    }


def envelope_vectors(domain: str, payload_type: bytes, payload: bytes) -> dict[str, Any]:
    """The parts of an envelope, the bytes that are signed, the envelope, and invalid variants of it."""
    good = _envelope(domain, payload_type, payload)
    refused = (
        ("a changed signature", good[:-1] + bytes((good[-1] ^ 1,)), "bad_signature"),
        ("another domain", _envelope("dms-x", payload_type, payload), "bad_signature"),
        ("another payload type", _envelope(domain, b"/dms/other/1.0.0", payload), "bad_envelope"),
        ("a field that is not known", good + b"\x32\x01x", "bad_envelope"),
        ("cut short", good[:-1], "bad_envelope"),
    )
    return {
        "seed": _SEED.hex(),
        "public_key": bytes(SigningKey(_SEED).verify_key).hex(),
        "domain": domain,
        "payload_type": payload_type.decode(),
        "payload": payload.hex(),
        "signed_bytes": _signed_bytes(domain, payload_type, payload).hex(),
        "envelope": good.hex(),
        "refused": [{"meaning": meaning, "hex": raw.hex(), "code": code} for meaning, raw, code in refused],
    }


def _envelope(domain: str, payload_type: bytes, payload: bytes) -> bytes:
    key = SigningKey(_SEED)
    signature = key.sign(_signed_bytes(domain, payload_type, payload)).signature
    public_key = _KEY_HEAD + bytes(key.verify_key)
    # The fields 1, 2, 3 and 5 of the message Envelope. All of them are length-delimited.
    fields = ((b"\x0a", public_key), (b"\x12", payload_type), (b"\x1a", payload), (b"\x2a", signature))
    return b"".join(tag + encode_varint(len(value)) + value for tag, value in fields)


def _signed_bytes(domain: str, payload_type: bytes, payload: bytes) -> bytes:
    return b"".join(encode_varint(len(part)) + part for part in (domain.encode(), payload_type, payload))
