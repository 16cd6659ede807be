"""Byte streams in memory that are slow, stall and break."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable

import trio

__all__ = ["DelayedStream", "stream_pair"]


class _Direction:
    """Bytes on their way from one end to the other, in order; an empty piece is the end."""

    def __init__(self) -> None:
        self.pieces: deque[tuple[float, bytes]] = deque()
        self.last_due = -math.inf
        self.broken = False
        self.arrived = trio.lowlevel.ParkingLot()

    def put(self, due: float, data: bytes) -> None:
        # A byte never overtakes another.
        self.last_due = max(self.last_due, due)
        self.pieces.append((self.last_due, data))
        self.arrived.unpark_all()

    def lose(self) -> None:
        self.broken = True
        self.pieces.clear()
        self.arrived.unpark_all()

    async def take(self, most: int) -> bytes:
        while True:
            if self.broken:
                raise trio.BrokenResourceError("the connection was cut")
            if not self.pieces:
                await self.arrived.park()
            elif (due := self.pieces[0][0]) > trio.current_time():
                with trio.CancelScope(deadline=due):
                    await self.arrived.park()
            else:
                return self._take_due(most)

    def _take_due(self, most: int) -> bytes:
        due, data = self.pieces.popleft()
        if not data:
            self.pieces.append((due, data))
        elif len(data) > most:
            self.pieces.appendleft((due, data[most:]))
            data = data[:most]
        return data


class DelayedStream(trio.abc.HalfCloseableStream):
    """One end of a stream in memory. `due` returns for each write when it arrives (infinity: never).

    `protocol` is the negotiated protocol id.
    """

    def __init__(self, outgoing: _Direction, incoming: _Direction, due: Callable[[], float]) -> None:
        self.protocol = ""
        self._outgoing = outgoing
        self._incoming = incoming
        self._due = due
        self._ended = False
        self._closed = False

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Accept the data at once. It arrives at the time of `due`."""
        await trio.lowlevel.checkpoint()
        if self._closed or self._ended:
            raise trio.ClosedResourceError
        if self._outgoing.broken:
            raise trio.BrokenResourceError("the connection was cut")
        if data:
            due = self._due()
            # The write itself may have cut the connection.
            if not self._outgoing.broken:
                self._outgoing.put(due, bytes(data))

    async def wait_send_all_might_not_block(self) -> None:
        """Return at once, because nothing here blocks a writer."""
        await trio.lowlevel.checkpoint()

    async def send_eof(self) -> None:
        """Send the end of this direction."""
        await trio.lowlevel.checkpoint()
        self._end()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """The next bytes that have arrived; none at the end."""
        await trio.lowlevel.checkpoint()
        if self._closed:
            raise trio.ClosedResourceError
        return await self._incoming.take(max_bytes or 65536)

    async def aclose(self) -> None:
        """End both directions."""
        self.close()
        await trio.lowlevel.checkpoint()

    def close(self) -> None:
        """End both directions without waiting: the other side reads what was written, and can write no more."""
        if not self._closed:
            self._end()
            self._closed = True
            self._incoming.lose()

    def cut(self) -> None:
        """Break both directions: data on its way is lost."""
        self._outgoing.lose()
        self._incoming.lose()

    def _end(self) -> None:
        if not self._ended:
            self._ended = True
            if not self._outgoing.broken:
                self._outgoing.put(max(self._outgoing.last_due, trio.current_time()), b"")


def stream_pair(due_there: Callable[[], float], due_back: Callable[[], float]) -> tuple[DelayedStream, DelayedStream]:
    """Two ends of one stream. The functions return when a write of the first, or of the second end, arrives."""
    there, back = _Direction(), _Direction()
    return DelayedStream(there, back, due_there), DelayedStream(back, there, due_back)
