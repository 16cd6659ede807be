"""A libp2p stream as a trio stream, and ways to end a stream that never harm its connection.

The protocols above see only byte streams and trio's errors. On our own host a cancelled read or write leaves stream and
connection intact. The library's own streams lose bytes when a read is cancelled, and break the connection when a write
is cancelled (see `dms_host.yamux`). So on a plain host a write is shielded, in pieces, with a deadline, and a cancelled
read resets its stream instead of losing bytes silently.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, NoReturn, TypeVar

import trio
import trio.abc
from libp2p.connection_types import ConnectionType
from libp2p.network.stream.exceptions import StreamEOF

from ..tasks import shielded

if TYPE_CHECKING:
    from collections.abc import Iterator

    from libp2p.abc import INetStream

__all__ = ["PeerStream", "close_stream", "reset_stream"]

logger = logging.getLogger(__name__)

T = TypeVar("T")

# Bytes of one read unless the caller asks for another number, and of one shielded piece of a write on a plain host.
PIECE = 64 * 1024
# Seconds for one shielded piece. After that the peer reads no frames, and its connection is closed.
PIECE_TIMEOUT = 20.0
# Seconds that a stream on a plain host may wait for its reader, as on our own host.
WINDOW_TIMEOUT = 30.0
CLOSE_TIMEOUT = 2.0


class PeerStream(trio.abc.HalfCloseableStream):
    """One stream to one peer. One task may send and one may receive at a time, as with every trio stream.

    Raises trio.BrokenResourceError if the stream or its connection has ended, trio.ClosedResourceError after `aclose`.
    """

    def __init__(self, stream: INetStream, close_timeout: float = CLOSE_TIMEOUT) -> None:
        self._stream = stream
        self._muxed = getattr(stream, "muxed_stream", None)
        self._cancel_safe = bool(getattr(self._muxed, "cancel_safe", False))
        self._close_timeout = close_timeout
        self._closed = self._ended = self._broken = self._finished = False
        self._sending = self._receiving = False
        self._receive_scope: trio.CancelScope | None = None

    @property
    def remote_peer_id(self) -> str:
        """The id of the peer at the other end, proved by the handshake."""
        return self._stream.muxed_conn.peer_id.to_base58()

    @property
    def protocol(self) -> str:
        """The negotiated protocol, or an empty string."""
        return str(self._stream.get_protocol() or "")

    @property
    def over(self) -> bool:
        """Whether the stream is known to accept no more data."""
        return self._closed or self._broken or bool(getattr(self._muxed, "reset_received", False))

    @property
    def relayed(self) -> bool:
        """Whether its connection goes through a relay."""
        return self._stream.muxed_conn.get_connection_type() is ConnectionType.RELAYED

    @property
    def remote_address(self) -> str:
        """The IP address at the other end of its connection; empty for a relayed connection, or if not known."""
        if self.relayed:
            return ""
        address = getattr(self._stream, "get_remote_address", lambda: None)()
        return address[0] if address else ""

    # Sending

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send all of `data`. If it is cancelled after a part was sent, it resets the stream."""
        with self._busy("_sending", "another task is sending on this stream"):
            self._raise_if_unsendable()
            if not data:
                await trio.lowlevel.checkpoint()
            elif self._cancel_safe:
                await self._send_safely(bytes(data))
            else:
                await self._send_in_pieces(bytes(data))

    async def _send_safely(self, data: bytes) -> None:
        try:
            await self._translated(self._stream.write, data)
        except trio.Cancelled:
            if getattr(self._muxed, "torn", True):
                await self._break()
            raise

    async def _send_in_pieces(self, data: bytes) -> None:
        sent = 0
        while sent < len(data):
            try:
                await self._wait_foreign_window()
            except trio.Cancelled:
                if sent:
                    await self._break()
                raise
            # At least one byte, so that writing to an ended stream raises.
            piece = data[sent : sent + max(1, min(PIECE, self._foreign_window()))]
            with shielded(PIECE_TIMEOUT) as scope:
                await self._translated(self._stream.write, piece)
            if scope.cancelled_caught:
                await self._give_up()
            sent += len(piece)

    def _foreign_window(self) -> int:
        # The library's Yamux would wait for window inside the write, where it must not be cancelled.
        return int(getattr(self._muxed, "send_window", PIECE))

    async def _wait_foreign_window(self) -> None:
        await trio.lowlevel.checkpoint()
        with trio.move_on_after(WINDOW_TIMEOUT):
            while self._foreign_window() <= 0 and not getattr(self._muxed, "closed", False):  # noqa: ASYNC110
                # No event announces it. The library itself polls at this interval.
                await trio.sleep(0.01)
            return
        await self._break()
        raise trio.BrokenResourceError("the peer reads nothing")

    async def _give_up(self) -> NoReturn:
        self._broken = True
        await drop_connection(self._stream, self._close_timeout)
        raise trio.BrokenResourceError("the peer takes nothing")

    async def wait_send_all_might_not_block(self) -> None:
        """Wait until the peer accepts more data."""
        with self._busy("_sending", "another task is sending on this stream"):
            self._raise_if_unsendable()
            await trio.lowlevel.checkpoint()
            await self._translated(getattr(self._muxed, "wait_writable", self._wait_foreign_window))

    async def send_eof(self) -> None:
        """Send FIN: nothing more will be sent. Receiving continues. May be called twice."""
        with self._busy("_sending", "another task is sending on this stream"):
            if self._finished and not self._closed:
                await trio.lowlevel.checkpoint()
                return
            self._raise_if_unsendable()
            self._finished = True
            with shielded(PIECE_TIMEOUT) as scope:
                await self._translated(self._close_write)
            if scope.cancelled_caught:
                await self._give_up()
            await trio.lowlevel.checkpoint()

    async def _close_write(self) -> None:
        # INetStream lacks this method, but both of the library's streams have it.
        await self._stream.close_write()  # type: ignore[attr-defined]

    def _raise_if_unsendable(self) -> None:
        self._raise_if_closed()
        if self._broken:
            raise trio.BrokenResourceError("the stream was reset")
        if self._finished:
            raise trio.ClosedResourceError("send_eof was called")

    # Receiving

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Some bytes, or b"" after the peer's FIN. If cancelled on a plain host, it resets the stream."""
        if max_bytes is not None and max_bytes < 1:
            raise ValueError("max_bytes must be at least 1")
        with self._busy("_receiving", "another task is receiving on this stream"):
            self._raise_if_closed()
            await trio.lowlevel.checkpoint()
            if self._ended:
                return b""
            if self._broken:
                raise trio.BrokenResourceError("the stream was reset")
            return await self._receive(max_bytes or PIECE)

    async def _receive(self, size: int) -> bytes:
        # The library does not wake a reader whose stream another task closes. aclose cancels this scope.
        with trio.CancelScope() as scope:
            self._receive_scope = scope
            try:
                data = await self._translated(self._stream.read, size)
            except StreamEOF:
                data = b""
            except trio.Cancelled:
                if not self._cancel_safe:
                    await self._break()
                raise
            self._ended = self._ended or not data
        self._receive_scope = None
        if scope.cancelled_caught:
            if self._ended and not self._closed:
                return b""
            raise trio.ClosedResourceError("the stream was closed")
        return data

    # Ending

    def end_receiving(self) -> None:
        """Receive nothing more, as after a FIN. Sending continues. On a plain host this has no effect."""
        if self._cancel_safe:
            self._ended = True
            if self._receive_scope is not None:
                self._receive_scope.cancel()

    async def aclose(self) -> None:
        """End both directions of the stream, within a few seconds. Even if cancelled, the stream has ended
        afterwards.
        """
        if not self._closed:
            self._stop_receiving()
            if self._broken:
                await reset_stream(self._stream, self._close_timeout)
            else:
                await close_stream(self._stream, self._close_timeout)
        await trio.lowlevel.checkpoint()

    async def areset(self) -> None:
        """Reset the stream, so that the peer sees that it was cut off. Not cancellable."""
        self._stop_receiving()
        await self._break()

    def _stop_receiving(self) -> None:
        self._closed = True
        if self._receive_scope is not None:
            self._receive_scope.cancel()

    async def _break(self) -> None:
        self._broken = True
        await reset_stream(self._stream, self._close_timeout)

    def _raise_if_closed(self) -> None:
        if self._closed:
            raise trio.ClosedResourceError("the stream was closed")

    @contextmanager
    def _busy(self, flag: str, message: str) -> Iterator[None]:
        if getattr(self, flag):
            raise trio.BusyResourceError(message)
        setattr(self, flag, True)
        try:
            yield
        finally:
            setattr(self, flag, False)

    async def _translated(self, call: Callable[..., Awaitable[T]], *args: object) -> T:
        """Call the library. Its exceptions become one of trio's two errors."""
        try:
            return await call(*args)
        except StreamEOF:
            raise
        except Exception as error:
            # Each transport and multiplexer of the library raises its own errors. After any of them the stream is
            # unusable.
            self._raise_if_closed()
            self._broken = True
            raise trio.BrokenResourceError(f"the stream is gone: {type(error).__name__}") from error


async def close_stream(stream: INetStream, timeout: float) -> None:  # noqa: ASYNC109  # shielded
    """Send FIN and read no more. Never raises. Not cancellable; bounded by `timeout`."""
    with shielded(timeout):
        try:
            await stream.close()
            # Our own streams can be marked as not read any more.
            stop_reading = getattr(getattr(stream, "muxed_stream", None), "stop_reading", None)
            if stop_reading is not None:
                stop_reading()
            return
        except Exception as error:
            logger.debug("closing a stream failed: %r", error)
    await reset_stream(stream, timeout)


async def reset_stream(stream: INetStream, timeout: float) -> None:  # noqa: ASYNC109  # shielded
    """Reset a stream, and close its connection if that stalls. Never raises. Not cancellable; bounded by `timeout`."""
    with shielded(timeout) as scope, suppress(Exception):
        await stream.reset()
    if scope.cancelled_caught:
        await drop_connection(stream, timeout)


async def drop_connection(stream: INetStream, timeout: float) -> None:  # noqa: ASYNC109  # shielded
    """Close the socket below a stream whose writes stall. Half a frame may have been sent."""
    secured = getattr(stream.muxed_conn, "secured_conn", stream.muxed_conn)
    with shielded(timeout), suppress(Exception):
        await secured.close()
