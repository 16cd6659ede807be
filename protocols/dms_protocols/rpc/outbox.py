"""The frames that wait to be written to one stream, and the one task that writes them.

Frames that are put during a write are written together after it. Only this task writes to the stream, so that
cancelling the task that made a frame never cuts the frame.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf

import trio

__all__ = ["Outbox"]

_STEP = 4 * 1024


class Outbox:
    """Outgoing frames. `run` writes them until it is cancelled or the stream fails.

    If more than `high_water` bytes wait, `wait_for_space` waits. `write_deadline` (seconds) is the longest time that
    one write may stall. `meter` is called with the change of the waiting bytes, in steps, so that a small answer costs
    nothing. `size` is the number of bytes that are not written yet.
    """

    def __init__(
        self,
        stream: trio.abc.SendStream,
        *,
        high_water: int,
        write_deadline: float,
        meter: Callable[[int], None] | None = None,
    ) -> None:
        self._stream = stream
        self._meter = meter
        self._high_water = high_water
        self._write_deadline = write_deadline
        self._frames: list[bytes] = []
        self.size = 0
        self._reported = 0
        self._report_at = _STEP if meter is not None else inf
        self._filled = trio.lowlevel.ParkingLot()
        self._written = trio.lowlevel.ParkingLot()

    @property
    def full(self) -> bool:
        """Whether a task that makes frames should call `wait_for_space`."""
        return self.size >= self._high_water

    def put(self, frame: bytes) -> None:
        """Add a whole frame. Never waits. A caller that makes many frames calls `wait_for_space` before each."""
        if not self._frames:
            self._filled.unpark()
        self._frames.append(frame)
        self.size += len(frame)
        if self.size >= self._report_at:
            self._report(self.size)

    def abandon(self) -> None:
        """Report to the meter that no bytes wait any more, because the stream has ended."""
        if self._reported:
            self._report(0)

    def _report(self, size: int) -> None:
        if self._meter is not None:
            self._meter(size - self._reported)
        self._reported = size
        self._report_at = size + _STEP

    async def wait_for_space(self) -> None:
        """Wait until fewer than `high_water` bytes wait. May be cancelled; the only deadline is that of the write."""
        while self.size >= self._high_water:
            await self._written.park()

    async def flushed(self) -> None:
        """Wait until everything is written to the stream. May be cancelled; the only deadline is that of the write."""
        while self.size:
            await self._written.park()

    async def run(self) -> str:
        """Write until the stream fails or a write stalls beyond its deadline. Returns the reason."""
        while True:
            while not self._frames:
                await self._filled.park()
            data = b"".join(self._frames)
            self._frames.clear()
            with trio.move_on_after(self._write_deadline) as scope:
                try:
                    await self._stream.send_all(data)
                except (trio.BrokenResourceError, trio.ClosedResourceError):
                    return "the stream is broken"
            if scope.cancelled_caught:
                return f"the peer took nothing for {self._write_deadline:g} s"
            self.size -= len(data)
            if self._reported:
                self._report(self.size)
            self._written.unpark_all()
