"""Reads the output that a supervisor keeps in files, from any byte on, also while it is written."""

from __future__ import annotations

import contextlib
import os
from io import FileIO
from pathlib import Path
from typing import Literal

from ..executor import OutputPiece
from .job_files import EXIT, OUTPUT, RECORD_HEAD

__all__ = ["OutputReader"]


class OutputReader:
    """Reads pieces in order; `offset` is the number of the next byte. Its methods block on the disk."""

    def __init__(self, folder: Path, offset: int) -> None:
        self._folder = folder
        self.offset = offset
        self._begin = -1
        self._position = 0
        self._file: FileIO | None = None

    def read(self, most: int) -> tuple[list[OutputPiece], bool]:
        """At least one piece if there is any, and about `most` bytes; and whether the output has ended."""
        # Looked up first: what is written before it is read below.
        ended = (self._folder / EXIT).exists() or not self._folder.exists()
        pieces: list[OutputPiece] = []
        size = 0
        while size < most and (piece := self._next()) is not None:
            pieces.append(piece)
            size += len(piece.data)
        return pieces, ended and not pieces

    def close(self) -> None:
        """Closes the file that is being read."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _next(self) -> OutputPiece | None:
        while True:
            if self._file is None and not self._open(self._segment()):
                return None
            found = self._record()
            if found is None:
                following = min((one for one in self._segments() if one > self._begin), default=None)
                if following is None or not self._open(following):
                    return None
                continue
            stream, data = found
            begin, self._position = self._position, self._position + len(data)
            if self._position <= self.offset:
                continue
            dropped = max(0, begin - self.offset)
            data = data[max(0, self.offset - begin) :]
            self.offset = self._position
            return OutputPiece(stream, data, dropped)

    def _record(self) -> tuple[Literal["stdout", "stderr"], bytes] | None:
        """The next whole record of the file; None at its end, or where one is only half written."""
        assert self._file is not None
        place = self._file.tell()
        head = self._file.read(RECORD_HEAD)
        if len(head) == RECORD_HEAD:
            size = int.from_bytes(head[1:], "big")
            data = self._file.read(size)
            if len(data) == size:
                return ("stderr" if head[0] == 2 else "stdout"), data
        self._file.seek(place)
        return None

    def _segments(self) -> list[int]:
        try:
            names = os.listdir(self._folder)
        except OSError:
            return []
        return sorted(int(name.rpartition(".")[2]) for name in names if name.startswith(f"{OUTPUT}."))

    def _segment(self) -> int | None:
        """The file in which the next byte is, or would be."""
        return max((one for one in self._segments() if one <= self.offset), default=None)

    def _open(self, begin: int | None) -> bool:
        if begin is None:
            return False
        with contextlib.suppress(OSError):
            # A file that is removed meanwhile is read to its end.
            opened = FileIO(str(self._folder / f"{OUTPUT}.{begin:016d}"), "rb")
            self.close()
            self._file, self._begin, self._position = opened, begin, begin
            return True
        return False
