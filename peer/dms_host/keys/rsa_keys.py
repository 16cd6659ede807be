"""RSA keys of strangers, which cost no more to read than a key does.

What breaks in py-libp2p (0.8.1): a key is read in full, byte by byte and in several formats, before its size is looked
at. It may be a private one, whose primes are tested, and its exponent may be as long as its modulus. A key is in the
first message of a stranger and in every envelope: one of 30 KiB keeps the processor for five seconds.
Measure: `bound_rsa_keys` looks at the length, lets OpenSSL read the one format that the specification has, and then at
the numbers, before the library sees any of it.
Upstream: no upstream report found (November 2026).
"""

from __future__ import annotations

from typing import Final

from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import load_der_public_key
from libp2p.crypto import rsa as library
from libp2p.crypto.exceptions import CryptographyError
from libp2p.crypto.keys import KeyType
from libp2p.crypto.serialization import key_type_to_public_key_deserializer as readers

__all__ = ["MAX_RSA_BYTES", "bound_rsa_keys"]

MAX_RSA_BYTES: Final = 1024
"""Bytes of an RSA key's encoding. One of 4096 bits, the longest that the library takes, has 550."""

# In use are 65537 and a few smaller ones.
_MOST_EXPONENT: Final = 2**32

_read_unbounded = library.RSAPublicKey.from_bytes


def bound_rsa_keys() -> None:
    """Has the library read RSA keys within bounds, wherever it does; done again it changes nothing."""
    library.RSAPublicKey.from_bytes = _read  # type: ignore[method-assign]
    # It was looked up when the library was loaded.
    readers[KeyType.RSA.value] = _read


def _read(key_bytes: bytes) -> library.RSAPublicKey:
    if len(key_bytes) > MAX_RSA_BYTES:
        raise CryptographyError(f"an RSA key of {len(key_bytes)} bytes, {MAX_RSA_BYTES} are allowed")
    try:
        key = load_der_public_key(key_bytes)
    except Exception as error:
        # It has as many types of error as there are ways for bytes to be no key.
        raise CryptographyError("these bytes are no public key") from error
    if not isinstance(key, rsa.RSAPublicKey):
        raise CryptographyError("the key is no RSA key")
    library.validate_rsa_key_length(key.key_size)
    if key.public_numbers().e >= _MOST_EXPONENT:
        raise CryptographyError("the exponent of the RSA key is too long")
    return _read_unbounded(key_bytes)
