"""A Yamux connection that bounds what a peer may hold and never sends half a frame.

What breaks in py-libp2p's `Yamux`:
- the receive window is only logged, so a peer fills our memory at the speed of the network;
- any number of streams may be opened, with any id, also one that we would use next;
- a cancelled write leaves half a frame on the wire, or skips a Noise nonce: the connection is garbage from there on;
- a peer that does not read stops our writes for ever, and with them whoever writes;
- pings have no consequence: a peer that is stopped, or whose cable is cut, is never noticed;
- `open_stream` waits for ever when 256 streams are open, and leaks one when it is cancelled;
- each frame formats several debug lines, also when nobody wants them;
- every acknowledgement and every end of a stream is a packet of its own: a question on a stream of its own took five.
Measure: this class receives frames itself, checks each against HostLimits before it is kept, and drops the connection
of a peer that breaks the rules. Every write is shielded and has a deadline of its own; whoever misses it loses the
connection, not the frame. Frames that nobody waits for go out with the next that is written.
Upstream: no upstream report found (November 2026).

`MuxerMultistream.new_conn` of the library builds its own class whatever `muxer_opt` holds; `upgrade.py` replaces it.
"""

from __future__ import annotations

import logging
import struct
from collections import Counter
from contextlib import suppress

import trio
from libp2p.abc import ISecureConn
from libp2p.io.exceptions import ConnectionClosedError, IOException
from libp2p.io.utils import read_exactly
from libp2p.peer.id import ID
from libp2p.stream_muxer.exceptions import MuxedStreamError
from libp2p.stream_muxer.yamux.yamux import (
    FLAG_ACK,
    FLAG_FIN,
    FLAG_RST,
    FLAG_SYN,
    GO_AWAY_NORMAL,
    HEADER_SIZE,
    TYPE_DATA,
    TYPE_GO_AWAY,
    TYPE_PING,
    TYPE_WINDOW_UPDATE,
    YAMUX_HEADER_FORMAT,
    Yamux,
    YamuxStream,
)

from ..limits import STREAM_WINDOW, HostLimits
from ..logs import RateLimiter, log_limited
from ..shields import shielded
from ..streams.locks import QuickLock
from .stream import BoundedYamuxStream, pack_frame

__all__ = ["BoundedYamux"]

logger = logging.getLogger(__name__)
limiter = RateLimiter()

_HEADER = struct.Struct(YAMUX_HEADER_FORMAT)
# Frames that we owe the peer (acknowledgements, pongs, resets) while it does not read.
MAX_REPLIES = 256
# That many are sent at once.
MANY_REPLIES = 64
# Seconds that a frame which nobody waits for may wait for another.
REPLY_DELAY = 0.001
# Seconds after which a stream that we are done with is reset, if the peer has not ended it.
ABANDONED_TIMEOUT = 60.0
# Seconds between two looks at such streams.
SWEEP_INTERVAL = 30.0


class _ViolationError(Exception):
    """The peer broke the rules of Yamux or of our limits; its connection is dropped."""


class BoundedYamux(Yamux):
    """A Yamux connection within HostLimits."""

    # The library's tables, holding our streams only.
    streams: dict[int, BoundedYamuxStream]  # type: ignore[assignment]  # dict is invariant

    def __init__(
        self, secured_conn: ISecureConn, peer_id: ID, limits: HostLimits, limits_hit: Counter[str] | None = None
    ) -> None:
        super().__init__(secured_conn, peer_id, is_initiator=secured_conn.is_initiator)
        self.limits = limits
        self.limits_hit: Counter[str] = Counter() if limits_hit is None else limits_hit
        self._write_lock = QuickLock()  # type: ignore[assignment]  # used as a lock is, no more
        self.unread_bytes = 0
        self.stream_backlog_semaphore = trio.Semaphore(limits.max_outbound_streams)
        self._last_heard = trio.current_time()
        self._heard = trio.Event()
        self._replies: list[bytes] = []
        self._replying = False
        self._many = trio.Event()

    # Writing

    async def _write_frame(self, data: bytes, within: float | None = None) -> None:
        """Send whole frames. Not cancellable, bounded (frame_timeout unless told); raises ConnectionClosedError."""
        within = within or self.limits.frame_timeout
        with shielded(within):
            async with self._write_lock:
                await self.write_locked(data, within)
            return
        await self._drop("it takes no frames")
        raise ConnectionClosedError("the peer takes no frames")

    async def write_locked(self, data: bytes, within: float) -> None:
        """As `_write_frame`, for a caller that holds the write lock."""
        if self.event_shutting_down.is_set():
            raise ConnectionClosedError("the connection is shutting down")
        if self._replies:
            data = b"".join((*self._replies, data))
            self._replies.clear()
        if not data:
            # Somebody else has written it.
            return
        try:
            with shielded(within):
                await self.secured_conn.write(data)
                return
        except (IOException, OSError, trio.BrokenResourceError, trio.ClosedResourceError) as error:
            await self._drop("it cannot be written to")
            raise ConnectionClosedError("the connection cannot be written to") from error
        await self._drop("it takes no frames")
        raise ConnectionClosedError("the peer takes no frames")

    async def _drop(self, reason: str) -> None:
        """Close the socket; the receiving task sees it and clears up. Never blocks for long."""
        if not self.event_shutting_down.is_set():
            log_limited(logger, limiter, logging.INFO, "dropped the connection of %s: %s", self.peer_id, reason)
        self.event_shutting_down.set()
        with shielded(self.limits.close_timeout), suppress(IOException, OSError):
            await self.secured_conn.close()

    async def close(self, error_code: int = GO_AWAY_NORMAL) -> None:
        """Say goodbye and end the connection and its streams. The original sleeps for a tenth of a second."""
        if not self.event_shutting_down.is_set():
            # A courtesy, so it waits no longer than all of closing may take.
            with suppress(ConnectionClosedError):
                await self._write_frame(pack_frame(TYPE_GO_AWAY, 0, 0, error_code), self.limits.close_timeout)
        self.event_shutting_down.set()
        # The receiving task clears up too when it sees the closed socket: whichever comes first, twice does no harm.
        await self._cleanup_on_error()

    # Streams of ours

    async def open_stream(self) -> BoundedYamuxStream:
        """Open a stream. Raises MuxedStreamError when the connection is gone or max_outbound_streams are open.

        Cancelled, it has opened none.
        """
        await trio.lowlevel.checkpoint()
        if self.event_shutting_down.is_set():
            raise MuxedStreamError("the connection is shutting down")
        try:
            self.stream_backlog_semaphore.acquire_nowait()
        except trio.WouldBlock:
            raise MuxedStreamError(f"{self.limits.max_outbound_streams} streams to this peer are open") from None
        stream = self._add_stream(self.next_stream_id, is_initiator=True)
        self.next_stream_id += 2
        stream._owns_backlog_slot = True
        try:
            await self.say(pack_frame(TYPE_WINDOW_UPDATE, FLAG_SYN, stream.stream_id, 0))
        except ConnectionClosedError as error:
            stream.receive_reset()
            raise MuxedStreamError("the connection is gone") from error
        return stream

    def _add_stream(self, stream_id: int, is_initiator: bool) -> BoundedYamuxStream:
        stream = BoundedYamuxStream(stream_id, self, is_initiator)
        self.streams[stream_id] = stream
        self.stream_buffers[stream_id] = stream.buffer
        return stream

    def _finalize_stream_locked(self, stream: YamuxStream, *, fully_closed: bool) -> None:
        # The original frees the place of a stream that only we have ended, so that there was no bound on open ones.
        if fully_closed:
            super()._finalize_stream_locked(stream, fully_closed=True)

    # Receiving

    async def handle_incoming(self) -> None:
        """Receive frames until the connection ends or the peer breaks the rules, then clear up."""
        try:
            await self._receive_frames()
        finally:
            streams = list(self.streams.values())
            self.event_shutting_down.set()
            with shielded(self.limits.close_timeout):
                await self._cleanup_on_error()
            # The clean-up may have been cut; whoever waits for the end must still learn of it.
            self.event_closed.set()
            self._heard.set()
            for stream in streams:
                stream.wake()

    async def _receive_frames(self) -> None:
        try:
            while not self.event_shutting_down.is_set() and await self._receive_frame():
                if len(self._replies) >= MANY_REPLIES:
                    # Many frames may come in one packet: not even the quickest peer could take its answers meanwhile.
                    await trio.lowlevel.checkpoint()
        except _ViolationError as violation:
            await self._drop(str(violation))
        except trio.TooSlowError:
            await self._drop("it stopped in the middle of a frame")
        except (IOException, OSError, trio.ClosedResourceError, trio.BrokenResourceError):
            # The ordinary end of a connection; the streams' readers are told by the clean-up.
            return
        except Exception as error:
            # Noise reports tampered bytes with exceptions of its own library; nothing may leave this task.
            await self._drop(f"it sent what cannot be decrypted ({type(error).__name__})")

    async def _receive_frame(self) -> bool:
        header = await read_exactly(self.secured_conn, HEADER_SIZE)
        version, kind, flags, stream_id, value = _HEADER.unpack(header)
        self._last_heard = trio.current_time()
        self._heard.set()
        if version != 0 or kind > TYPE_GO_AWAY:
            raise _ViolationError(f"a frame of version {version} and type {kind}")
        if kind == TYPE_DATA:
            await self._receive_data(flags, stream_id, value)
        elif kind == TYPE_WINDOW_UPDATE:
            await self._receive_window_free(flags, stream_id, value)
        elif kind == TYPE_PING and flags & FLAG_SYN:
            self._reply(pack_frame(TYPE_PING, FLAG_ACK, 0, value))
        return bool(kind != TYPE_GO_AWAY)

    async def _receive_window_free(self, flags: int, stream_id: int, free: int) -> None:
        stream = await self._find_stream(flags, stream_id)
        if stream is not None:
            stream.receive_window_free(free)
            self._end_stream(stream, flags)

    async def _receive_data(self, flags: int, stream_id: int, size: int) -> None:
        # Before a byte of it is read: a frame larger than any window is never right.
        if size > STREAM_WINDOW:
            raise _ViolationError(f"a frame of {size} bytes")
        with trio.fail_after(self.limits.frame_timeout):
            data = await read_exactly(self.secured_conn, size) if size else b""
        stream = await self._find_stream(flags, stream_id)
        if stream is None or stream.closed:
            return
        if size > stream.recv_window:
            raise _ViolationError("more than a stream's window")
        if stream.abandoned_at is not None and size:
            self._reset_abandoned(stream)
            return
        if self.unread_bytes + size > self.limits.max_unread_bytes:
            raise _ViolationError(f"more than {self.limits.max_unread_bytes} bytes unread")
        stream.receive(data)
        self._end_stream(stream, flags)

    def _end_stream(self, stream: BoundedYamuxStream, flags: int) -> None:
        if flags & FLAG_RST:
            # Both may have come in one packet: whether the reader was quick must make no difference.
            stream.receive_reset(keep=stream.abandoned_at is None)
        elif flags & FLAG_FIN:
            stream.receive_fin()

    async def _find_stream(self, flags: int, stream_id: int) -> BoundedYamuxStream | None:
        if flags & FLAG_SYN:
            return await self._accept_stream(stream_id)
        return self.streams.get(stream_id)

    async def _accept_stream(self, stream_id: int) -> BoundedYamuxStream | None:
        ours = stream_id % 2 == self.next_stream_id % 2
        if stream_id == 0 or ours or stream_id in self.streams:
            raise _ViolationError(f"a new stream with id {stream_id}")
        inbound = [stream for stream in self.streams.values() if not stream.is_initiator]
        if len(inbound) >= self.limits.max_inbound_streams:
            over = min(
                (stream for stream in inbound if stream.abandoned_at is not None),
                key=lambda stream: stream.abandoned_at or 0.0,
                default=None,
            )
            if over is None:
                self.limits_hit["inbound_streams"] += 1
                self._reply(pack_frame(TYPE_WINDOW_UPDATE, FLAG_RST, stream_id, 0))
                return None
            # We have ended this stream and only the peer's end is missing: a new stream is worth more.
            self._reset_abandoned(over)
        stream = self._add_stream(stream_id, is_initiator=False)
        self._reply(pack_frame(TYPE_WINDOW_UPDATE, FLAG_ACK, stream_id, 0))
        await self.new_stream_send_channel.send(stream)
        return stream

    def _reset_abandoned(self, stream: BoundedYamuxStream) -> None:
        self._reply(pack_frame(TYPE_WINDOW_UPDATE, FLAG_RST, stream.stream_id, 0))
        stream.receive_reset()

    def reset_abandoned_soon(self, stream: BoundedYamuxStream) -> None:
        """Reset a stream that nobody reads any more unless the peer ends it within `close_timeout`. Never blocks."""
        if self._nursery is not None and not self.event_shutting_down.is_set():
            self._nursery.start_soon(self._reset_later, stream)

    async def _reset_later(self, stream: BoundedYamuxStream) -> None:
        # The peer has the time to read what was said last.
        await trio.sleep(self.limits.close_timeout)
        if not stream.closed:
            with suppress(_ViolationError):
                self._reset_abandoned(stream)

    def _reply(self, frame: bytes) -> None:
        # Never awaited where frames are received: two peers that wait for each other to read would both stop.
        if len(self._replies) >= MAX_REPLIES:
            raise _ViolationError(f"{MAX_REPLIES} answers not taken")
        self._put_reply(frame)

    async def say(self, frame: bytes) -> None:
        """Send a frame of a few bytes, with the next that is written and within REPLY_DELAY.

        Not cancellable, bounded by frame_timeout; raises ConnectionClosedError.
        """
        if len(self._replies) < 2 * MANY_REPLIES and self._nursery is not None:
            if self.event_shutting_down.is_set():
                raise ConnectionClosedError("the connection is shutting down")
            self._put_reply(frame)
        else:
            await self._write_frame(frame)

    async def flush(self) -> None:
        """Send what was to be sent soon. Not cancellable, bounded by frame_timeout; raises ConnectionClosedError."""
        if self._replies:
            await self._write_frame(b"")

    def _put_reply(self, frame: bytes) -> None:
        self._replies.append(frame)
        if len(self._replies) >= MANY_REPLIES:
            self._many.set()
        # Its task lasts only as long as there is something to say: most connections say nothing most of the time.
        if not self._replying and self._nursery is not None and not self.event_shutting_down.is_set():
            self._replying = True
            self._nursery.start_soon(self._send_replies)

    async def _send_replies(self) -> None:
        try:
            while self._replies:
                # Mostly somebody writes at once, and takes them along in the same packet.
                with trio.move_on_after(REPLY_DELAY):
                    while len(self._replies) < MANY_REPLIES:
                        self._many = trio.Event()
                        await self._many.wait()
                await self.flush()
        except ConnectionClosedError:
            return
        finally:
            self._replying = False

    # Watching

    async def _measure_rtt_loop(self) -> None:
        """Ping a peer of which nothing was heard for ping_interval, and drop it when it stays silent."""
        while True:
            due = self._last_heard + self.limits.ping_interval
            await trio.sleep_until(min(due, trio.current_time() + SWEEP_INTERVAL))
            self._sweep_stale_streams()
            if trio.current_time() < self._last_heard + self.limits.ping_interval:
                continue
            if not await self.is_responsive(self.limits.ping_timeout):
                await self._drop("it is silent")
                return

    async def is_responsive(self, timeout: float) -> bool:  # noqa: ASYNC109  # an answer, not an error
        """Whether the peer is heard of within `timeout` seconds of being asked. May be cancelled."""
        # Asked twice: when this process itself was stopped, the first deadline passes before anything was received.
        for _ in range(2):
            if self._heard.is_set():
                self._heard = trio.Event()
            heard = self._heard
            self._ping_id = (self._ping_id + 1) % 2**32
            try:
                await self._write_frame(pack_frame(TYPE_PING, FLAG_SYN, 0, self._ping_id))
            except ConnectionClosedError:
                return False
            with trio.move_on_after(timeout / 2):
                await heard.wait()
                return not self.event_shutting_down.is_set()
        return False

    async def _stale_stream_sweeper(self) -> None:
        """Nothing: the task that pings does it, which is a task less for each connection."""

    def _sweep_stale_streams(self, now: float | None = None) -> int:
        """Drop streams that are over but for the peer's last word. Called every SWEEP_INTERVAL seconds at the most."""
        before = dict(self.streams)
        now = trio.current_time() if now is None else now
        for stream in before.values():
            if stream.abandoned_at is not None and now - stream.abandoned_at > ABANDONED_TIMEOUT:
                with suppress(_ViolationError):
                    self._reset_abandoned(stream)
        super()._sweep_stale_streams(now)
        dropped = [stream for key, stream in before.items() if key not in self.streams]
        for stream in dropped:
            # What a reader has not fetched by now is gone, and it must not take the rest for the whole.
            if stream.buffer:
                stream.receive_reset()
        return len(dropped)
