"""Follows the output of a container from any byte on, over the ends of connections and of its engine."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from ..executor import ExecutorError, OutputPiece
from .containers import Containers, state_of
from .engine import Engine
from .output_frames import OutputFrames

__all__ = ["ContainerOutput", "open_output"]


class ContainerOutput:
    """An iterator of pieces, filled by a task; raises ExecutorError `unavailable` where the engine is silent."""

    def __init__(self) -> None:
        self._send, self._receive = trio.open_memory_channel[OutputPiece](0)
        self._problem: ExecutorError | None = None

    def __aiter__(self) -> AsyncIterator[OutputPiece]:
        return self

    async def __anext__(self) -> OutputPiece:
        try:
            return await self._receive.receive()
        except trio.EndOfChannel:
            if self._problem is not None:
                raise self._problem from None
            raise StopAsyncIteration from None

    async def follow(self, engine: Engine, containers: Containers, name: str, offset: int, rate: int) -> None:
        """Reads until the job has exited and all was read. At most `rate` bytes in a second are taken."""
        async with self._send:
            try:
                while await self._read_once(engine, containers, name, offset, rate):
                    offset = self._offset
            except ExecutorError as error:
                self._problem = error

    async def _read_once(self, engine: Engine, containers: Containers, name: str, offset: int, rate: int) -> bool:
        """Reads one answer of the engine from `offset` on; whether there may be more."""
        self._offset = offset
        container = await containers.find(name)
        if container is None:
            return False
        # Times of a log are too coarse to resume by: it is read from its start, and bytes are counted.
        query = {"stdout": "1", "stderr": "1"}
        follows = state_of(container) == "running"
        frames = OutputFrames(offset)

        async def take(status: int, part: bytes) -> bool:
            if status >= 400:
                raise ExecutorError(f"the engine does not give the output (status {status})", code="unavailable")
            for piece in frames.feed(part):
                await self._send.send(piece)
                self._offset += len(piece.data)
                await trio.sleep(len(piece.data) / rate)
            return True

        path = f"/containers/{name}/logs"
        await engine.read_stream("GET", path, query | ({"follow": "1"} if follows else {}), take)
        return follows


@asynccontextmanager
async def open_output(
    engine: Engine, containers: Containers, name: str, offset: int, rate: int
) -> AsyncIterator[AsyncIterator[OutputPiece]]:
    """Opens the output of a container from byte `offset` on; reading ends with the block."""
    found = ContainerOutput()
    problem: Exception | None = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(found.follow, engine, containers, name, offset, rate)
        try:
            yield found
        except Exception as error:
            # Raised outside, so that it is not in a group.
            problem = error
        nursery.cancel_scope.cancel()
    if problem is not None:
        raise problem
