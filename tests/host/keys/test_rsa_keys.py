"""RSA keys of strangers: invalid or far too large ones are refused before any computation."""

from __future__ import annotations

import secrets

import pytest
from Crypto.PublicKey import RSA
from Crypto.Util.asn1 import DerBitString, DerNull, DerObjectId, DerSequence
from libp2p.crypto.exceptions import CryptographyError
from libp2p.crypto.keys import KeyType
from libp2p.crypto.pb import crypto_pb2
from libp2p.crypto.rsa import RSAPublicKey, create_new_key_pair
from libp2p.crypto.serialization import deserialize_public_key
from libp2p.peer.envelope import Envelope, pub_key_to_protobuf

from dms_host import host as _host  # noqa: F401  # importing a host bounds the library's RSA keys
from dms_host.errors import BadEnvelopeError
from dms_host.keys.envelopes import open_envelope
from dms_host.keys.rsa_keys import MAX_RSA_BYTES


def modulus(bits: int) -> int:
    return secrets.randbits(bits) | 1 << bits - 1 | 1


def public(bits: int, exponent: int = 65537) -> bytes:
    algorithm = DerSequence([DerObjectId("1.2.840.113549.1.1.1"), DerNull()])
    numbers = DerSequence([modulus(bits), exponent])
    return bytes(DerSequence([algorithm, DerBitString(numbers)]).encode())


def private() -> bytes:
    # Small enough to be read in the worst case. A stranger has to send such a key to have primes tested.
    return bytes(RSA.generate(1024).export_key("DER"))


def protobuf(key: bytes) -> bytes:
    return crypto_pb2.PublicKey(key_type=KeyType.RSA.value, data=key).SerializeToString()


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The lengths of the keys that the library itself reads."""
    lengths: list[int] = []
    import_key = RSA.import_key

    def read(data: bytes, *rest: object) -> object:
        lengths.append(len(data))
        return import_key(data, *rest)

    monkeypatch.setattr(RSA, "import_key", read)
    return lengths


@pytest.mark.parametrize(
    "key",
    [
        bytes(DerSequence([modulus(100_000), 65537]).encode()),
        public(100_000),
        public(4104),
        public(2048, modulus(2000)),
        private(),
        RSA.generate(1024).export_key("PEM"),
        b"",
        bytes(MAX_RSA_BYTES),
    ],
    ids=["huge", "huge, as specified", "large", "a long exponent", "private", "text", "empty", "zeros"],
)
def test_what_is_no_usable_key_is_refused_before_it_costs_anything(key: bytes, computed: list[int]) -> None:
    with pytest.raises(CryptographyError):
        deserialize_public_key(protobuf(key))
    with pytest.raises(CryptographyError):
        RSAPublicKey.from_bytes(key)
    assert computed == []


def test_a_huge_key_in_an_envelope_is_refused_before_it_costs_anything(computed: list[int]) -> None:
    envelope = Envelope(create_new_key_pair().public_key, b"/type", b"payload", b"signature")
    fields = envelope.marshal_envelope()
    honest = pub_key_to_protobuf(envelope.public_key).SerializeToString()
    huge = protobuf(public(100_000))
    computed.clear()
    raw = b"\x0a" + varint(len(huge)) + huge + fields[fields.index(honest) + len(honest) :]
    with pytest.raises(BadEnvelopeError) as refused:
        open_envelope(raw, "domain", b"/type")
    assert refused.value.code == "bad_envelope"
    assert computed == []


def varint(number: int) -> bytes:
    digits = bytearray()
    while number >= 0x80:
        digits.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*digits, number])


@pytest.mark.parametrize("bits", [2048, 4096])
def test_keys_as_they_are_in_use_are_read(bits: int) -> None:
    key = public(bits)
    assert deserialize_public_key(protobuf(key)).to_bytes() == key


def test_what_such_a_key_has_signed_holds() -> None:
    pair = create_new_key_pair()
    read = deserialize_public_key(pair.public_key.serialize())
    assert read.verify(b"data", pair.private_key.sign(b"data"))
    assert not read.verify(b"other", pair.private_key.sign(b"data"))
