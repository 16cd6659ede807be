"""What a job wrote is there again, byte by byte, within the bound and after a crash."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dms_peer.executors.executor import OutputPiece
from dms_peer.jobs.spool import Spool


def piece(data: bytes, stream: str = "stdout") -> OutputPiece:
    return OutputPiece("stderr" if stream == "stderr" else "stdout", data)


def everything(spool: Spool, offset: int = 0) -> bytes:
    found = b""
    while pieces := spool.read(offset):
        for one in pieces:
            assert one.offset == offset + one.dropped
            found += one.data
            offset = one.offset + len(one.data)
    return found


def test_streams_are_kept_apart_and_in_order(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "output")
    spool.append([piece(b"one\n"), piece(b"bad\n", "stderr"), piece(b"two\n")])
    assert [(one.offset, one.stream, one.data) for one in spool.read(0)] == [
        (0, "stdout", b"one\n"),
        (4, "stderr", b"bad\n"),
        (8, "stdout", b"two\n"),
    ]
    assert [(one.offset, one.data) for one in spool.read(6)] == [(6, b"d\n"), (8, b"two\n")]
    assert spool.read(12) == [] == spool.read(10**15)
    assert (spool.end, spool.dropped) == (12, 0)


@given(
    chunks=st.lists(st.binary(min_size=1, max_size=300), max_size=30),
    reopen=st.sets(st.integers(0, 30)),
    offset=st.integers(0, 3000),
)
def test_any_output_is_read_from_any_byte_on_also_after_restarts(
    tmp_path_factory: pytest.TempPathFactory, chunks: list[bytes], reopen: set[int], offset: int
) -> None:
    path = tmp_path_factory.mktemp("spool") / "output"
    spool = Spool(path)
    for number, chunk in enumerate(chunks):
        if number in reopen:
            spool = Spool(path)
        spool.append([piece(chunk, ("stdout", "stderr")[number % 2])])
    whole = b"".join(chunks)
    assert (spool.end, Spool(path).end) == (len(whole), len(whole))
    assert everything(Spool(path), min(offset, len(whole))) == whole[min(offset, len(whole)) :]


def test_beyond_the_bound_the_beginning_and_the_end_are_kept(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "output", kept=16 * 4096)
    for number in range(1000):
        spool.append([piece(f"{number:09d}\n".encode() * 50)])
    assert spool.end == 500_000
    assert sum(one.stat().st_size for one in (tmp_path / "output").iterdir()) < 16 * 4096 * 1.2
    kept = everything(spool)
    assert len(kept) == spool.end - spool.dropped
    assert kept.startswith(b"000000000\n")
    assert kept.endswith(b"000000999\n")
    gaps = [one.dropped for one in spool.read(0) if one.dropped]
    assert sum(gaps) == spool.dropped > 0
    again = Spool(tmp_path / "output", kept=16 * 4096)
    assert (again.end, again.dropped, everything(again)) == (spool.end, spool.dropped, kept)


def test_what_the_executor_did_not_keep_is_counted(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "output")
    spool.append([piece(b"begin"), OutputPiece("stdout", b"end", dropped=1000)])
    assert (spool.end, spool.dropped) == (1008, 1000)
    for one in (spool, Spool(tmp_path / "output")):
        assert [(out.offset, out.data, out.dropped) for out in one.read(0)] == [(0, b"begin", 0), (1005, b"end", 1000)]
        assert [(out.offset, out.dropped) for out in one.read(500)] == [(1005, 505)]


def test_a_record_that_a_crash_cut_is_written_again(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "output")
    spool.append([piece(b"whole"), piece(b"cut off")])
    segment = next((tmp_path / "output").iterdir())
    for length in range(segment.stat().st_size - 1, 0, -1):
        segment.write_bytes(segment.read_bytes()[:length])
        again = Spool(tmp_path / "output")
        assert b"wholecut off".startswith(everything(again))
        again.append([piece(b"wholecut off"[again.end :])])
        assert everything(again) == b"wholecut off"
        segment = next((tmp_path / "output").iterdir())
        segment.write_bytes(segment.read_bytes()[:length])


def test_what_is_no_segment_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "output"
    Spool(path).append([piece(b"text")])
    (path / "notes.txt").write_text("mine")
    (path / f"{4:020d}").symlink_to("/etc/passwd")
    (path / f"{9:020d}").write_bytes(b"\xff" * 40)
    spool = Spool(path)
    assert everything(spool) == b"text"
    assert (path / "notes.txt").read_text() == "mine"
