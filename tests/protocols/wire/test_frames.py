from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dms_protocols.errors import FrameError
from dms_protocols.wire.frames import FrameReader, Oversize, encode_frame, encode_varint

payloads = st.lists(st.binary(max_size=300), max_size=8)


def cut(data: bytes, sizes: list[int]) -> list[bytes]:
    pieces, start = [], 0
    for size in sizes:
        pieces.append(data[start : start + size])
        start += size
    return [*pieces, data[start:]]


def read_all(reader: FrameReader, pieces: list[bytes]) -> list[bytes | Oversize]:
    events: list[bytes | Oversize] = []
    for piece in pieces:
        reader.feed(piece)
        events += reader
    return events


@pytest.mark.parametrize(
    ("value", "encoded"),
    [(0, "00"), (1, "01"), (127, "7f"), (128, "8001"), (255, "ff01"), (300, "ac02"), (2**63 - 1, "ff" * 8 + "7f")],
)
def test_varint_examples_of_the_specification(value: int, encoded: str) -> None:
    assert encode_varint(value).hex() == encoded


@pytest.mark.parametrize("value", [-1, 2**63])
def test_varint_out_of_range(value: int) -> None:
    with pytest.raises(ValueError, match="unsigned varint"):
        encode_varint(value)


@given(payloads, st.lists(st.integers(0, 40), max_size=30))
def test_frames_survive_any_cutting(sent: list[bytes], sizes: list[int]) -> None:
    data = b"".join(map(encode_frame, sent))
    reader = FrameReader(300)
    assert read_all(reader, cut(data, sizes)) == sent
    assert reader.at_boundary


@given(payloads)
def test_frames_one_byte_at_a_time(sent: list[bytes]) -> None:
    data = b"".join(map(encode_frame, sent))
    assert read_all(FrameReader(300), [bytes([byte]) for byte in data]) == sent


@given(st.lists(st.binary(min_size=1, max_size=40), max_size=20))
def test_any_bytes_give_frames_or_the_one_error(pieces: list[bytes]) -> None:
    limit = 16
    reader = FrameReader(limit, 64)
    for piece in pieces:
        reader.feed(piece)
        try:
            for event in reader:
                assert isinstance(event, Oversize) or len(event) <= limit
        except FrameError:
            return
        assert reader.buffered <= limit + 9


@given(st.lists(st.binary(min_size=1, max_size=40), max_size=20))
def test_whole_and_in_single_bytes_give_the_same(pieces: list[bytes]) -> None:
    data = b"".join(pieces)

    def outcome(parts: list[bytes]) -> list[object]:
        seen: list[object] = []
        reader = FrameReader(16, 64)
        try:
            for part in parts:
                reader.feed(part)
                for event in reader:
                    seen.append(event)
        except FrameError as error:
            seen.append(error.code)
        return seen

    assert outcome([data]) == outcome([bytes([byte]) for byte in data])


def test_an_oversize_frame_is_passed_over_without_being_kept() -> None:
    reader = FrameReader(10, 1000)
    data = encode_frame(b"a") + encode_frame(b"x" * 500) + encode_frame(b"b")
    events = []
    for byte in data:
        reader.feed(bytes([byte]))
        events += reader
        assert reader.buffered <= 12
    assert events == [b"a", Oversize(500), b"b"]


def test_an_oversize_frame_in_one_piece_with_others() -> None:
    reader = FrameReader(10, 1000)
    assert read_all(reader, [encode_frame(b"a") + encode_frame(b"x" * 500) + encode_frame(b"b")]) == [
        b"a",
        Oversize(500),
        b"b",
    ]


def test_above_the_skip_limit_the_stream_ends_after_the_frames_before() -> None:
    reader = FrameReader(10, 100)
    reader.feed(encode_frame(b"a") + encode_varint(101))
    seen = []
    with pytest.raises(FrameError) as caught:
        seen.extend(reader)
    assert caught.value.code == "frame_too_large"
    reader.feed(encode_frame(b"b"))
    with pytest.raises(FrameError):
        seen.extend(reader)
    # Reported once: an `Oversize` before the error would be answered too.
    assert seen == [b"a"]


@pytest.mark.parametrize("header", ["8000", "808000", "ff" * 9, "80" * 9])
def test_a_malformed_length_ends_the_stream(header: str) -> None:
    reader = FrameReader(10)
    reader.feed(bytes.fromhex(header))
    with pytest.raises(FrameError) as caught:
        list(reader)
    assert caught.value.code == "bad_frame"


def test_frames_left_by_a_caller_that_stopped_come_with_the_next() -> None:
    reader = FrameReader(10)
    reader.feed(encode_frame(b"a") + encode_frame(b"b"))
    assert next(iter(reader)) == b"a"
    reader.feed(encode_frame(b"c"))
    assert list(reader) == [b"b", b"c"]


def test_an_end_within_a_frame_is_told_from_one_between_frames() -> None:
    reader = FrameReader(10)
    reader.feed(encode_frame(b"abc")[:2])
    list(reader)
    assert not reader.at_boundary
