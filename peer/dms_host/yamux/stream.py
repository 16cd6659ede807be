"""One Yamux stream that loses nothing when it is cancelled and keeps no more than its window.

What breaks in py-libp2p's `YamuxStream`:
- a cancelled read loses bytes: they are taken from the buffer, then a window update is awaited;
- a cancelled write loses window: the room is taken, then the frame is awaited;
- a local reset does not wake a reader that waits on the stream;
- a write polls for room every 10 ms and gives up after 5 s;
- the window grows to 16 MiB per stream, and what the peer sends beyond it is kept all the same;
- the end of the connection looks like the end of the stream, so a cut answer looks like a whole one;
- each stream keeps locks and events, also while nobody uses it or waits for anything.
Measure: this class; what it awaits after taking is shielded by the connection (`BoundedYamux`), reads and writes wait
for events, the window is fixed, and only a FIN ends a stream.
Upstream: https://github.com/libp2p/py-libp2p/issues/1270 (growing window); for the others no upstream report found
(November 2026).
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

import trio
from libp2p.io.exceptions import ConnectionClosedError
from libp2p.stream_muxer.exceptions import MuxedStreamClosed, MuxedStreamEOF, MuxedStreamReset
from libp2p.stream_muxer.yamux.yamux import (
    FLAG_FIN,
    FLAG_RST,
    HEADER_SIZE,
    TYPE_DATA,
    TYPE_WINDOW_UPDATE,
    YAMUX_HEADER_FORMAT,
    YamuxStream,
)

from ..limits import STREAM_WINDOW

if TYPE_CHECKING:
    from .connection import BoundedYamux

__all__ = ["BoundedYamuxStream", "pack_frame"]

# Bytes of data per frame: with its header it is exactly one Noise message.
MAX_DATA = 65535 - 16 - HEADER_SIZE
# Room is announced in halves of a window, as the reference implementation does: few updates, no stall.
ANNOUNCE_AT = STREAM_WINDOW // 2

_HEADER = struct.Struct(YAMUX_HEADER_FORMAT)
# Stands where a stream has an event while nobody waits for one: whoever does makes a new one.
_NOBODY_WAITS = trio.Event()


def pack_frame(kind: int, flags: int, stream_id: int, value: int, data: bytes | memoryview = b"") -> bytes:
    """One frame for the wire; `value` is the length of the data, an amount of room, or a ping's number."""
    return b"".join((_HEADER.pack(0, kind, flags, stream_id, value), data))


class BoundedYamuxStream(YamuxStream):
    """A stream of a BoundedYamux. One task may read and one may write at a time."""

    # What stands on this stream may cancel its reads and writes (see dms_host.streams.stream).
    cancel_safe: Final = True

    conn: BoundedYamux

    def __init__(self, stream_id: int, conn: BoundedYamux, is_initiator: bool) -> None:
        super().__init__(stream_id, conn, is_initiator)
        # Only the original's own methods take them, and there may be thousands of streams.
        del self.window_lock, self.rw_lock, self.close_lock
        self.buffer = bytearray()
        self.fin_received = False
        self.abandoned_at: float | None = None
        self.torn = False
        self._unsent = False
        self._unannounced = 0
        self._readable = self._writable = self.conn.stream_events[stream_id] = _NOBODY_WAITS

    # Reading

    async def read(self, n: int | None = None) -> bytes:
        """Up to `n` bytes as soon as there are any (None or -1: all that have arrived).

        Raises MuxedStreamEOF after the peer's FIN, MuxedStreamReset when the stream or its connection is gone.
        Cancelled, it has taken nothing.
        """
        await trio.lowlevel.checkpoint()
        if n == 0:
            return b""
        while not self.buffer:
            self._raise_if_ended()
            if self._unsent:
                self._unsent = False
                await self._flush()
            else:
                await self._wait_readable()
        data = self._take(n)
        await self._announce_window(len(data))
        return data

    def _raise_if_ended(self) -> None:
        if self.abandoned_at is not None:
            raise MuxedStreamReset("reading was given up")
        # First, because the end of a connection marks all its streams as reset, also those that had ended before.
        if self.fin_received:
            raise MuxedStreamEOF("the peer has said all")
        if self.reset_received or self.closed or self.conn.event_shutting_down.is_set():
            raise MuxedStreamReset("the stream or its connection is gone")

    async def _flush(self) -> None:
        try:
            await self.conn.flush()
        except ConnectionClosedError:
            # What has come is still to be read.
            return

    async def _wait_readable(self) -> None:
        # The library wakes readers through this table when a connection ends.
        self._readable = self.conn.stream_events[self.stream_id] = trio.Event()
        await self._readable.wait()

    def _take(self, n: int | None) -> bytes:
        size = len(self.buffer) if n is None or n < 0 else min(n, len(self.buffer))
        data = bytes(self.buffer[:size])
        del self.buffer[:size]
        self.conn.unread_bytes -= size
        if self.closed and not self.buffer:
            self.conn._finalize_stream_locked(self, fully_closed=True)
        return data

    async def _announce_window(self, size: int) -> None:
        self._unannounced += size
        if self._unannounced < ANNOUNCE_AT or self.recv_closed:
            return
        free, self._unannounced = self._unannounced, 0
        self.recv_window += free
        try:
            await self.conn._write_frame(pack_frame(TYPE_WINDOW_UPDATE, 0, self.stream_id, free))
        except ConnectionClosedError:
            # The bytes are here; that nothing will follow them, the next read says.
            return

    def receive(self, data: bytes) -> None:
        """Take in what arrived; the connection has checked it against the window. Never blocks."""
        self.recv_window -= len(data)
        self.buffer += data
        self.conn.unread_bytes += len(data)
        self._readable.set()

    def receive_fin(self) -> None:
        """The peer has said all. Never blocks."""
        self.fin_received = self.recv_closed = True
        self._readable.set()
        if self.send_closed:
            self.closed = True
            self.conn._finalize_stream_locked(self, fully_closed=True)

    # Writing

    async def write(self, data: bytes) -> None:
        """Send `data`, as fast as the peer makes room.

        Raises MuxedStreamClosed after `close`, MuxedStreamReset when the stream or its connection is gone or the peer
        makes no room within HostLimits.window_timeout. Cancelled, it has sent whole frames only; `torn` says whether
        some of the data went out and some did not.
        """
        # The only one where it may be that nothing was sent yet.
        await trio.lowlevel.checkpoint_if_cancelled()
        view = memoryview(data)
        while view:
            await self.wait_writable()
            async with self.conn._write_lock:
                self._raise_if_unwritable()
                # Another write may have used the room up while this one waited for the lock.
                chunk = view[: min(self.send_window, MAX_DATA)]
                if not chunk:
                    continue
                self.send_window -= len(chunk)
                await self._write_data(chunk)
            view = view[len(chunk) :]
            self.torn = len(view) > 0

    async def write_soon(self, data: bytes) -> None:
        """Send a few bytes together with what is written next, or before this side waits for the peer, or soon anyway.

        Raises as `write` does, and MuxedStreamReset where there is no room. Not cancellable, bounded by frame_timeout.
        """
        self._raise_if_unwritable()
        if len(data) > self.send_window:
            raise MuxedStreamReset("the peer has made no room")
        self.send_window -= len(data)
        self._unsent = True
        try:
            await self.conn.say(pack_frame(TYPE_DATA, 0, self.stream_id, len(data), data))
        except ConnectionClosedError as error:
            raise MuxedStreamReset("the connection is gone") from error

    async def _write_data(self, chunk: memoryview) -> None:
        try:
            frame = pack_frame(TYPE_DATA, 0, self.stream_id, len(chunk), chunk)
            await self.conn.write_locked(frame, self.conn.limits.frame_timeout)
        except ConnectionClosedError as error:
            raise MuxedStreamReset("the connection is gone") from error

    async def wait_writable(self) -> None:
        """Wait until the peer has made room. Raises as `write` does; may be cancelled."""
        self._raise_if_unwritable()
        if self.send_window > 0:
            return
        with trio.move_on_after(self.conn.limits.window_timeout):
            while self.send_window <= 0:
                self._writable = trio.Event()
                await self._writable.wait()
                self._raise_if_unwritable()
            return
        await self.reset()
        raise MuxedStreamReset("the peer reads nothing")

    def _raise_if_unwritable(self) -> None:
        if self.reset_received or self.conn.event_shutting_down.is_set():
            raise MuxedStreamReset("the stream or its connection is gone")
        if self.send_closed or self.closed:
            raise MuxedStreamClosed("the stream is closed for writing")

    def receive_window_free(self, free: int) -> None:
        """The peer can take `room` more bytes. Never blocks."""
        self.send_window += free
        self._writable.set()

    # Ending

    async def close(self) -> None:
        """Say that nothing more will be written; reading goes on. Not cancellable, bounded by frame_timeout."""
        if not self.send_closed:
            self.send_closed = True
            self._writable.set()
            await self._say(FLAG_FIN)
        self.closed = self.closed or self.recv_closed
        self.conn._finalize_stream_locked(self, fully_closed=self.closed)

    async def reset(self) -> None:
        """End both directions at once and wake whoever waits on them. Not cancellable, bounded by frame_timeout."""
        if self.closed:
            self.receive_reset()
            return
        self.receive_reset()
        await self._say(FLAG_RST)

    def receive_reset(self, *, keep: bool = False) -> None:
        """The stream is gone; with `keep` what was received before can still be read. Never blocks."""
        self.closed = self.send_closed = self.recv_closed = self.reset_received = True
        self.fin_received = False
        if not keep:
            self.discard()
        self.wake()
        self.conn._finalize_stream_locked(self, fully_closed=True)

    def stop_reading(self) -> None:
        """Nobody will read here again: drop what is there; what still comes resets the stream. Never blocks."""
        if self.abandoned_at is None:
            self.abandoned_at = trio.current_time()
            if not self.closed and (self.buffer or self.recv_window <= 0):
                # A writer that has used up its window sends nothing that could be answered with a reset.
                self.conn.reset_abandoned_soon(self)
        self.discard()
        self._readable.set()
        if self.closed:
            self.conn._finalize_stream_locked(self, fully_closed=True)

    def discard(self) -> None:
        """Forget what was received and not read. Never blocks."""
        self.conn.unread_bytes -= len(self.buffer)
        self.buffer.clear()

    def wake(self) -> None:
        """Let whoever waits on this stream look again. Never blocks."""
        self._readable.set()
        self._writable.set()

    async def _say(self, flag: int) -> None:
        try:
            await self.conn.say(pack_frame(TYPE_WINDOW_UPDATE, flag, self.stream_id, 0))
        except ConnectionClosedError:
            # The peer will learn it from the connection's end.
            return
