"""Amounts are exact, and have one written form."""

from __future__ import annotations

from decimal import Decimal
from math import inf, nextafter
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dms_resources.errors import AmountError
from dms_resources.units import (
    GIB,
    MIB,
    TIB,
    Cores,
    decode_value,
    encode_value,
    format_cores,
    format_duration,
    format_size,
    parse_duration,
    parse_size,
)

_MILLICORES = st.integers(min_value=0, max_value=10**15)


@given(_MILLICORES.map(Cores))
def test_cores_are_the_same_after_the_wire(cores: Cores) -> None:
    text = msgspec.json.encode(cores, enc_hook=encode_value)
    assert msgspec.json.decode(text, type=Cores, dec_hook=decode_value) == cores
    assert Cores.of(cores.to_number()) == cores
    assert Cores.of(str(cores)) == cores


@given(
    st.floats() | _MILLICORES.map(lambda millicores: millicores / 1000) | st.integers(0, 10**7).map(lambda n: n / 7e3)
)
def test_a_float_is_the_number_that_it_is_written_as(cores: float) -> None:
    """A float means the shortest text that is read back as the same float, and is refused if that text is."""
    for near in (cores, nextafter(cores, inf), nextafter(cores, -inf)):
        try:
            written = Cores.of(repr(near))
        except AmountError:
            with pytest.raises(AmountError):
                Cores.of(near)
        else:
            assert Cores.of(near) == written


@given(st.lists(st.integers(min_value=0, max_value=10**6), max_size=50))
def test_a_sum_of_cores_gives_back_what_it_took(millicores: list[int]) -> None:
    total = Cores(0)
    for amount in millicores:
        total += Cores.of(amount / 1000)
    assert total == Cores(sum(millicores))
    for amount in millicores:
        total -= Cores.of(amount / 1000)
    assert total == Cores(0)


def test_a_third_and_two_thirds_of_a_float_are_no_trap() -> None:
    assert Cores.of(0.1) + Cores.of(0.2) == Cores.of(0.3)
    assert Cores.of(0.1 + 0.1) == Cores(200)


@pytest.mark.parametrize(
    ("written", "millicores"),
    [
        (2, 2000),
        (0.5, 500),
        ("1.25", 1250),
        (" 3 ", 3000),
        (Decimal("0.001"), 1),
        ("1e2", 100_000),
        (1e12, 10**15),
        ("+1", 1000),
        (0.0, 0),
        ("-0", 0),
    ],
)
def test_numbers_of_cores(written: Any, millicores: int) -> None:
    assert Cores.of(written).millicores == millicores


@pytest.mark.parametrize(
    "written",
    [
        -1,
        "-0.001",
        0.0001,
        1 / 3,
        # Rounded to the usual 28 digits this would be a million cores.
        "1000000.000000000000000000000001",
        "1.00000000000000000000000000001",
        float("nan"),
        float("inf"),
        "sNaN",
        "1e999999",
        "1e-999999",
        "1e999",
        pytest.param(10**5000, id="ten to the 5000"),
        10**13,
        True,
        "",
        "two",
        "1_0",
        "\u0663",
        "9" * 5000,
        "0x10",
    ],
)
def test_what_is_no_number_of_cores(written: Any) -> None:
    with pytest.raises(AmountError) as refused:
        Cores.of(written)
    assert len(str(refused.value)) < 200


@pytest.mark.parametrize("written", ["1.0001", '"2"', "true", "null", "-1", "1e400", "[]"])
def test_a_bad_number_of_cores_names_its_field(written: str) -> None:
    class Job(msgspec.Struct):
        cores: Cores

    with pytest.raises(msgspec.DecodeError):
        msgspec.json.decode(f'{{"cores": {written}}}', type=Job, dec_hook=decode_value)
    with pytest.raises(msgspec.ValidationError, match=r"`\$\.cores`"):
        msgspec.convert({"cores": -1}, Job, dec_hook=decode_value)


def test_only_this_packages_values_pass_the_hooks() -> None:
    with pytest.raises(NotImplementedError):
        encode_value(object())
    with pytest.raises(NotImplementedError):
        decode_value(object, 1)


def test_cores_are_values() -> None:
    assert {Cores(1), Cores(1)} == {Cores(1)}
    assert Cores(1) < Cores(2) <= Cores(2)
    assert not Cores(0)
    assert Cores(1)
    assert Cores(1) != 1
    assert str(Cores(1500)) == "1.5"
    assert (Cores(2000).to_number(), Cores(500).to_number()) == (2, 0.5)
    with pytest.raises(AttributeError):
        Cores(1).millicores = 2  # type: ignore[misc]


def test_more_than_there_is_cannot_be_taken() -> None:
    with pytest.raises(AmountError):
        Cores(1) - Cores(2)


@pytest.mark.parametrize(
    ("written", "size"),
    [
        ("4GiB", 4 * GIB),
        ("4GB", 4 * 10**9),
        ("4 gib", 4 * GIB),
        ("1.5TiB", TIB * 3 // 2),
        ("500 MB", 500 * 10**6),
        ("512MiB", 512 * MIB),
        ("17B", 17),
        ("1kB", 1000),
        ("1KiB", 1024),
        ("0.5KiB", 512),
        # The displayed form of a size can be used as input.
        ("1.3GiB", 1395864371),
        ("0", 0),
        ("9223372036854775807B", 2**63 - 1),
    ],
)
def test_sizes(written: str, size: int) -> None:
    assert parse_size(written) == size


@pytest.mark.parametrize(
    "written",
    [
        "",
        "GiB",
        "2 parsecs",
        "-1GiB",
        "1e9",
        "1,5GiB",
        "0.3B",
        "1.5",
        "9223372036854775808",
        "99999999PiB",
        "\u0664GiB",
        "4 Gi B",
        "9" * 5000,
        "0x10",
        "nan",
    ],
)
def test_what_is_no_size(written: str) -> None:
    with pytest.raises(AmountError) as refused:
        parse_size(written)
    assert refused.value.value == written


@given(st.text(max_size=30))
def test_no_text_raises_anything_but_an_amount_error(text: str) -> None:
    for read in (parse_size, parse_duration, Cores.of):
        try:
            read(text)
        except AmountError:
            continue


@given(st.integers(min_value=0, max_value=2**63 - 1))
def test_a_size_that_is_shown_is_near_and_never_more(size: int) -> None:
    shown = parse_size(format_size(size))
    # Two decimals: a request for the displayed free amount is granted.
    assert shown <= size
    assert size - shown <= max(size // 100, 0)


@pytest.mark.parametrize(
    ("size", "shown"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1 KiB"),
        (1536 * 1024, "1.5 MiB"),
        (4 * GIB, "4 GiB"),
        (GIB - 1, "1023.99 MiB"),
        (100 * GIB, "100 GiB"),
        (3 * TIB // 2, "1.5 TiB"),
        (4 * 10**9, "3.72 GiB"),
    ],
)
def test_sizes_are_shown_in_binary_units(size: int, shown: str) -> None:
    assert format_size(size) == shown


@pytest.mark.parametrize(
    ("written", "seconds"),
    [("90", 90), ("90s", 90), ("5m", 300), ("5 min", 300), ("2h", 7200), ("1d", 86400), ("0.5s", 0.5)],
)
def test_durations(written: str, seconds: float) -> None:
    assert parse_duration(written) == seconds


@pytest.mark.parametrize("written", ["", "s", "-5", "5 fortnights", "1:30", "inf"])
def test_what_is_no_duration(written: str) -> None:
    with pytest.raises(AmountError):
        parse_duration(written)


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0, "0 s"),
        (45.4, "45 s"),
        (59.6, "1 min"),
        (200, "3 min 20 s"),
        (3600, "1 h"),
        (7500, "2 h 5 min"),
        (90000, "1 d 1 h"),
        (-3, "0 s"),
    ],
)
def test_durations_are_shown_in_two_units(seconds: float, shown: str) -> None:
    assert format_duration(seconds) == shown


@pytest.mark.parametrize(
    ("written", "meant"), [("8", "8GiB"), (" 16 ", "16GiB"), ("1.5", "1.5GiB"), ("4294967296", "4294967296B")]
)
def test_a_size_without_a_unit_is_refused_and_told_what_to_write(written: str, meant: str) -> None:
    with pytest.raises(AmountError, match=f"write {meant}"):
        parse_size(written)
    assert parse_size(meant) > 0
    assert parse_size("0") == 0, "nothing needs no unit"


def test_one_core_is_not_called_cores() -> None:
    assert [format_cores(Cores(number)) for number in (1000, 500, 2000)] == ["1 core", "0.5 cores", "2 cores"]
