"""Private networks: connections that are encrypted from the first byte with a key that all members share.

The cipher is XSalsa20. Each direction has a random nonce, which is sent first
(https://github.com/libp2p/specs/blob/master/pnet/Private-Networks-PSK-V1.md). The encryption keeps strangers out;
Noise, inside it, proves the peers.

What breaks: the library encrypts with Salsa20 and a nonce of 8 bytes, which no other libp2p understands. A peer without
the key, or with another key, is noticed only when a timeout ends its handshake.
Measure: `ProtectedConnection` follows the specification. It refuses at once a connection whose first bytes are not the
expected greeting, whether in the clear or under another key.
Upstream: https://github.com/libp2p/py-libp2p/pull/1002 introduced it; no report about the cipher found (November 2026).
"""

from __future__ import annotations

import secrets
import struct

from Crypto.Cipher import Salsa20
from libp2p.abc import IRawConnection
from libp2p.connection_types import ConnectionType
from libp2p.io.exceptions import IOException
from libp2p.io.utils import read_exactly
from libp2p.network.connection.raw_connection import RawConnection
from multiaddr import Multiaddr  # type: ignore[import-untyped]  # it has no types

__all__ = ["KEY_SIZE", "OtherNetworkError", "ProtectedConnection"]

KEY_SIZE = 32
NONCE_SIZE = 24
# The first line of every connection, in both directions, as multistream-select frames it.
GREETING = b"\x13/multistream/1.0.0\n"

_CONSTANT = struct.unpack("<4I", b"expand 32-byte k")
# A double round of Salsa20: its quarter rounds on the columns, then on the rows.
_COLUMNS = ((0, 4, 8, 12), (5, 9, 13, 1), (10, 14, 2, 6), (15, 3, 7, 11))
_ROWS = ((0, 1, 2, 3), (5, 6, 7, 4), (10, 11, 8, 9), (15, 12, 13, 14))


class OtherNetworkError(IOException):
    """The other side does not have the key of this network."""


class ProtectedConnection(RawConnection):
    """A raw connection inside a private network."""

    def __init__(self, connection: IRawConnection, key: bytes) -> None:
        self._connection = connection
        self._key = key
        self.is_initiator = connection.is_initiator
        self._incoming: Salsa20.Salsa20Cipher | None = None
        self._outgoing: Salsa20.Salsa20Cipher | None = None
        self._greeting = GREETING

    async def write(self, data: bytes) -> None:
        """Encrypt and send. Raises what the connection below raises. A cancelled write makes the connection
        unusable.
        """
        nonce = b""
        if self._outgoing is None:
            nonce = secrets.token_bytes(NONCE_SIZE)
            self._outgoing = xsalsa20(self._key, nonce)
        await self._connection.write(nonce + self._outgoing.encrypt(data))

    async def read(self, n: int | None = None) -> bytes:
        """Up to `n` bytes. Raises OtherNetworkError for a peer without the key."""
        if self._incoming is None:
            self._incoming = xsalsa20(self._key, await self._read_nonce())
        data = self._incoming.decrypt(await self._connection.read(n))
        if self._greeting:
            self._check_greeting(data)
        return data

    async def _read_nonce(self) -> bytes:
        # A peer that greets in the clear sends these bytes and then waits for ours.
        start = await read_exactly(self._connection, len(GREETING))
        if start == GREETING:
            raise OtherNetworkError("the other side is in no private network")
        return start + await read_exactly(self._connection, NONCE_SIZE - len(GREETING))

    def _check_greeting(self, data: bytes) -> None:
        expected, self._greeting = self._greeting[: len(data)], self._greeting[len(data) :]
        if data[: len(expected)] != expected:
            raise OtherNetworkError("the other side is in another private network")

    async def close(self) -> None:
        """Close the connection below."""
        await self._connection.close()

    def get_remote_address(self) -> tuple[str, int] | None:
        return self._connection.get_remote_address()

    def get_transport_addresses(self) -> list[Multiaddr]:
        return self._connection.get_transport_addresses()

    def get_connection_type(self) -> ConnectionType:
        return self._connection.get_connection_type()


def xsalsa20(key: bytes, nonce: bytes) -> Salsa20.Salsa20Cipher:
    """The stream cipher XSalsa20 with a nonce of 24 bytes: Salsa20 under a key derived from its first 16 bytes.

    D. J. Bernstein, "Extending the Salsa20 nonce", 2011. None of our libraries offers it as a stream.
    """
    return Salsa20.new(key=hsalsa20(key, nonce[:16]), nonce=nonce[16:])


def hsalsa20(key: bytes, nonce: bytes) -> bytes:
    """The 32-byte key that HSalsa20 derives from a 32-byte key and a 16-byte nonce."""
    first, last, middle = struct.unpack("<4I", key[:16]), struct.unpack("<4I", key[16:]), struct.unpack("<4I", nonce)
    a, b, c, d = _CONSTANT
    words = [a, *first, b, *middle, c, *last, d]
    for _ in range(10):
        for quarter in (*_COLUMNS, *_ROWS):
            _quarter_round(words, *quarter)
    return struct.pack("<8I", *(words[i] for i in (0, 5, 10, 15, 6, 7, 8, 9)))


def _quarter_round(words: list[int], a: int, b: int, c: int, d: int) -> None:
    words[b] ^= _rotated(words[a] + words[d], 7)
    words[c] ^= _rotated(words[b] + words[a], 9)
    words[d] ^= _rotated(words[c] + words[b], 13)
    words[a] ^= _rotated(words[d] + words[c], 18)


def _rotated(word: int, bits: int) -> int:
    word &= 0xFFFFFFFF
    return ((word << bits) | (word >> (32 - bits))) & 0xFFFFFFFF
