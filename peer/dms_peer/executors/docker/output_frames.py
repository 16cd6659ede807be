"""Takes apart the output of a container without a terminal: frames of 8 bytes of head and a payload.

A frame is no line: a line may come in many frames, and a frame or its head in many parts of the answer.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from ..executor import ExecutorError, OutputPiece

__all__ = ["OutputFrames"]

_HEAD: Final = 8
_STDERR: Final = 2
_STREAMS: Final = (0, 1, 2)


class OutputFrames:
    """Turns parts of an answer into pieces of output, and leaves out the first `skip` bytes of output."""

    def __init__(self, skip: int = 0) -> None:
        self.skip = skip
        self._head = b""
        self._stream = 0
        self._left = 0

    def feed(self, part: bytes) -> Iterator[OutputPiece]:
        """The pieces that a part of the answer has; nothing is kept but a head. Raises ExecutorError `unavailable`."""
        view = memoryview(part)
        while view:
            if not self._left:
                taken = view[: _HEAD - len(self._head)]
                self._head += bytes(taken)
                view = view[len(taken) :]
                if len(self._head) < _HEAD:
                    return
                self._begin_frame()
                continue
            payload, view = view[: self._left], view[self._left :]
            self._left -= len(payload)
            skipped = min(self.skip, len(payload))
            self.skip -= skipped
            if payload[skipped:]:
                yield OutputPiece("stderr" if self._stream == _STDERR else "stdout", bytes(payload[skipped:]))

    def _begin_frame(self) -> None:
        if self._head[0] not in _STREAMS or self._head[1:4] != b"\0\0\0":
            raise ExecutorError("the engine's output is not in frames", code="unavailable")
        self._stream = self._head[0]
        self._left = int.from_bytes(self._head[4:], "big")
        self._head = b""
