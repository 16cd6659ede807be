"""One Yamux stream that loses nothing when it is cancelled and keeps no more than its window.

The window of a stream that is read as fast as data arrives doubles at each announcement, within what its connection
grants (`BoundedYamux.widen`): a fixed window of 256 KiB would let through 5 MiB a second over a round trip of 50 ms.

What breaks in py-libp2p's `YamuxStream`:
- A cancelled read loses bytes: they are taken from the buffer, then a window update is awaited.
- A cancelled write loses window: it is taken, then the frame is awaited.
- A local reset does not wake a reader that waits on the stream.
- A write checks for window every 10 ms and gives up after 5 s.
- The window grows to 16 MiB per stream, and what the peer sends beyond it is still kept.
- The end of the connection looks like the end of the stream, so a truncated answer looks like a whole one.
- Each stream holds locks and events, even while nothing uses it.
Measure: this class implements `IMuxedStream` itself. What it awaits after taking is shielded (see `writer`), reads and
writes wait for events, the window grows within the bound of the connection, and only a FIN ends a stream.
Upstream: https://github.com/libp2p/py-libp2p/issues/1270 (growing window); for the others no upstream report found
(November 2026).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import trio
from libp2p.abc import IMuxedStream
from libp2p.io.exceptions import ConnectionClosedError
from libp2p.stream_muxer.exceptions import MuxedStreamClosed, MuxedStreamEOF, MuxedStreamReset

from ..limits import STREAM_WINDOW
from .frames import ACK, DATA, FIN, HEADER_SIZE, RST, SYN, WINDOW_UPDATE, pack_frame

if TYPE_CHECKING:
    from .connection import BoundedYamux

__all__ = ["BoundedYamuxStream"]

# Bytes of data per frame. With its header it is exactly one Noise message.
MAX_DATA: Final = 65535 - 16 - HEADER_SIZE
# Seconds. A stream on which a window takes longer gains nothing by a larger one, and leaves it to others.
WIDEN_WITHIN: Final = 2.0

# Stands in the place of an event while no task waits for one. A waiting task makes a new event.
_NOBODY_WAITS: Final = trio.Event()


class BoundedYamuxStream(IMuxedStream):
    """A stream of a BoundedYamux. One task may read and one may write at a time."""

    # Code that uses this stream may cancel its reads and writes (see dms_host.streams.stream).
    cancel_safe: Final = True

    def __init__(self, stream_id: int, conn: BoundedYamux, is_initiator: bool) -> None:
        self.stream_id = stream_id
        self.conn = self.muxed_conn = conn
        self.is_initiator = is_initiator
        self.send_window = self.recv_window = STREAM_WINDOW
        # What `recv_window` is while nothing is unread.
        self.window = STREAM_WINDOW
        self.buffer = bytearray()
        # Closed: both directions have ended.
        self.closed = self.send_closed = self.recv_closed = False
        self.fin_received = self.reset_received = False
        self.abandoned_at: float | None = None
        # The time since when it only waits for the peer's last frame, or for a reader of its last bytes.
        self.idle_since: float | None = None
        self.torn = False
        # Whether something was sent since the peer's last window update.
        self.unconfirmed = False
        self._unsent = self._acknowledged = False
        self._unannounced = 0
        # Whether a reader had to wait for data since window was announced.
        self._waited = False
        self._announced_at = trio.current_time()
        self._readable = self._writable = _NOBODY_WAITS

    async def __aenter__(self) -> BoundedYamuxStream:
        return self

    def set_deadline(self, ttl: int) -> None:
        """Not supported, because callers cancel instead. Raises NotImplementedError."""
        raise NotImplementedError("cancel what reads or writes instead")

    def get_remote_address(self) -> tuple[str, int] | None:
        """The address of the connection."""
        return self.conn.get_remote_address()

    # Reading

    async def read(self, n: int | None = None) -> bytes:
        """Up to `n` bytes as soon as there are any (None or -1: all that have arrived).

        Raises MuxedStreamEOF after the peer's FIN, MuxedStreamReset if the stream or its connection has ended. If
        cancelled, it has taken nothing.
        """
        await trio.lowlevel.checkpoint()
        if n == 0:
            return b""
        while not self.buffer:
            self._waited = True
            self._raise_if_ended()
            if self._unsent:
                self._unsent = False
                await self._flush()
            else:
                self._readable = trio.Event()
                await self._readable.wait()
        data = self._take(n)
        await self._announce_window(len(data))
        return data

    def _raise_if_ended(self) -> None:
        if self.abandoned_at is not None:
            raise MuxedStreamReset("reading was given up")
        # Checked first, because the end of a connection marks all its streams as reset, even those that had ended
        # before.
        if self.fin_received:
            raise MuxedStreamEOF("the peer has sent everything")
        if self.reset_received or self.closed or self.conn.event_shutting_down.is_set():
            raise MuxedStreamReset("the stream or its connection is gone")

    async def _flush(self) -> None:
        try:
            await self.conn.writer.flush()
        except ConnectionClosedError:
            # What has arrived can still be read.
            return

    def _take(self, n: int | None) -> bytes:
        size = len(self.buffer) if n is None or n < 0 else min(n, len(self.buffer))
        data = bytes(memoryview(self.buffer)[:size])
        del self.buffer[:size]
        self.conn.unread_bytes -= size
        self._forget_if_over()
        return data

    async def _announce_window(self, size: int) -> None:
        self._unannounced += size
        # In halves, as the reference implementation does: this needs few updates and causes no stalls.
        if self._unannounced < self.window // 2 or self.recv_closed:
            return
        free, self._unannounced = self._unannounced, 0
        now = trio.current_time()
        if self._waited and now - self._announced_at < WIDEN_WITHIN:
            # The reader was faster than what may be on its way, and the stream is busy.
            free += self.conn.widen(self)
        self._waited, self._announced_at = False, now
        self.recv_window += free
        try:
            await self.conn.writer.write(pack_frame(WINDOW_UPDATE, 0, self.stream_id, free))
        except ConnectionClosedError:
            # The bytes are here. The next read reports the end.
            return

    def receive(self, data: bytes) -> None:
        """Keep received data. The connection has checked it against the window. Never blocks."""
        self.recv_window -= len(data)
        self.buffer += data
        self.conn.unread_bytes += len(data)
        self._readable.set()

    def is_news(self, flags: int) -> bool:
        """Whether a frame with these flags changes the stream. Its first acknowledgement does. Never blocks."""
        if flags & (SYN | FIN | RST):
            return True
        news = bool(flags & ACK) and self.is_initiator and not self._acknowledged
        self._acknowledged = self._acknowledged or news
        return news

    def receive_fin(self) -> None:
        """Note that the peer will send nothing more. Never blocks."""
        self.fin_received = self.recv_closed = True
        self._readable.set()
        self.closed = self.closed or self.send_closed
        self._forget_if_over()

    # Writing

    async def write(self, data: bytes) -> None:
        """Send `data`, as fast as the peer opens its window.

        Raises MuxedStreamClosed after `close`, and MuxedStreamReset if the stream or its connection has ended or the
        peer opens no window within HostLimits.window_timeout. If cancelled, it has sent whole frames only; `torn` says
        whether only a part of the data was sent.
        """
        # The only checkpoint at which nothing may have been sent yet.
        await trio.lowlevel.checkpoint_if_cancelled()
        view = memoryview(data)
        while view:
            await self.wait_writable()
            async with self.conn.writer.lock:
                self._raise_if_unwritable()
                # Another write may have used the window while this one waited for the lock.
                chunk = view[: min(self.send_window, MAX_DATA)]
                if not chunk:
                    continue
                self.send_window -= len(chunk)
                await self._write_data(chunk)
            view = view[len(chunk) :]
            self.torn = len(view) > 0

    async def write_soon(self, data: bytes) -> None:
        """Send a few bytes with the next write, before this side waits for the peer, or within a millisecond.

        Raises what `write` raises, and MuxedStreamReset if there is no window. Not cancellable, bounded by
        frame_timeout.
        """
        self._raise_if_unwritable()
        if len(data) > self.send_window:
            raise MuxedStreamReset("the peer has not opened its window")
        self.send_window -= len(data)
        self._unsent = self.unconfirmed = True
        try:
            await self.conn.writer.write_soon(pack_frame(DATA, 0, self.stream_id, len(data), data))
        except ConnectionClosedError as error:
            raise MuxedStreamReset("the connection is gone") from error

    async def _write_data(self, chunk: memoryview) -> None:
        self.unconfirmed = True
        try:
            frame = pack_frame(DATA, 0, self.stream_id, len(chunk), chunk)
            await self.conn.writer.write_locked(frame, self.conn.limits.frame_timeout)
        except ConnectionClosedError as error:
            raise MuxedStreamReset("the connection is gone") from error

    async def wait_writable(self) -> None:
        """Wait until the peer has opened its window. Raises what `write` raises; may be cancelled."""
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

    def receive_window_update(self, size: int) -> None:
        """Note that the peer accepts `size` more bytes. Never blocks."""
        self.send_window += size
        self.unconfirmed = False
        if size:
            self._writable.set()

    # Ending

    async def close(self) -> None:
        """Send FIN. Reading continues. Not cancellable, bounded by frame_timeout."""
        if not self.send_closed:
            self.send_closed = True
            self._writable.set()
            await self._announce(FIN)
        self.closed = self.closed or self.recv_closed
        self._forget_if_over()

    async def reset(self) -> None:
        """End both directions and wake every task that waits on them. Not cancellable, bounded by frame_timeout."""
        was_closed = self.closed
        self.receive_reset()
        if not was_closed:
            await self._announce(RST)

    def receive_reset(self, *, keep: bool = False) -> None:
        """Note that the stream has ended. With `keep`, data received before can still be read. Never blocks."""
        self.fin_received = False
        if not keep:
            self._discard()
        self._end()
        self._forget_if_over()

    def lose_connection(self) -> None:
        """Note that the connection has ended. Received data can still be read. Never blocks."""
        self._end()

    def stop_reading(self) -> None:
        """No task will read here again: drop received data. Further data resets the stream. Never blocks."""
        if self.abandoned_at is None:
            self.abandoned_at = trio.current_time()
            if not self.closed and (self.buffer or self.recv_window <= 0):
                # A writer that has used up its window sends nothing that could be answered with a reset.
                self.conn.reset_abandoned_soon(self)
        self._discard()
        self._readable.set()
        self._forget_if_over()
        self.idle_since = self.abandoned_at

    def _end(self) -> None:
        self.closed = self.send_closed = self.recv_closed = self.reset_received = True
        self._readable.set()
        self._writable.set()

    def _discard(self) -> None:
        self.conn.unread_bytes -= len(self.buffer)
        self.buffer.clear()

    def _forget_if_over(self) -> None:
        if not self.closed:
            return
        if not self.buffer:
            self.conn.forget(self)
        elif self.idle_since is None:
            self.idle_since = trio.current_time()

    async def _announce(self, flag: int) -> None:
        try:
            await self.conn.writer.write_soon(pack_frame(WINDOW_UPDATE, flag, self.stream_id, 0))
        except ConnectionClosedError:
            # The peer learns it from the end of the connection.
            return
