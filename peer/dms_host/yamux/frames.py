"""Yamux frames: their constants, an encoder, and a reader that extracts them from received pieces.

Source: https://github.com/hashicorp/yamux/blob/master/spec.md.
"""

from __future__ import annotations

import struct
from collections.abc import Awaitable, Callable
from typing import Final

from libp2p.io.exceptions import ConnectionClosedError

__all__ = [
    "ACK",
    "DATA",
    "FIN",
    "GO_AWAY",
    "HEADER_SIZE",
    "PING",
    "RST",
    "SYN",
    "WINDOW_UPDATE",
    "YamuxFrameReader",
    "pack_frame",
]

DATA: Final = 0
WINDOW_UPDATE: Final = 1
PING: Final = 2
GO_AWAY: Final = 3

SYN: Final = 1
ACK: Final = 2
FIN: Final = 4
RST: Final = 8

# Version, type, flags, stream id, and a length, a number of bytes or a ping's number.
_HEADER: Final = struct.Struct("!BBHII")
HEADER_SIZE: Final = _HEADER.size


def pack_frame(kind: int, flags: int, stream_id: int, value: int, data: bytes | memoryview = b"") -> bytes:
    """One frame for the wire; `value` is the length of the data, an amount of window, or a ping's number."""
    return b"".join((_HEADER.pack(0, kind, flags, stream_id, value), data))


class YamuxFrameReader:
    """Extracts headers and bodies from pieces of any size. Only one task uses it.

    `read` returns the next piece, empty at the end of the connection. If cancelled, nothing that was read is lost.
    """

    def __init__(self, read: Callable[[], Awaitable[bytes]]) -> None:
        self._read = read
        self._buffer = bytearray()

    def has(self, size: int) -> bool:
        """Whether `size` bytes have arrived already, so that taking them does not wait."""
        return len(self._buffer) >= size

    async def take_header(self) -> tuple[int, int, int, int, int]:
        """Version, type, flags, stream id and value of the next frame. Raises ConnectionClosedError at the end."""
        if len(self._buffer) < HEADER_SIZE:
            await self._fill(HEADER_SIZE)
        header: tuple[int, int, int, int, int] = _HEADER.unpack_from(self._buffer)
        del self._buffer[:HEADER_SIZE]
        return header

    async def take(self, size: int) -> bytes:
        """The next `size` bytes. Raises ConnectionClosedError if the connection ends before."""
        if len(self._buffer) < size:
            await self._fill(size)
        data = bytes(memoryview(self._buffer)[:size])
        del self._buffer[:size]
        return data

    async def _fill(self, size: int) -> None:
        while len(self._buffer) < size:
            piece = await self._read()
            if not piece:
                raise ConnectionClosedError("the peer has closed the connection")
            self._buffer += piece
