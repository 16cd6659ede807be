"""Two byte streams that are joined, so that each carries on what the other receives."""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable
from contextlib import suppress
from typing import Final

import trio

__all__ = ["BROKEN", "HALF_OPEN_IDLE", "PIECE", "ContinuedStream", "break_stream", "join_streams"]

PIECE: Final = 64 * 1024
"""Bytes that are read at once."""

HALF_OPEN_IDLE: Final = 60.0
"""Seconds after which a silent pair of streams is reset when one of its directions has ended."""

BROKEN: Final = (trio.BrokenResourceError, trio.ClosedResourceError)
"""The errors of a stream that carries nothing more."""

# A half-open pair may be reset up to this many seconds early: each deadline that is moved leaves an entry in trio's
# heap until it would have passed.
_IDLE_PRECISION: Final = 1.0
_RESET: Final = struct.pack("ii", 1, 0)


async def join_streams(
    left: trio.abc.HalfCloseableStream,
    right: trio.abc.HalfCloseableStream,
    *,
    half_open_idle: float = HALF_OPEN_IDLE,
    to_right: Callable[[int], None] | None = None,
    to_left: Callable[[int], None] | None = None,
) -> bool:
    """Copies both ways until both directions have ended, and closes both streams. Returns whether they ended whole.

    When one breaks, or a half-open pair is silent for `half_open_idle` seconds, both are reset; also when this is
    cancelled. `to_right` and `to_left` are told how many bytes were read for that side.
    """
    whole = False
    try:
        whole = await _Pair(left, right, half_open_idle, to_right, to_left).run()
    finally:
        with trio.CancelScope(shield=True):
            for stream in (left, right):
                await (stream.aclose() if whole else break_stream(stream))
    return whole


class _Pair:
    """Two streams that are joined."""

    def __init__(
        self,
        left: trio.abc.HalfCloseableStream,
        right: trio.abc.HalfCloseableStream,
        half_open_idle: float,
        to_right: Callable[[int], None] | None,
        to_left: Callable[[int], None] | None,
    ) -> None:
        self._ways = ((left, right, to_right), (right, left, to_left))
        self._half_open_idle = half_open_idle
        self._scope = trio.CancelScope()
        self._ended = 0

    async def run(self) -> bool:
        with self._scope:
            async with trio.open_nursery() as nursery:
                for way in self._ways:
                    nursery.start_soon(self._copy, *way)
        return self._ended == len(self._ways)

    async def _copy(
        self,
        source: trio.abc.ReceiveStream,
        sink: trio.abc.HalfCloseableStream,
        count: Callable[[int], None] | None,
    ) -> None:
        try:
            while data := await source.receive_some(PIECE):
                if count is not None:
                    count(len(data))
                self._moved()
                await sink.send_all(data)
                self._moved()
            await sink.send_eof()
        except BROKEN:
            self._scope.cancel()
            return
        self._ended += 1
        self._moved()

    def _moved(self) -> None:
        if self._ended != 1:
            return
        deadline = trio.current_time() + self._half_open_idle
        if not deadline - _IDLE_PRECISION < self._scope.deadline <= deadline:
            self._scope.deadline = deadline


class ContinuedStream(trio.abc.HalfCloseableStream):
    """A stream of which some bytes were read already."""

    def __init__(self, stream: trio.abc.HalfCloseableStream, rest: bytes) -> None:
        self._stream = stream
        self._rest = rest

    async def send_all(self, data: bytes | memoryview) -> None:
        await self._stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        if not self._rest:
            return await self._stream.receive_some(max_bytes)
        await trio.lowlevel.checkpoint()
        size = len(self._rest) if max_bytes is None else max_bytes
        data, self._rest = self._rest[:size], self._rest[size:]
        return data

    async def send_eof(self) -> None:
        await self._stream.send_eof()

    async def aclose(self) -> None:
        await self._stream.aclose()

    async def areset(self) -> None:
        """Resets the stream below."""
        await break_stream(self._stream)


async def break_stream(stream: trio.abc.AsyncResource) -> None:
    """Ends a stream so that the other side does not take it for a whole one, as far as the stream can say that."""
    if (reset := getattr(stream, "areset", None)) is not None:
        with trio.CancelScope(shield=True):
            await reset()
        return
    if isinstance(stream, trio.SocketStream):
        with suppress(OSError):
            stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    await trio.aclose_forcefully(stream)
