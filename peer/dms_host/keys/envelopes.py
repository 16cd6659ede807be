"""Signed envelopes that anyone can check, in libp2p's format.

An envelope carries its author's public key, a payload type and a payload. They are signed together with a domain, so
that a signature made for one purpose is not valid for another (RFC 0002 of libp2p/specs, "Signed Envelopes").

What breaks in py-libp2p (0.8.1): `pub_key_to_protobuf` leaves out the type of a key if it is 0 (RSA), although the
field is required (peer-ids specification, proto2). An envelope that is parsed and encoded again therefore differs from
what Go and JavaScript peers sign. `seal_record` and `consume_envelope` are for peer records only.
Measure: envelopes are encoded and decoded here, field by field; the library only reads and verifies keys.
Upstream: https://github.com/libp2p/py-libp2p/issues/1106 (peer ids of RSA keys).

Rules:
1. `open_envelope` raises nothing but BadEnvelopeError, whatever the bytes.
2. Each envelope has exactly one encoding: fields in order, shortest lengths, nothing unknown, the key as the
   specification writes it. Otherwise anybody could change an envelope without changing its signature.
3. Keys may be Ed25519 (all of ours are), RSA or secp256k1. py-libp2p cannot read ECDSA keys; they are refused with an
   error that names them.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final

from libp2p.crypto.ed25519 import Ed25519PublicKey
from libp2p.crypto.keys import PublicKey
from libp2p.crypto.serialization import key_type_to_public_key_deserializer as key_readers
from libp2p.peer.id import ID
from libp2p.utils.varint import encode_uvarint

from ..errors import BadEnvelopeError
from .identity import KEY_PREFIX, Identity
from .rsa_keys import bound_rsa_keys

__all__ = ["MAX_ENVELOPE_SIZE", "open_envelope", "sign_envelope"]

# Bytes. The signed messages here are far smaller. A larger envelope is not parsed.
MAX_ENVELOPE_SIZE = 256 * 1024

bound_rsa_keys()

ASK_AGAIN = "ask its sender for a new one"

# Protobuf of the message Envelope: 1 public_key, 2 payload_type, 3 payload, 5 signature, each with its length.
_KEY = b"\x0a\x24" + KEY_PREFIX
_TYPE, _PAYLOAD = b"\x12", b"\x1a"
_SIGNATURE = b"\x2a\x40"
_KEY_SIZE, _SIGNATURE_SIZE = 32, 64
_KEY_END = len(_KEY) + _KEY_SIZE
# A longer key is not read.
_LONGEST_KEY: Final = 2 * 1024
_KEY_TYPES: Final[dict[int, str]] = {0: "RSA", 1: "Ed25519", 2: "secp256k1"}
_ECDSA: Final = 3
_TAIL = len(_SIGNATURE) + _SIGNATURE_SIZE


def sign_envelope(key: Identity, domain: str, payload_type: bytes, payload: bytes) -> bytes:
    """The payload in an envelope signed by `key`, as bytes for the wire.

    Raises ValueError if the envelope would exceed MAX_ENVELOPE_SIZE.
    """
    pair, framed = key.key_pair(), encode_uvarint(len(payload)) + payload
    signature = pair.private_key.sign(_head(domain, payload_type) + framed)
    # Protobuf leaves out empty fields.
    field = _PAYLOAD + framed if payload else b""
    raw = b"".join((_KEY, pair.public_key.to_bytes(), _typed(payload_type), field, _SIGNATURE, signature))
    if len(raw) > MAX_ENVELOPE_SIZE:
        raise ValueError(f"an envelope has at most {MAX_ENVELOPE_SIZE} bytes, not {len(raw)}")
    return raw


@lru_cache(maxsize=64)
def _head(domain: str, payload_type: bytes) -> bytes:
    """The signed bytes in front of the payload's length."""
    name = domain.encode()
    return encode_uvarint(len(name)) + name + encode_uvarint(len(payload_type)) + payload_type


@lru_cache(maxsize=64)
def _typed(payload_type: bytes) -> bytes:
    return _TYPE + encode_uvarint(len(payload_type)) + payload_type


def open_envelope(raw: bytes, domain: str, payload_type: bytes) -> tuple[str, bytes]:
    """The peer id that signed `raw` for this domain, and its payload.

    Raises BadEnvelopeError and nothing else: `bad_envelope` (not an envelope, not in its one encoding, or with a key of
    an unsupported type), `wrong_type` (an envelope with another payload type), `bad_signature` (changed, or signed for
    another domain: these two cannot be distinguished).
    """
    opened = _take_apart(raw, domain, payload_type)
    if opened is not None:
        return opened
    if len(raw) > MAX_ENVELOPE_SIZE:
        raise BadEnvelopeError(f"{len(raw)} bytes are too many for an envelope", code="bad_envelope", hint=ASK_AGAIN)
    fields = _fields(raw)
    if fields.get(2, b"") != payload_type:
        raise BadEnvelopeError("the envelope holds something else", code="wrong_type", hint=ASK_AGAIN)
    key, payload = _read_key(fields.get(1, b"")), fields.get(3, b"")
    framed = encode_uvarint(len(payload)) + payload
    try:
        verified = key.verify(_head(domain, payload_type) + framed, fields.get(5, b""))
    except Exception as error:
        # Verification raises different errors for each type of key and each kind of fault. All of them mean the same
        # here.
        raise _unsigned() from error
    if not verified:
        raise _unsigned()
    return ID.from_pubkey(key).to_base58(), payload


def _unsigned() -> BadEnvelopeError:
    return BadEnvelopeError(
        "the signature does not match", code="bad_signature", hint="it was changed, or signed for another purpose"
    )


def _take_apart(raw: bytes, domain: str, payload_type: bytes) -> tuple[str, bytes] | None:
    """The signer and the payload of an envelope in the form that `sign_envelope` writes; None for any other form."""
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
    """The payload after its length; None if anything else follows."""
    for size in (1, 2, 3):
        if len(framed) > size and framed[:size] == encode_uvarint(len(framed) - size):
            return framed[size:]
    return None


@lru_cache(maxsize=256)
def _public_key(raw: bytes) -> tuple[Ed25519PublicKey, str]:
    """A key and its peer id. Computing them takes a third of the time of checking a signature."""
    key = Ed25519PublicKey.from_bytes(raw)
    return key, ID.from_pubkey(key).to_base58()


def _fields(raw: bytes) -> dict[int, bytes]:
    """The fields of an envelope by number. Raises BadEnvelopeError if they are not encoded as protobuf encodes them."""
    fields: dict[int, bytes] = {}
    left, last = memoryview(raw), 0
    while left:
        number, kind = left[0] >> 3, left[0] & 7
        size, value = _delimited(left[1:])
        # Numbers ascend, so that each field occurs once. Empty fields are left out.
        if kind != 2 or number not in (1, 2, 3, 5) or number <= last or not size or value is None:
            raise BadEnvelopeError("these bytes are no signed envelope", code="bad_envelope", hint=ASK_AGAIN)
        fields[number], last = bytes(value), number
        left = left[1 + size + len(value) :]
    if 1 not in fields:
        raise BadEnvelopeError("these bytes are no signed envelope", code="bad_envelope", hint=ASK_AGAIN)
    return fields


def _delimited(data: memoryview) -> tuple[int, memoryview | None]:
    """The number of bytes of the length, and the bytes that it delimits; None if the length is not positive, not in its
    shortest form, or wrong.
    """
    length = 0
    for size, byte in enumerate(data[:3], start=1):
        length |= (byte & 0x7F) << 7 * (size - 1)
        if byte < 0x80:
            whole = byte > 0 and len(data) >= size + length
            return size, data[size : size + length] if whole else None
    return 0, None


def _read_key(encoded: bytes) -> PublicKey:
    # Field 1 (type) is one byte. Field 2 (data) ends the message.
    kind = encoded[1] if len(encoded) > 1 and encoded[0] == 0x08 else None
    size, data = _delimited(memoryview(encoded)[3:])
    if kind is None or len(encoded) > _LONGEST_KEY or encoded[2:3] != b"\x12" or data is None:
        raise _bad_key("its key is not in its one encoding")
    if 3 + size + len(data) != len(encoded):
        raise _bad_key("its key is not in its one encoding")
    if kind not in _KEY_TYPES:
        name = "ECDSA" if kind == _ECDSA else str(kind)
        raise _bad_key(f"its key is of type {name}, which is not supported")
    try:
        key: PublicKey = key_readers[kind](bytes(data))  # type: ignore[index]  # an enumeration of integers
        again = key.to_bytes()
    except Exception as error:
        # nacl, coincurve and cryptography each raise different errors for invalid keys.
        raise _bad_key(f"its {_KEY_TYPES[kind]} key cannot be read") from error
    if again != data:
        raise _bad_key("its key is not in its one encoding")
    return key


def _bad_key(reason: str) -> BadEnvelopeError:
    hint = f"its signer needs a key of type {', '.join(_KEY_TYPES.values())}"
    return BadEnvelopeError(f"the envelope is not accepted: {reason}", code="bad_envelope", hint=hint)
