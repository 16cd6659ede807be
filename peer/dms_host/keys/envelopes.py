"""Signed envelopes: bytes that anyone can check, the same as libp2p's own.

An envelope carries its author's public key, a payload type and a payload, signed together with a domain that keeps a
signature made for one use from counting in another (RFC 0002 of libp2p/specs, "Signed Envelopes"). py-libp2p's
`seal_record` and `consume_envelope` are for peer records only. The envelopes of Ed25519 keys, which all of ours are,
are put together and taken apart here, which costs a few microseconds instead of tens; those of other keys, and whatever
looks odd, are left to the library.

Rules:
1. Nothing but EnvelopeError leaves `open_envelope`, whatever the bytes.
2. One envelope, one encoding: bytes that a second encoding would not give back are refused. Otherwise anybody could
   change an envelope (unknown fields, padded lengths) without touching its signature.
"""

from __future__ import annotations

from functools import lru_cache

from libp2p.crypto.ed25519 import Ed25519PublicKey
from libp2p.peer.envelope import Envelope, unmarshal_envelope
from libp2p.peer.id import ID
from libp2p.utils.varint import encode_uvarint

from ..errors import BadEnvelopeError
from .identity import KEY_PREFIX, Identity
from .rsa_keys import bound_rsa_keys

__all__ = ["MAX_ENVELOPE_SIZE", "open_envelope", "sign_envelope"]

# Bytes. Nothing that is signed here comes near; more is not even parsed.
MAX_ENVELOPE_SIZE = 256 * 1024

bound_rsa_keys()

ASK_AGAIN = "ask its sender for a new one"

# Protobuf of the message Envelope: 1 public_key, 2 payload_type, 3 payload, 5 signature, each with its length.
_KEY = b"\x0a\x24" + KEY_PREFIX
_TYPE, _PAYLOAD = b"\x12", b"\x1a"
_SIGNATURE = b"\x2a\x40"
_KEY_SIZE, _SIGNATURE_SIZE = 32, 64
_KEY_END = len(_KEY) + _KEY_SIZE
_TAIL = len(_SIGNATURE) + _SIGNATURE_SIZE


def sign_envelope(key: Identity, domain: str, payload_type: bytes, payload: bytes) -> bytes:
    """The payload in an envelope signed by `key`, as bytes for the wire.

    Raises ValueError above MAX_ENVELOPE_SIZE.
    """
    pair, framed = key.key_pair(), encode_uvarint(len(payload)) + payload
    signature = pair.private_key.sign(_head(domain, payload_type) + framed)
    # Protobuf leaves out what is empty.
    field = _PAYLOAD + framed if payload else b""
    raw = b"".join((_KEY, pair.public_key.to_bytes(), _typed(payload_type), field, _SIGNATURE, signature))
    if len(raw) > MAX_ENVELOPE_SIZE:
        raise ValueError(f"an envelope has at most {MAX_ENVELOPE_SIZE} bytes, not {len(raw)}")
    return raw


@lru_cache(maxsize=64)
def _head(domain: str, payload_type: bytes) -> bytes:
    """What is signed in front of the payload's length."""
    name = domain.encode()
    return encode_uvarint(len(name)) + name + encode_uvarint(len(payload_type)) + payload_type


@lru_cache(maxsize=64)
def _typed(payload_type: bytes) -> bytes:
    return _TYPE + encode_uvarint(len(payload_type)) + payload_type


def open_envelope(raw: bytes, domain: str, payload_type: bytes) -> tuple[str, bytes]:
    """The peer id that signed `raw` for this domain, and its payload.

    Raises EnvelopeError and nothing else: `bad_envelope` (no envelope, or not in its one encoding), `wrong_type` (an
    envelope of something else), `bad_signature` (changed, or signed for another domain: the two cannot be told apart).
    """
    opened = _take_apart(raw, domain, payload_type)
    if opened is not None:
        return opened
    envelope = _parse(raw)
    if envelope.payload_type != payload_type:
        raise BadEnvelopeError("the envelope holds something else", code="wrong_type", hint=ASK_AGAIN)
    try:
        envelope.validate(domain)
    except Exception as error:
        # Verification raises differently for each type of key and each way of being wrong: all mean the same here.
        raise BadEnvelopeError(
            "the signature does not match", code="bad_signature", hint="it was changed, or signed for another purpose"
        ) from error
    return ID.from_pubkey(envelope.public_key).to_base58(), envelope.raw_payload


def _take_apart(raw: bytes, domain: str, payload_type: bytes) -> tuple[str, bytes] | None:
    """The signer and the payload of an envelope as `sign_envelope` makes it; None for any other and any doubt."""
    before, after = _KEY_END + len(_typed(payload_type)) + len(_PAYLOAD), len(raw) - _TAIL
    if not before < after <= MAX_ENVELOPE_SIZE or raw[: len(_KEY)] != _KEY:
        return None
    if raw[_KEY_END:before] != _typed(payload_type) + _PAYLOAD or raw[after : after + len(_SIGNATURE)] != _SIGNATURE:
        return None
    framed_payload = raw[before:after]
    payload = _unframed(framed_payload)
    key, peer_id = _public_key(raw[len(_KEY) : _KEY_END])
    if payload is None or not key.verify(_head(domain, payload_type) + framed_payload, raw[-_SIGNATURE_SIZE:]):
        return None
    return peer_id, payload


def _unframed(framed: bytes) -> bytes | None:
    """The payload behind its length, if that is all that there is."""
    for size in (1, 2, 3):
        if len(framed) > size and framed[:size] == encode_uvarint(len(framed) - size):
            return framed[size:]
    return None


@lru_cache(maxsize=256)
def _public_key(raw: bytes) -> tuple[Ed25519PublicKey, str]:
    """A key and its peer id, which costs a third of a signature's check."""
    key = Ed25519PublicKey.from_bytes(raw)
    return key, ID.from_pubkey(key).to_base58()


def _parse(raw: bytes) -> Envelope:
    if len(raw) > MAX_ENVELOPE_SIZE:
        raise BadEnvelopeError(f"{len(raw)} bytes are too many for an envelope", code="bad_envelope", hint=ASK_AGAIN)
    try:
        envelope = unmarshal_envelope(raw)
        encoded = envelope.marshal_envelope()
    except Exception as error:
        # protobuf, nacl, coincurve and cryptography each have their own way to say that bytes are no key or message.
        raise BadEnvelopeError("these bytes are no signed envelope", code="bad_envelope", hint=ASK_AGAIN) from error
    if encoded != raw:
        raise BadEnvelopeError("the envelope is not in its one encoding", code="bad_envelope", hint=ASK_AGAIN)
    return envelope
