"""The output that a supervisor keeps: bounded, in order, and readable from any byte on."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from dms_peer.executors.command.job_files import OutputFiles
from dms_peer.executors.command.output_reader import OutputReader
from executor_jobs import DEADLINE, job_spec, joined, read_all, shell

Running = Callable[..., Any]

WRITES = st.lists(st.tuples(st.sampled_from([1, 2]), st.binary(min_size=1, max_size=60)), max_size=30)


@given(WRITES, st.integers(8, 400), st.integers(0, 900))
def test_what_is_read_is_what_was_written_less_what_was_dropped(
    tmp_path_factory: pytest.TempPathFactory, writes: list[tuple[int, bytes]], most: int, offset: int
) -> None:
    folder = tmp_path_factory.mktemp("output")
    files = OutputFiles(folder, most)
    live = OutputReader(folder, 0)
    followed = b""
    for stream, data in writes:
        files.write(stream, data)
        pieces, ended = live.read(10_000)
        followed += b"".join(bytes(piece.dropped) + piece.data for piece in pieces)
        assert not ended
    files.close()
    live.close()
    whole = b"".join(data for _, data in writes)
    # A piece may be larger than everything that is kept. A reader that follows gets the rest, and how much is missing.
    assert len(followed) == len(whole)
    assert all(mine in (0, theirs) for mine, theirs in zip(followed, whole, strict=True))
    (folder / "exit.json").touch()
    late = OutputReader(folder, offset)
    pieces, ended = late.read(10_000)
    assert ended is not bool(pieces)
    late.close()
    place = offset
    for piece in pieces:
        place += piece.dropped
        assert piece.data == whole[place : place + len(piece.data)]
        place += len(piece.data)
    assert place == max(offset, len(whole))
    assert sum(len(piece.data) for piece in pieces) <= max(most, 8)
    if offset == 0 and whole:
        assert pieces[0].dropped == 0


async def test_a_flood_costs_no_more_than_its_bound(running: Running, tmp_path: Path) -> None:
    spec = job_spec(*shell("head -c 3000000 /dev/zero; echo; echo end"))
    async with running(spec, output_bytes=256 * 1024, output_rate=64 * 1024 * 1024) as executor:
        await executor.start(spec)
        with trio.fail_after(DEADLINE):
            await executor.wait(spec)
        pieces = await read_all(executor, spec)
        assert sum(piece.dropped + len(piece.data) for piece in pieces) == 3_000_005
        assert joined(pieces).endswith(b"\nend\n")
        kept = sum(os.stat(file).st_size for file in (tmp_path / "executors" / spec.name).glob("output.*"))
        assert kept < 300 * 1024


async def test_a_rate_bounds_how_fast_a_job_writes(running: Running) -> None:
    spec = job_spec(sys.executable, "-ISc", "import sys; sys.stdout.buffer.write(bytes(600_000)); print('end')")
    async with running(spec, output_rate=1_000_000) as executor:
        begun = trio.current_time()
        await executor.start(spec)
        with trio.fail_after(DEADLINE):
            await executor.wait(spec)
        assert trio.current_time() - begun > 0.5


async def test_every_offset_goes_on_where_it_says(running: Running) -> None:
    spec = job_spec(*shell("printf abc; sleep 0.05; printf def >&2; sleep 0.05; printf ghi"))
    async with running(spec) as executor:
        await executor.start(spec)
        for offset in range(11):
            pieces = await read_all(executor, spec, offset)
            assert b"".join(piece.data for piece in pieces) == b"abcdefghi"[offset:]
            assert not any(piece.dropped for piece in pieces)
