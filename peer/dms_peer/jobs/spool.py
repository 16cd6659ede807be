"""The output of one job, kept on the disk within a bound, and read from any byte on.

Bytes are counted over both of its streams together, in the order in which they came. They are in segments, files that
are named by the first byte in them, as records: the stream (one byte), the length (four bytes, big-endian), the bytes.
Where the executor did not keep some bytes, a segment begins behind them. When the bound is reached, the segments behind
the first part go, oldest first: the beginning and the end are what a person looks for. Nothing is synced: after a crash
of the peer the files are whole but for a record at the end, and after a power cut the job is gone too.
"""

from __future__ import annotations

import os
import shutil
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from dms_protocols.messages.job import MAX_OUTPUT_BYTES, JobOutput

from ..executors.executor import OutputPiece

__all__ = ["KEPT_BYTES", "Spool"]

KEPT_BYTES: Final = 16 << 20
"""Bytes of the output of one job that are kept, unless the owner says otherwise."""

_STREAMS: Final = ("stdout", "stderr")
_HEAD: Final = struct.Struct(">BI")
# A segment is this part of the bound, and so much of the beginning is kept for good.
_SEGMENT_PART: Final = 16
_FIRST_PART: Final = 4
_LEAST_SEGMENT: Final = 4096
_MOST_SEGMENTS: Final = 1024


class _Segment(NamedTuple):
    """Bytes from `first` up to `end` of the output."""

    first: int
    end: int


class Spool:
    """Keeps about `kept` bytes. Blocks on the disk: call it in a worker thread, one call at a time. Raises OSError.

    `end` is how many bytes there were so far, `dropped` how many of them are not kept any more.
    """

    def __init__(self, path: Path, *, kept: int = KEPT_BYTES) -> None:
        self._path = path
        self._kept = kept
        self._size = max(kept // _SEGMENT_PART, _LEAST_SEGMENT)
        path.mkdir(mode=0o700, exist_ok=True)
        self._segments = self._load()

    @property
    def end(self) -> int:
        """Bytes of output so far."""
        return self._segments[-1].end if self._segments else 0

    @property
    def dropped(self) -> int:
        """Bytes that are not kept any more."""
        return self.end - sum(segment.end - segment.first for segment in self._segments)

    def append(self, pieces: Sequence[OutputPiece]) -> None:
        """Adds bytes at the end."""
        records: list[bytes] = []
        for piece in pieces:
            data, gap = piece.data, piece.dropped
            while data:
                last = self._segments[-1] if self._segments else None
                if last is None or gap or last.end - last.first >= self._size:
                    self._write(records)
                    last = _Segment(self.end + gap, self.end + gap)
                    self._segments.append(last)
                    self._drop()
                    gap = 0
                taken = data[: min(MAX_OUTPUT_BYTES, self._size - (last.end - last.first))]
                records.append(_HEAD.pack(_STREAMS.index(piece.stream), len(taken)) + taken)
                self._segments[-1] = _Segment(last.first, last.end + len(taken))
                data = data[len(taken) :]
        self._write(records)

    def read(self, offset: int, most: int = 1 << 20) -> list[JobOutput]:
        """The output from byte `offset` on, about `most` bytes of it; empty when there is none yet."""
        found: list[JobOutput] = []
        size = 0
        dropped = 0
        for segment in list(self._segments):
            if segment.end <= offset:
                continue
            if segment.first > offset:
                # What was between is not kept any more.
                dropped, offset = segment.first - offset, segment.first
            at = segment.first
            for stream, data in self._records(self._file(segment)):
                behind = at + len(data)
                if behind > offset:
                    piece = data[offset - at :]
                    found.append(JobOutput(offset=offset, data=piece, stream=_STREAMS[stream], dropped=dropped))
                    size += len(piece)
                    offset, dropped = behind, 0
                    if size >= most:
                        return found
                at = behind
        return found

    def replace(self, pieces: Sequence[OutputPiece]) -> None:
        """Keeps these bytes in place of all that there were."""
        shutil.rmtree(self._path)
        self._path.mkdir(mode=0o700)
        self._segments = []
        self.append(pieces)

    def _write(self, records: list[bytes]) -> None:
        """Writes records, which are all of the last segment."""
        if records:
            with open(self._file(self._segments[-1]), "ab") as file:
                file.write(b"".join(records))
            records.clear()

    def _file(self, segment: _Segment) -> Path:
        return self._path / f"{segment.first:020d}"

    def _drop(self) -> None:
        """Drop segments until one more fits."""
        first = size = 0
        for index, segment in enumerate(self._segments):
            size += segment.end - segment.first
            if size <= self._kept // _FIRST_PART:
                first = index + 1
        while len(self._segments) > first + 2 and (
            size > self._kept - self._size or len(self._segments) > _MOST_SEGMENTS
        ):
            oldest = self._segments.pop(first)
            size -= oldest.end - oldest.first
            self._file(oldest).unlink(missing_ok=True)

    def _load(self) -> list[_Segment]:
        """The segments on the disk; a record that a crash cut is cut off, and what cannot follow on is removed."""
        segments: list[_Segment] = []
        for path in sorted(self._path.iterdir()):
            if not path.name.isdigit() or path.is_symlink() or not path.is_file():
                continue
            first = int(path.name)
            length = whole = 0
            for _, data in self._records(path):
                length += len(data)
                whole += _HEAD.size + len(data)
            if whole < path.stat().st_size:
                os.truncate(path, whole)
            if length:
                segments.append(_Segment(first, first + length))
            else:
                path.unlink()
        return segments

    @staticmethod
    def _records(path: Path) -> Iterator[tuple[int, bytes]]:
        """The whole records of a segment; a damaged one ends it."""
        try:
            file = open(path, "rb")  # noqa: SIM115 - closed below, and it may have been dropped meanwhile
        except FileNotFoundError:
            return
        with file:
            while len(head := file.read(_HEAD.size)) == _HEAD.size:
                stream, length = _HEAD.unpack(head)
                if stream >= len(_STREAMS) or length > MAX_OUTPUT_BYTES:
                    return
                data = file.read(length)
                if len(data) < length:
                    return
                yield stream, data
