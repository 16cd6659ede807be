"""A Yamux connection that limits what a peer may hold and what its frames may cost.

What breaks in py-libp2p's `Yamux`, in addition to what the other modules of this package say:
- A violation of the receive window is only logged, so a peer fills our memory at the speed of the network.
- Any number of streams may be opened, with any id, even with one that we would use next.
- Pings have no consequence: a peer that is stopped, or whose cable is cut, is never noticed.
- `open_stream` waits for ever when 256 streams are open, and leaks one when it is cancelled.
- Each frame is read in two steps through five layers, and several debug lines are formatted even if nobody reads them.
- A Noise message holds 5,400 frames without content, which cost the sender nothing. If they are pongs, all of them are
  handled in one turn of the scheduler.
Measure: this class implements `IMuxedConn` itself. It checks each frame against HostLimits before it keeps anything,
charges frames without content (see `accounts`), lets other tasks run after FRAMES_PER_TURN frames, and drops the
connection of a peer that violates the rules.
Upstream: no upstream report found (November 2026).
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, Final

import trio
from libp2p.abc import IMuxedConn, ISecureConn
from libp2p.connection_types import ConnectionType
from libp2p.io.exceptions import ConnectionClosedError, IOException
from libp2p.peer.id import ID
from libp2p.stream_muxer.exceptions import MuxedConnUnavailable, MuxedStreamError
from multiaddr import Multiaddr  # type: ignore[import-untyped]  # it has no types

from ..limits import STREAM_WINDOW, HostLimits
from ..logs import RateLimiter, log_limited
from ..tasks import shielded
from .accounts import BYTES_PER_FRAME, SMALL_FRAME, STREAM_COST, STREAM_PACE, AddressAccount, ConnectionAccount
from .frames import ACK, DATA, FIN, GO_AWAY, HEADER_SIZE, PING, RST, SYN, WINDOW_UPDATE, YamuxFrameReader, pack_frame
from .stream import BoundedYamuxStream
from .writer import MANY_REPLIES, MAX_REPLIES, FrameWriter

__all__ = ["BoundedYamux"]

logger = logging.getLogger(__name__)
limiter = RateLimiter()

# Frames, and pieces in which they arrive, that one connection handles before other tasks run.
FRAMES_PER_TURN: Final = 32
# Streams that the peer has opened and no handler has accepted yet. Further streams wait in the socket.
STREAM_QUEUE: Final = 10
# Seconds after which a stream that we have finished is reset if the peer has not ended it.
ABANDONED_TIMEOUT: Final = 60.0
# Seconds between two checks for such streams.
SWEEP_INTERVAL: Final = 30.0
GO_AWAY_NORMAL: Final = 0


class _ViolationError(Exception):
    """The peer violated the rules of Yamux or our limits; its connection is dropped."""


class BoundedYamux(IMuxedConn):
    """A Yamux connection within HostLimits. What it refuses is counted in `limits_hit`."""

    def __init__(
        self,
        secured_conn: ISecureConn,
        peer_id: ID,
        limits: HostLimits | None = None,
        limits_hit: Counter[str] | None = None,
        address: AddressAccount | None = None,
    ) -> None:
        self.secured_conn = secured_conn
        self.peer_id = peer_id
        self.limits = limits or HostLimits()
        self.limits_hit: Counter[str] = Counter() if limits_hit is None else limits_hit
        self.account = ConnectionAccount(address or AddressAccount(self.limits))
        self.event_started = trio.Event()
        self.event_shutting_down = trio.Event()
        self.event_closed = trio.Event()
        # Set by the swarm.
        self.on_close: Callable[[], Awaitable[Any]] | None = None
        self.streams: dict[int, BoundedYamuxStream] = {}
        self.unread_bytes = 0
        self._widened = 0
        self.writer = FrameWriter(secured_conn, self.limits, self.drop)
        self._reader = YamuxFrameReader(self._read_piece)
        # Odd ids are the dialling side's, even ones the listening side's.
        self._next_stream_id = 1 if secured_conn.is_initiator else 2
        self._inbound = self._outbound = 0
        self._accepted, self._accepting = trio.open_memory_channel[BoundedYamuxStream](STREAM_QUEUE)
        self._work = 0
        self._last_heard = trio.current_time()
        self._heard = trio.Event()
        self._ping_id = 0

    # What the library reads

    @property
    def is_initiator(self) -> bool:
        """Whether this side dialled."""
        return self.secured_conn.is_initiator

    @property
    def is_established(self) -> bool:
        """Whether streams can be opened."""
        return self.event_started.is_set() and not self.event_shutting_down.is_set()

    @property
    def is_closed(self) -> bool:
        """Whether the connection and all its streams have ended."""
        return self.event_closed.is_set()

    def get_transport_addresses(self) -> list[Multiaddr]:
        """The other side's addresses, as the connection below knows them."""
        return self.secured_conn.get_transport_addresses()

    def get_connection_type(self) -> ConnectionType:
        """Whether the connection is direct or relayed."""
        return self.secured_conn.get_connection_type()

    def get_remote_address(self) -> tuple[str, int] | None:
        """The other side's IP address and port; None if there is none, as behind a relay."""
        return self.secured_conn.get_remote_address()

    # Its life

    async def start(self) -> None:
        """Run the connection until it ends. If cancelled, the connection ends."""
        async with trio.open_nursery() as nursery:
            self.writer.nursery = nursery
            nursery.start_soon(self._watch)
            nursery.start_soon(self._run, nursery.cancel_scope)
            self.event_started.set()

    async def _run(self, scope: trio.CancelScope) -> None:
        try:
            await self._receive_frames()
        finally:
            with shielded(self.limits.close_timeout):
                await self._clean_up()
            # The clean-up may have been interrupted. Tasks that wait for the end must still learn of it.
            self.event_closed.set()
            self._heard.set()
            scope.cancel()

    async def close(self) -> None:
        """Send GO_AWAY and end the connection and its streams. Bounded by close_timeout."""
        if not self.event_shutting_down.is_set():
            with suppress(ConnectionClosedError):
                await self.writer.write(pack_frame(GO_AWAY, 0, 0, GO_AWAY_NORMAL), self.limits.close_timeout)
        # The receiving task also cleans up when it sees the closed socket. A second time does no harm.
        await self._clean_up()

    async def drop(self, reason: str) -> None:
        """Close the socket; the receiving task notices it and cleans up. Not cancellable, bounded by close_timeout."""
        if not self.event_shutting_down.is_set():
            log_limited(logger, limiter, logging.INFO, "dropped the connection of %s: %s", self.peer_id, reason)
        self._shut_down()
        with shielded(self.limits.close_timeout), suppress(IOException, OSError):
            await self.secured_conn.close()

    def _shut_down(self) -> None:
        self.event_shutting_down.set()
        self.writer.end()

    async def _clean_up(self) -> None:
        self._shut_down()
        self._accepted.close()
        for stream in list(self.streams.values()):
            stream.lose_connection()
        self.streams.clear()
        self._inbound = self._outbound = 0
        with suppress(Exception):
            # Each transport of the library fails in its own way, and each failure means that it is closed.
            await self.secured_conn.close()
        self.event_closed.set()
        on_close, self.on_close = self.on_close, None
        if on_close is not None:
            try:
                await on_close()
            except Exception as error:
                log_limited(logger, limiter, logging.ERROR, "closing %s failed: %r", self.peer_id, error)

    # Streams

    async def open_stream(self) -> BoundedYamuxStream:
        """Open a stream. Raises MuxedStreamError if the connection has ended or max_outbound_streams are open.

        If cancelled, it has opened none.
        """
        await trio.lowlevel.checkpoint()
        if self.event_shutting_down.is_set():
            raise MuxedStreamError("the connection is shutting down")
        if self._outbound >= self.limits.max_outbound_streams:
            raise MuxedStreamError(f"{self.limits.max_outbound_streams} streams to this peer are open")
        stream = self._add_stream(self._next_stream_id, is_initiator=True)
        self._next_stream_id += 2
        try:
            await self.writer.write_soon(pack_frame(WINDOW_UPDATE, SYN, stream.stream_id, 0))
        except ConnectionClosedError as error:
            stream.receive_reset()
            raise MuxedStreamError("the connection is gone") from error
        return stream

    async def accept_stream(self) -> BoundedYamuxStream:
        """The next stream that the peer opens. Raises MuxedConnUnavailable when the connection has ended."""
        try:
            return await self._accepting.receive()
        except trio.EndOfChannel:
            raise MuxedConnUnavailable("the connection is gone") from None

    def _add_stream(self, stream_id: int, *, is_initiator: bool) -> BoundedYamuxStream:
        stream = self.streams[stream_id] = BoundedYamuxStream(stream_id, self, is_initiator)
        self._outbound += is_initiator
        self._inbound += not is_initiator
        return stream

    def forget(self, stream: BoundedYamuxStream) -> None:
        """Forget a stream that is closed in both directions and read to its end. Never blocks."""
        if self.streams.get(stream.stream_id) is stream:
            del self.streams[stream.stream_id]
            self._widened -= stream.window - STREAM_WINDOW
            self._outbound -= stream.is_initiator
            self._inbound -= not stream.is_initiator

    # Receiving

    async def _read_piece(self) -> bytes:
        piece = await self.secured_conn.read()
        if len(piece) < HEADER_SIZE:
            # A message of the secured connection that is shorter than a header costs as much as a frame.
            self._charge()
        await self._count_work()
        return piece

    async def _count_work(self) -> None:
        """Let other tasks run when this one has done enough, or has many answers to send. May be cancelled."""
        self._work += 1
        if self._work >= FRAMES_PER_TURN or self.writer.pending >= MANY_REPLIES:
            self._work = 0
            await trio.lowlevel.checkpoint()

    async def _pace(self, frames: int = 1) -> None:
        """Wait if the connections of this address have sent small frames faster than they may."""
        delay = self.account.address.pace.delay(frames)
        if delay:
            await trio.sleep(delay)

    def _charge(self, frames: int = 1) -> None:
        if self.account.charge(frames):
            return
        self.limits_hit["empty_frames"] += 1
        if self.account.address.condemn():
            # Once for each address, however many connections it has.
            address = (self.get_remote_address() or ("a relay",))[0]
            message = "%s at %s sends frames that carry nothing"
            log_limited(logger, limiter, logging.WARNING, message, self.peer_id, address)
        self._shut_down()
        raise _ViolationError("it sends frames that carry nothing")

    async def _receive_frames(self) -> None:
        try:
            while not self.event_shutting_down.is_set() and await self._receive_frame():
                await self._count_work()
        except _ViolationError as violation:
            await self.drop(str(violation))
        except trio.TooSlowError:
            await self.drop("it stopped in the middle of a frame")
        except (IOException, OSError, trio.ClosedResourceError, trio.BrokenResourceError):
            # The ordinary end of a connection. The clean-up informs the readers of the streams.
            return
        except Exception as error:
            # For tampered bytes Noise raises exceptions of another library. None of them may leave this task.
            await self.drop(f"it sent what cannot be decrypted ({type(error).__name__})")

    async def _receive_frame(self) -> bool:
        """Handle one frame. Returns whether more may follow."""
        version, kind, flags, stream_id, value = await self._reader.take_header()
        self._last_heard = trio.current_time()
        self._heard.set()
        if version != 0 or kind > GO_AWAY:
            raise _ViolationError(f"a frame of version {version} and type {kind}")
        if kind == DATA:
            await self._receive_data(flags, stream_id, value)
        elif kind == WINDOW_UPDATE:
            await self._receive_window_update(flags, stream_id, value)
        elif kind == PING:
            self._charge()
            if flags & SYN:
                self._reply(pack_frame(PING, ACK, 0, value))
        return bool(kind != GO_AWAY)

    async def _receive_window_update(self, flags: int, stream_id: int, size: int) -> None:
        stream = await self._find_stream(flags, stream_id)
        if stream is None:
            self._charge()
            return
        # An update that announces neither a change nor that something was read has no content.
        if not (size and stream.unconfirmed) and not stream.is_news(flags):
            self._charge()
        stream.receive_window_update(size)
        self._end_stream(stream, flags)

    async def _receive_data(self, flags: int, stream_id: int, size: int) -> None:
        # Checked before any byte of it is read: a frame larger than any window is never valid.
        known = self.streams.get(stream_id)
        if size > (STREAM_WINDOW if known is None else max(STREAM_WINDOW, known.window)):
            raise _ViolationError(f"a frame of {size} bytes")
        if size < SMALL_FRAME:
            await self._pace()
        data = await self._take_body(size)
        stream = await self._find_stream(flags, stream_id)
        if stream is None or stream.closed or stream.fin_received:
            self._charge()
            return
        if size > stream.recv_window:
            raise _ViolationError("more than a stream's window")
        if stream.abandoned_at is not None and size:
            self._charge()
            self._reset_abandoned(stream)
            return
        if self.unread_bytes + size > self.limits.max_unread_bytes:
            raise _ViolationError(f"more than {self.limits.max_unread_bytes} bytes unread")
        if size >= BYTES_PER_FRAME:
            self.account.earn(size)
        elif not stream.is_news(flags):
            self._charge()
        stream.receive(data)
        self._end_stream(stream, flags)

    def widen(self, stream: BoundedYamuxStream) -> int:
        """Double the window of a stream, as far as the bound of all streams allows. Returns the bytes gained."""
        gained = max(0, min(stream.window, self.limits.max_unread_bytes // 2 - self._widened))
        stream.window += gained
        self._widened += gained
        return gained

    async def _take_body(self, size: int) -> bytes:
        if self._reader.has(size):
            return await self._reader.take(size)
        with trio.fail_after(self.limits.frame_timeout):
            return await self._reader.take(size)

    def _end_stream(self, stream: BoundedYamuxStream, flags: int) -> None:
        if flags & RST:
            # Both may have arrived in one packet. The result must not depend on how quick the reader was.
            stream.receive_reset(keep=stream.abandoned_at is None)
        elif flags & FIN:
            if stream.fin_received:
                self._charge()
            stream.receive_fin()

    async def _find_stream(self, flags: int, stream_id: int) -> BoundedYamuxStream | None:
        if flags & SYN:
            return await self._accept_stream(stream_id)
        return self.streams.get(stream_id)

    async def _accept_stream(self, stream_id: int) -> BoundedYamuxStream | None:
        ours = stream_id % 2 == self._next_stream_id % 2
        if stream_id == 0 or ours or stream_id in self.streams:
            raise _ViolationError(f"a new stream with id {stream_id}")
        if self._inbound >= self.limits.max_inbound_streams:
            abandoned = [stream for stream in self.streams.values() if not stream.is_initiator and stream.abandoned_at]
            if not abandoned:
                self.limits_hit["inbound_streams"] += 1
                self._reply(pack_frame(WINDOW_UPDATE, RST, stream_id, 0))
                return None
            # We have ended this stream and only the peer's end is missing, so a new stream is worth more.
            self._reset_abandoned(min(abandoned, key=lambda stream: stream.abandoned_at or 0.0))
        self._charge(STREAM_COST)
        await self._pace(STREAM_PACE)
        stream = self._add_stream(stream_id, is_initiator=False)
        self._reply(pack_frame(WINDOW_UPDATE, ACK, stream_id, 0))
        await self._accepted.send(stream)
        return stream

    def _reset_abandoned(self, stream: BoundedYamuxStream) -> None:
        self._reply(pack_frame(WINDOW_UPDATE, RST, stream.stream_id, 0))
        stream.receive_reset()

    def reset_abandoned_soon(self, stream: BoundedYamuxStream) -> None:
        """Reset a stream that is no longer read unless the peer ends it within `close_timeout`. Never blocks."""
        if self.writer.nursery is not None and not self.event_shutting_down.is_set():
            self.writer.nursery.start_soon(self._reset_later, stream)

    async def _reset_later(self, stream: BoundedYamuxStream) -> None:
        # The peer has this time to read what was sent last.
        await trio.sleep(self.limits.close_timeout)
        if not stream.closed:
            with suppress(_ViolationError):
                self._reset_abandoned(stream)

    def _reply(self, frame: bytes) -> None:
        # Never awaited where frames are received: two peers that wait for each other to read would block each other.
        if not self.writer.reply(frame):
            raise _ViolationError(f"{MAX_REPLIES} answers not taken")

    # Watching

    async def _watch(self) -> None:
        """Ping a peer that has been silent for ping_interval, and drop it if it stays silent."""
        while True:
            due = self._last_heard + self.limits.ping_interval
            await trio.sleep_until(min(due, trio.current_time() + SWEEP_INTERVAL))
            self._sweep()
            if trio.current_time() < self._last_heard + self.limits.ping_interval:
                continue
            if not await self.is_responsive(self.limits.ping_timeout):
                await self.drop("it is silent")
                return

    async def is_responsive(self, timeout: float) -> bool:  # noqa: ASYNC109  # an answer, not an error
        """Whether anything arrives from the peer within `timeout` seconds of a ping. May be cancelled."""
        # Two pings: if this process itself was stopped, the first deadline passes before anything was received.
        for _ in range(2):
            if self._heard.is_set():
                self._heard = trio.Event()
            heard = self._heard
            self._ping_id = (self._ping_id + 1) % 2**32
            try:
                await self.writer.write(pack_frame(PING, SYN, 0, self._ping_id))
            except ConnectionClosedError:
                return False
            with trio.move_on_after(timeout / 2):
                await heard.wait()
                return not self.event_shutting_down.is_set()
        return False

    def _sweep(self) -> None:
        """Reset streams that are no longer read and that the peer does not end."""
        now = trio.current_time()
        for stream in list(self.streams.values()):
            if stream.idle_since is None or now - stream.idle_since <= ABANDONED_TIMEOUT:
                continue
            if not stream.closed:
                self.writer.reply(pack_frame(WINDOW_UPDATE, RST, stream.stream_id, 0))
            # A later reader must not mistake what was received for the whole.
            stream.receive_reset()
