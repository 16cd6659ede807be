import hashlib

import base58
import pytest
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given, settings
from hypothesis import strategies as st
from libp2p.crypto import secp256k1
from libp2p.peer.envelope import Envelope, make_unsigned, unmarshal_envelope
from libp2p.peer.id import ID
from libp2p.utils.varint import encode_uvarint

from dms_host.errors import BadEnvelopeError
from dms_host.keys.envelopes import MAX_ENVELOPE_SIZE, open_envelope, sign_envelope
from dms_host.keys.identity import new_identity

KEY = new_identity(bytes(range(32)))
DOMAIN, TYPE = "dms-bid", b"/dms/bid"
payloads = st.binary(max_size=300)


def refusal(raw: bytes, domain: str = DOMAIN, payload_type: bytes = TYPE) -> str:
    with pytest.raises(BadEnvelopeError) as caught:
        open_envelope(raw, domain, payload_type)
    return caught.value.code


@given(payload=payloads)
def test_what_was_signed_comes_back_with_its_signer(payload: bytes) -> None:
    assert open_envelope(sign_envelope(KEY, DOMAIN, TYPE, payload), DOMAIN, TYPE) == (KEY.peer_id, payload)


@given(payload=payloads)
def test_libp2p_itself_verifies_the_bytes(payload: bytes) -> None:
    envelope = unmarshal_envelope(sign_envelope(KEY, DOMAIN, TYPE, payload))
    envelope.validate(DOMAIN)
    assert (envelope.payload_type, envelope.raw_payload) == (TYPE, payload)
    assert ID.from_pubkey(envelope.public_key).to_base58() == KEY.peer_id
    with pytest.raises(ValueError, match="signature"):
        envelope.validate("another domain")


@given(payload=payloads, payload_type=st.binary(min_size=1, max_size=200), domain=st.text(min_size=1, max_size=200))
def test_the_bytes_are_those_of_libp2p(payload: bytes, payload_type: bytes, domain: str) -> None:
    pair = KEY.key_pair()
    signature = pair.private_key.sign(make_unsigned(domain, payload_type, payload))
    theirs = Envelope(pair.public_key, payload_type, payload, signature).marshal_envelope()
    assert sign_envelope(KEY, domain, payload_type, payload) == theirs
    assert open_envelope(theirs, domain, payload_type) == (KEY.peer_id, payload)


@pytest.mark.parametrize("size", [0, 1, 127, 128, 16383, 16384, MAX_ENVELOPE_SIZE - 200])
def test_a_payload_of_any_length_comes_back(size: int) -> None:
    payload = b"\x80" * size
    raw = sign_envelope(KEY, DOMAIN, TYPE, payload)
    assert raw == unmarshal_envelope(raw).marshal_envelope()
    assert open_envelope(raw, DOMAIN, TYPE) == (KEY.peer_id, payload)


def test_the_envelope_of_another_kind_of_key_is_left_to_libp2p() -> None:
    pair = secp256k1.create_new_key_pair(bytes(range(1, 33)))
    signature = pair.private_key.sign(make_unsigned(DOMAIN, TYPE, b"payload"))
    raw = Envelope(pair.public_key, TYPE, b"payload", signature).marshal_envelope()
    assert open_envelope(raw, DOMAIN, TYPE) == (ID.from_pubkey(pair.public_key).to_base58(), b"payload")
    assert refusal(raw, domain="dms-lease") == "bad_signature"


def test_a_padded_length_is_one_encoding_too_many() -> None:
    raw = sign_envelope(KEY, DOMAIN, TYPE, b"payload")
    padded = raw.replace(b"\x1a\x07payload", b"\x1a\x87\x00payload")
    unmarshal_envelope(padded).validate(DOMAIN)
    assert refusal(padded) == "bad_envelope"


def test_every_flipped_bit_is_noticed() -> None:
    raw = sign_envelope(KEY, DOMAIN, TYPE, b"24 GiB until noon")
    for bit in range(8 * len(raw)):
        flipped = bytearray(raw)
        flipped[bit // 8] ^= 1 << bit % 8
        assert refusal(bytes(flipped)) in ("bad_envelope", "bad_signature", "wrong_type")


@given(payload=payloads, data=st.data())
def test_a_flipped_bit_in_any_envelope_is_noticed(payload: bytes, data: st.DataObject) -> None:
    raw = bytearray(sign_envelope(KEY, DOMAIN, TYPE, payload))
    bit = data.draw(st.integers(0, 8 * len(raw) - 1))
    raw[bit // 8] ^= 1 << bit % 8
    refusal(bytes(raw))


@settings(max_examples=300)
@given(raw=st.binary(max_size=400))
def test_random_bytes_are_refused_and_nothing_else(raw: bytes) -> None:
    assert refusal(raw) in ("bad_envelope", "wrong_type", "bad_signature")


@given(key_type=st.integers(0, 5), key=st.binary(max_size=80), signature=st.binary(max_size=80))
def test_envelopes_of_garbage_keys_are_refused_and_nothing_else(key_type: int, key: bytes, signature: bytes) -> None:
    def field(number: int, value: bytes) -> bytes:
        return bytes([number << 3 | 2, len(value)]) + value

    public_key = bytes([8, key_type]) + field(2, key)
    refusal(field(1, public_key) + field(2, TYPE) + field(3, b"x") + field(5, signature))


def test_two_encodings_of_one_envelope_are_one_too_many() -> None:
    raw = sign_envelope(KEY, DOMAIN, TYPE, b"payload")
    unknown_field = raw + b"\x7a\x01x"
    second_payload_first = b"\x1a\x05other" + raw
    for changed in (unknown_field, second_payload_first):
        unmarshal_envelope(changed).validate(DOMAIN)
        assert refusal(changed) == "bad_envelope"


def test_the_reason_is_named_where_it_can_be_told() -> None:
    raw = sign_envelope(KEY, DOMAIN, TYPE, b"payload")
    assert refusal(raw, domain="dms-lease") == "bad_signature"
    assert refusal(raw, payload_type=b"/dms/lease") == "wrong_type"
    assert refusal(b"") == "bad_envelope"
    assert refusal(bytes(MAX_ENVELOPE_SIZE + 1)) == "bad_envelope"


def test_what_would_not_be_opened_is_not_signed() -> None:
    with pytest.raises(ValueError, match="at most"):
        sign_envelope(KEY, DOMAIN, TYPE, bytes(MAX_ENVELOPE_SIZE))


# Keys of other types, encoded as Go and JavaScript do it


def field(number: int, value: bytes) -> bytes:
    return bytes([number << 3 | 2]) + encode_uvarint(len(value)) + value


def envelope(public_key: bytes, sign) -> bytes:
    return field(1, public_key) + field(2, TYPE) + field(3, b"payload") + field(5, sign(SIGNED))


SIGNED = make_unsigned(DOMAIN, TYPE, b"payload")


def rsa_parts(bits: int = 2048):
    """The DER encoding of an RSA key, and a function that signs with it."""
    key = generate_private_key(65537, bits)
    der = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return der, lambda data: key.sign(data, PKCS1v15(), SHA256())


@pytest.mark.parametrize("bits", [2048, 4096])
def test_an_envelope_of_an_rsa_key_is_opened(bits: int) -> None:
    der, sign = rsa_parts(bits)
    raw = envelope(b"\x08\x00" + field(2, der), sign)
    signer, payload = open_envelope(raw, DOMAIN, TYPE)
    # The SHA-256 multihash of the key as the specification encodes it.
    assert base58.b58decode(signer) == b"\x12\x20" + hashlib.sha256(b"\x08\x00" + field(2, der)).digest()
    assert payload == b"payload"
    assert refusal(raw, domain="dms-lease") == "bad_signature"
    assert refusal(raw[:-1] + bytes([raw[-1] ^ 1])) == "bad_signature"


def test_an_rsa_key_is_accepted_in_its_one_encoding_only() -> None:
    der, sign = rsa_parts()
    right = b"\x08\x00" + field(2, der)
    for wrong in (
        field(2, der),
        field(2, der) + b"\x08\x00",
        b"\x08\x80\x00" + field(2, der),
        right + b"\x1a\x00",
        right + field(2, der),
        b"\x08\x00" + field(2, der + b"\x00"),
        b"\x08\x01" + field(2, der),
        right[:-1],
    ):
        assert refusal(envelope(wrong, sign)) == "bad_envelope"


def test_a_secp256k1_key_is_accepted_compressed_only() -> None:
    pair = secp256k1.create_new_key_pair(bytes(range(1, 33)))
    compressed = pair.public_key.to_bytes()
    plain = pair.public_key.impl.format(compressed=False)
    raw = envelope(b"\x08\x02" + field(2, compressed), pair.private_key.sign)
    assert open_envelope(raw, DOMAIN, TYPE) == (ID.from_pubkey(pair.public_key).to_base58(), b"payload")
    assert refusal(envelope(b"\x08\x02" + field(2, plain), pair.private_key.sign)) == "bad_envelope"


@pytest.mark.parametrize(("kind", "name"), [(3, "ECDSA"), (7, "7")])
def test_a_key_of_a_type_that_is_not_supported_is_named(kind: int, name: str) -> None:
    with pytest.raises(BadEnvelopeError, match=f"of type {name}, which is not supported") as caught:
        open_envelope(envelope(bytes([8, kind]) + field(2, bytes(91)), lambda _: bytes(70)), DOMAIN, TYPE)
    assert caught.value.code == "bad_envelope"
    assert "Ed25519" in caught.value.hint


def test_fields_of_an_envelope_come_in_their_order_and_once() -> None:
    raw = sign_envelope(KEY, DOMAIN, TYPE, b"payload")
    key, kind, payload, signature = raw[:38], field(2, TYPE), field(3, b"payload"), raw[-66:]
    assert key + kind + payload + signature == raw
    for changed in (
        kind + key + payload + signature,
        key + kind + signature + payload,
        key + kind + payload + payload + signature,
        key + kind + payload + b"\x20\x00" + signature,
        kind + payload + signature,
        raw[:-1],
    ):
        assert refusal(changed) in ("bad_envelope", "wrong_type")
    assert refusal(key + kind + payload) == "bad_signature"
    assert refusal(key + kind + b"\x1a\x00" + signature) == "bad_envelope"
