"""Frames of libp2p's habit: an unsigned varint with the length, then that many bytes.

Sans-IO: bytes in, frames out. Rules:

1. A length is a minimal unsigned varint of at most 9 bytes (libp2p's "unsigned-varint"); anything else ends the stream.
2. A frame above the limit is announced once, as `Oversize`, and its payload is passed over without being kept.
3. A frame above the skip limit ends the stream: passing over it would cost more than a new stream.
4. What is kept never exceeds the frame limit, one header and one `feed`.
"""

from __future__ import annotations

from collections.abc import Iterator

from msgspec import Struct

from ..errors import FrameError

__all__ = ["MAX_VARINT_BYTES", "FrameReader", "Oversize", "encode_frame", "encode_varint"]

MAX_VARINT_BYTES = 9
"""The longest unsigned varint that libp2p allows: 63 bits."""


class Oversize(Struct, frozen=True):
    """A frame of `length` bytes that was announced and is passed over."""

    length: int


def encode_varint(value: int) -> bytes:
    """Encode as a minimal unsigned varint; raises ValueError for what does not fit 63 bits."""
    if 0 <= value < 0x80:
        return bytes((value,))
    if not 0 <= value < 1 << 7 * MAX_VARINT_BYTES:
        raise ValueError(f"{value} is no unsigned varint of {MAX_VARINT_BYTES} bytes")
    encoded = bytearray()
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def encode_frame(payload: bytes) -> bytes:
    """Put the length of the payload in front of it."""
    return encode_varint(len(payload)) + payload


class FrameReader:
    """Cuts a byte stream into frames: `feed` what was read, then iterate over what is complete.

    `limit` and `skip_limit` are in bytes of payload. Iterating raises FrameError when the stream cannot be used any
    more (after the frames that came before), and again each time from then on.
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
        """How many bytes are kept for frames that are not complete, or not yet iterated over."""
        return len(self._kept)

    @property
    def at_boundary(self) -> bool:
        """Whether everything that was fed has been taken, so that an end of the stream here cuts nothing."""
        return not self._kept and not self._to_skip

    def feed(self, data: bytes) -> None:
        """Take in bytes as they were read, in pieces of any size."""
        if self._failure is not None:
            return
        if self._to_skip:
            skipped = min(self._to_skip, len(data))
            self._to_skip -= skipped
            data = data[skipped:]
        self._kept += data

    def __iter__(self) -> Iterator[bytes | Oversize]:
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
            # Also reached when the caller stops half-way: the rest is for the next iteration.
            if self._failure is None:
                self._kept[:0] = data[start:]
        if self._failure is not None:
            raise self._failure

    def _header(self, data: bytes, start: int) -> tuple[int, int] | None:
        """The length at `start` and where its payload begins; None while incomplete or after a failure."""
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
        """Skip what is there of an oversize payload, note how much is still to come; returns where to go on."""
        if length > self._skip_limit:
            self._fail(f"a frame of {length} bytes, {self._limit} are allowed", "frame_too_large")
            return end
        here = min(length, end - begin)
        self._to_skip = length - here
        return begin + here

    def _fail(self, message: str, code: str) -> None:
        self._failure = FrameError(message, code=code)
