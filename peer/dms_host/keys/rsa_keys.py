"""Bounds for the RSA keys of strangers.

What breaks in py-libp2p (0.8.1): a key is parsed in full, in several formats, before its size is checked. It may be a
private key, whose primes are tested, and its exponent may be as long as its modulus. The first message of a stranger
contains a key, and so does every envelope: a key of 30 KiB keeps the processor busy for three seconds.
Measure: `bound_rsa_keys` checks the length, lets OpenSSL read the one format of the specification, and checks the
numbers, before the library reads the key.
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
"""Bytes of an RSA key's encoding. A key of 4096 bits, the longest that the library accepts, has 550."""

# As in go-libp2p: shorter keys can be broken.
_LEAST_BITS: Final = 2048
# The exponents in use are 65537 and a few smaller ones.
_MOST_EXPONENT: Final = 2**32

_read_unbounded = library.RSAPublicKey.from_bytes


def bound_rsa_keys() -> None:
    """Make the library read RSA keys within bounds, wherever it reads one. A second call has no effect."""
    library.RSAPublicKey.from_bytes = _read  # type: ignore[method-assign]
    # The library looked the function up when it was loaded.
    readers[KeyType.RSA.value] = _read


def _read(key_bytes: bytes) -> library.RSAPublicKey:
    if len(key_bytes) > MAX_RSA_BYTES:
        raise CryptographyError(f"an RSA key of {len(key_bytes)} bytes, {MAX_RSA_BYTES} are allowed")
    try:
        key = load_der_public_key(key_bytes)
    except Exception as error:
        # OpenSSL raises different errors for different invalid bytes.
        raise CryptographyError("not a public key") from error
    if not isinstance(key, rsa.RSAPublicKey):
        raise CryptographyError("not an RSA key")
    library.validate_rsa_key_length(key.key_size)
    if key.key_size < _LEAST_BITS:
        raise CryptographyError(f"an RSA key of {key.key_size} bits, {_LEAST_BITS} are needed")
    if key.public_numbers().e >= _MOST_EXPONENT:
        raise CryptographyError("the exponent of the RSA key is too long")
    return _read_unbounded(key_bytes)
