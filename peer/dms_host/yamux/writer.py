"""The writes of one Yamux connection: whole frames, each within a deadline, and small frames combined.

What breaks in py-libp2p's `Yamux`:
- A cancelled write leaves half a frame on the wire, or skips a Noise nonce: everything after it is garbage.
- A peer that does not read stops every write for ever.
- Each acknowledgement and each end of a stream is a packet of its own: one request on a stream of its own took five.
Measure: every write is shielded and has its own deadline. If it is missed, the connection ends, but no half frame is
sent. Frames for which no task waits are sent with the next frame, or after a millisecond.
Upstream: no upstream report found (November 2026).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

import trio
from libp2p.abc import ISecureConn
from libp2p.io.exceptions import ConnectionClosedError, IOException

from ..limits import HostLimits
from ..streams.locks import QuickLock
from ..tasks import shielded

__all__ = ["MANY_REPLIES", "MAX_REPLIES", "FrameWriter"]

# Frames that we owe the peer (acknowledgements, pongs, resets) while it does not read.
MAX_REPLIES: Final = 256
# This many are sent at once.
MANY_REPLIES: Final = 64
# Seconds for which a frame without a waiting task may be delayed, to be sent with another.
REPLY_DELAY: float = 0.001


class FrameWriter:
    """Writes the frames of one connection. `drop` ends that connection, for the given reason."""

    def __init__(self, secured_conn: ISecureConn, limits: HostLimits, drop: Callable[[str], Awaitable[None]]) -> None:
        self.secured_conn = secured_conn
        self.lock = QuickLock()
        # The nursery of the task that sends replies; None before the connection has started.
        self.nursery: trio.Nursery | None = None
        self._limits = limits
        self._drop = drop
        self._ended = False
        self._replies: list[bytes] = []
        self._replying = False
        self._many = trio.Event()

    @property
    def pending(self) -> int:
        """The number of frames that wait to be sent together."""
        return len(self._replies)

    def end(self) -> None:
        """Write nothing more. Never blocks."""
        self._ended = True

    async def write(self, data: bytes, within: float | None = None) -> None:
        """Send whole frames within frame_timeout or `within` seconds. Raises ConnectionClosedError. Not cancellable."""
        within = within or self._limits.frame_timeout
        with shielded(within):
            async with self.lock:
                await self.write_locked(data, within)
            return
        await self._drop("it takes no frames")
        raise ConnectionClosedError("the peer takes no frames")

    async def write_locked(self, data: bytes, within: float) -> None:
        """Like `write`, for a caller that holds the lock."""
        self._raise_if_ended()
        if self._replies:
            data = b"".join((*self._replies, data))
            self._replies.clear()
        if not data:
            # Another task has written it.
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

    async def write_soon(self, frame: bytes) -> None:
        """Send a small frame with the next one, or within REPLY_DELAY. Raises ConnectionClosedError.

        Not cancellable, bounded by frame_timeout.
        """
        if self.nursery is None or self.pending >= 2 * MANY_REPLIES:
            await self.write(frame)
            return
        self._raise_if_ended()
        self._put(frame)

    def reply(self, frame: bytes) -> bool:
        """Queue a frame that answers the peer. Returns False if the queue is full because the peer does not read. Never
        blocks.
        """
        if self.pending >= MAX_REPLIES:
            return False
        self._put(frame)
        return True

    async def flush(self) -> None:
        """Send what waits. Raises ConnectionClosedError. Not cancellable, bounded by frame_timeout."""
        if self._replies:
            await self.write(b"")

    def _raise_if_ended(self) -> None:
        if self._ended:
            raise ConnectionClosedError("the connection is shutting down")

    def _put(self, frame: bytes) -> None:
        self._replies.append(frame)
        if self.pending >= MANY_REPLIES:
            self._many.set()
        # The task lasts only while something waits, because most connections are silent most of the time.
        if not self._replying and self.nursery is not None and not self._ended:
            self._replying = True
            self.nursery.start_soon(self._send_replies)

    async def _send_replies(self) -> None:
        try:
            while self._replies:
                # Usually another write follows at once, and its packet carries them too.
                with trio.move_on_after(REPLY_DELAY):
                    while self.pending < MANY_REPLIES:
                        self._many = trio.Event()
                        await self._many.wait()
                await self.flush()
        except ConnectionClosedError:
            return
        finally:
            self._replying = False
