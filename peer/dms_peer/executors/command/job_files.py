"""The files by which a supervisor and the peer tell each other of a job, and those of its output.

Standard library only: the supervisor has nothing else.
"""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any, Final

__all__ = [
    "EXIT",
    "JOB",
    "LOCK",
    "OUTPUT",
    "PROCESS",
    "READY",
    "RECORD_HEAD",
    "SEGMENTS",
    "SUPERVISOR",
    "OutputFiles",
    "write_file",
]

JOB: Final = "job.json"
LOCK: Final = "lock"
SUPERVISOR: Final = "supervisor.json"
PROCESS: Final = "process.json"
READY: Final = "ready.json"
EXIT: Final = "exit.json"
OUTPUT: Final = "output"
RECORD_HEAD: Final = 5
"""Bytes before each piece of output: 1 or 2 for its stream, and its length in 4 bytes."""

SEGMENTS: Final = 8
"""Into how many files the kept output is divided. The first is kept, and of the others the last ones."""


class OutputFiles:
    """Keeps output in files named by the offset of their first byte; at most `most` bytes with the first file's."""

    def __init__(self, folder: Path, most: int) -> None:
        self._folder = folder
        self._size = max(1, most // SEGMENTS)
        self._kept: list[int] = []
        self._offset = 0
        self._left = 0
        self._file = -1

    def write(self, stream: int, data: bytes) -> None:
        """Appends output of one stream. What cannot be written, because the disk is full, is left out."""
        while data:
            if self._left <= 0:
                self._next_file()
            part, data = data[: self._left], data[self._left :]
            with contextlib.suppress(OSError):
                os.write(self._file, bytes([stream]) + len(part).to_bytes(4, "big") + part)
            self._offset += len(part)
            self._left -= len(part)

    def close(self) -> None:
        """Closes the file that is being written."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _next_file(self) -> None:
        self.close()
        if len(self._kept) == SEGMENTS:
            with contextlib.suppress(OSError):
                os.unlink(self._folder / f"{OUTPUT}.{self._kept.pop(1):016d}")
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        self._file = os.open(self._folder / f"{OUTPUT}.{self._offset:016d}", flags, 0o600)
        self._kept.append(self._offset)
        self._left = self._size


def write_file(path: Path, content: dict[str, Any]) -> None:
    """Writes a small file whole or not at all, and waits for the disk. Raises OSError."""
    draft = path.with_name(f".{path.name}.draft")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        json.dump(content, file)
        file.flush()
        os.fsync(descriptor)
    os.replace(draft, path)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
