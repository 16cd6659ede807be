"""Frames as libp2p writes them: an unsigned varint with the length, then that many bytes.

This module does no I/O: the caller passes bytes in and gets frames out. Rules:

1. A length is a minimal unsigned varint of at most 9 bytes (libp2p's "unsigned-varint"). Anything else ends the stream.
2. A frame above the limit yields one `Oversize`. Its payload is skipped and not kept.
3. A frame above the skip limit ends the stream with one FrameError, because skipping it would cost more than a new
   stream.
4. The reader keeps at most the frame limit, one header and one `feed`.
"""

from __future__ import annotations

from collections.abc import Generator

from msgspec import Struct

from ..errors import FrameError

__all__ = ["MAX_VARINT_BYTES", "FrameReader", "Oversize", "encode_frame", "encode_varint"]

MAX_VARINT_BYTES = 9
"""The longest unsigned varint that libp2p allows: 63 bits."""


class Oversize(Struct, frozen=True):
    """A frame of `length` bytes that is too large to be kept. Its payload is skipped."""

    length: int


def encode_varint(value: int) -> bytes:
    """Encode as a minimal unsigned varint. Raises ValueError for a value that does not fit 63 bits."""
    if 0 <= value < 0x80:
        return bytes((value,))
    if not 0 <= value < 1 << 7 * MAX_VARINT_BYTES:
        raise ValueError(f"{value} does not fit in an unsigned varint of {MAX_VARINT_BYTES} bytes")
    encoded = bytearray()
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def encode_frame(payload: bytes) -> bytes:
    """The payload with its length in front."""
    return encode_varint(len(payload)) + payload


class FrameReader:
    """Cuts a byte stream into frames: `feed` the received bytes, then iterate over the complete frames.

    `limit` and `skip_limit` are in bytes of payload. If the stream is broken, the iteration yields the frames before
    the fault and then raises FrameError, and so does every later iteration.
    """

    def __init__(self, limit: int, skip_limit: int | None = None) -> None:
        self._limit = limit
        self._skip_limit = max(limit, skip_limit if skip_limit is not None else 16 * limit)
        self._kept = bytearray()
        self._needed = 1
        self._to_skip = 0
        self._failure: FrameError | None = None

    @property
    def buffered(self) -> int:
        """The number of bytes of incomplete frames and of frames that were not iterated over yet."""
        return len(self._kept)

    @property
    def at_boundary(self) -> bool:
        """Whether all bytes were consumed, so that an end of the stream here cuts no frame."""
        return not self._kept and not self._to_skip

    def take_rest(self) -> bytes:
        """Take all bytes behind the last frame that was yielded; they are no longer read as frames."""
        rest = bytes(self._kept)
        self._kept.clear()
        self._needed = 1
        return rest

    def feed(self, data: bytes) -> None:
        """Add bytes, in pieces of any size."""
        if self._failure is not None:
            return
        if self._to_skip:
            skipped = min(self._to_skip, len(data))
            self._to_skip -= skipped
            data = data[skipped:]
        self._kept += data

    def __iter__(self) -> Generator[bytes | Oversize, None, None]:
        if self._failure is None and len(self._kept) < self._needed:
            return
        data, start = bytes(self._kept), 0
        self._kept.clear()
        self._needed = 1
        try:
            while self._failure is None:
                header = self._header(data, start)
                if header is None:
                    break
                length, begin = header
                if length > self._skip_limit:
                    self._fail(f"a frame of {length} bytes, {self._limit} are allowed", "frame_too_large")
                    break
                if length > self._limit:
                    start = self._pass_over(length, begin, len(data))
                    yield Oversize(length)
                    continue
                if begin + length > len(data):
                    self._needed = begin + length - start
                    break
                start = begin + length
                yield data[begin:start]
        finally:
            # This also runs if the caller stops early: the next iteration yields the rest.
            if self._failure is None:
                self._kept[:0] = data[start:]
        if self._failure is not None:
            raise self._failure

    def _header(self, data: bytes, start: int) -> tuple[int, int] | None:
        """The length at `start`, and where its payload begins. None if it is incomplete, or after a failure."""
        if start >= len(data):
            return None
        if data[start] < 0x80:
            return data[start], start + 1
        length = 0
        for index, byte in enumerate(data[start : start + MAX_VARINT_BYTES]):
            length |= (byte & 0x7F) << 7 * index
            if byte < 0x80:
                if byte == 0:
                    self._fail("the length of a frame is not a minimal varint", "bad_frame")
                    return None
                return length, start + index + 1
        if len(data) - start >= MAX_VARINT_BYTES:
            self._fail(f"the length of a frame has more than {MAX_VARINT_BYTES} bytes", "bad_frame")
        return None

    def _pass_over(self, length: int, begin: int, end: int) -> int:
        """Skip the part of an oversize payload that has arrived. Returns where to continue."""
        here = min(length, end - begin)
        self._to_skip = length - here
        return begin + here

    def _fail(self, message: str, code: str) -> None:
        self._failure = FrameError(message, code=code)
