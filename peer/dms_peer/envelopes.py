"""Signed envelopes: bytes that anyone can check, made and opened with libp2p's own envelope.

An envelope carries its author's public key, a payload type and a payload, signed together with a domain that keeps a
signature made for one use from counting in another (RFC 0002 of libp2p/specs, "Signed Envelopes"). py-libp2p's
`seal_record` and `consume_envelope` are for peer records only, so the parts beneath them are used.

Rules:
1. Nothing but EnvelopeError leaves `open_envelope`, whatever the bytes.
2. One envelope, one encoding: bytes that a second encoding would not give back are refused. Otherwise anybody could
   change an envelope (unknown fields, padded lengths) without touching its signature.
"""

from __future__ import annotations

from libp2p.peer.envelope import Envelope, make_unsigned, unmarshal_envelope
from libp2p.peer.id import ID

from .errors import EnvelopeError
from .identity import Identity

__all__ = ["MAX_ENVELOPE_SIZE", "open_envelope", "sign_envelope"]

# Bytes. Nothing that is signed here comes near; more is not even parsed.
MAX_ENVELOPE_SIZE = 256 * 1024

ASK_AGAIN = "ask its sender for a new one"


def sign_envelope(key: Identity, domain: str, payload_type: bytes, payload: bytes) -> bytes:
    """The payload in an envelope signed by `key`, as bytes for the wire. Raises ValueError above MAX_ENVELOPE_SIZE."""
    pair = key.key_pair()
    signature = pair.private_key.sign(make_unsigned(domain, payload_type, payload))
    raw = Envelope(pair.public_key, payload_type, payload, signature).marshal_envelope()
    if len(raw) > MAX_ENVELOPE_SIZE:
        raise ValueError(f"an envelope has at most {MAX_ENVELOPE_SIZE} bytes, not {len(raw)}")
    return raw


def open_envelope(raw: bytes, domain: str, payload_type: bytes) -> tuple[str, bytes]:
    """The peer id that signed `raw` for this domain, and its payload.

    Raises EnvelopeError and nothing else: `bad_envelope` (no envelope, or not in its one encoding), `wrong_type` (an
    envelope of something else), `bad_signature` (changed, or signed for another domain: the two cannot be told apart).
    """
    envelope = _parse(raw)
    if envelope.payload_type != payload_type:
        raise EnvelopeError("wrong_type", "the envelope holds something else", ASK_AGAIN)
    try:
        envelope.validate(domain)
    except Exception as error:
        # Verification raises differently for each type of key and each way of being wrong: all mean the same here.
        raise EnvelopeError(
            "bad_signature", "the signature does not match", "it was changed, or signed for another purpose"
        ) from error
    return ID.from_pubkey(envelope.public_key).to_base58(), envelope.raw_payload


def _parse(raw: bytes) -> Envelope:
    if len(raw) > MAX_ENVELOPE_SIZE:
        raise EnvelopeError("bad_envelope", f"{len(raw)} bytes are too many for an envelope", ASK_AGAIN)
    try:
        envelope = unmarshal_envelope(raw)
        encoded = envelope.marshal_envelope()
    except Exception as error:
        # protobuf, nacl, coincurve and cryptography each have their own way to say that bytes are no key or message.
        raise EnvelopeError("bad_envelope", "these bytes are no signed envelope", ASK_AGAIN) from error
    if encoded != raw:
        raise EnvelopeError("bad_envelope", "the envelope is not in its one encoding", ASK_AGAIN)
    return envelope
