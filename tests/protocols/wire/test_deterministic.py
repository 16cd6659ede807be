"""The deterministic encoding is cbor2's canonical one, whatever the values."""

from __future__ import annotations

import datetime
from typing import Any

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dms_protocols.wire import deterministic
from dms_protocols.wire.deterministic import encode_deterministic

TEXT = st.text(max_size=40)
FLOATS = st.one_of(st.floats(), st.floats(width=16), st.floats(width=32))
LEAVES = st.none() | st.booleans() | st.integers(-(2**64), 2**64 - 1) | FLOATS | TEXT | st.binary(max_size=40)
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=6), max_leaves=20
)


@given(st.dictionaries(TEXT, VALUES, max_size=8))
def test_it_is_what_cbor2_calls_canonical(value: dict[str, Any]) -> None:
    assert encode_deterministic(value) == cbor2.dumps(value, canonical=True)


@pytest.mark.parametrize(
    ("value", "encoded"),
    [
        # Appendix A of RFC 8949.
        (1.5, "f93e00"),
        (-0.0, "f98000"),
        (65504.0, "f97bff"),
        (5.960464477539063e-8, "f90001"),
        (100000.0, "fa47c35000"),
        (3.4028234663852886e38, "fa7f7fffff"),
        (1.1, "fb3ff199999999999a"),
        (1.0e300, "fb7e37e43c8800759c"),
        (float("inf"), "f97c00"),
        (float("nan"), "f97e00"),
    ],
)
def test_floats_have_their_shortest_form(value: float, encoded: str) -> None:
    assert encode_deterministic({"a": [value]}).hex() == "a1616181" + encoded


def test_long_keys_are_behind_short_ones_and_behind_those_with_a_shorter_head() -> None:
    keys = ["b" * 24, "a" * 23, "é" * 12, "b", "aa", "a" * 300]
    encoded = encode_deterministic(dict.fromkeys(keys, 0))
    assert list(cbor2.loads(encoded)) == ["b", "aa", "a" * 23, "b" * 24, "é" * 12, "a" * 300]


def test_what_is_no_plain_value_is_left_to_cbor2() -> None:
    for value in ({"a": datetime.datetime.now(datetime.UTC)}, {1: 2}, {"a": {2: 3}}, {"a": cbor2.CBORTag(5, [1])}):
        assert encode_deterministic(value) == cbor2.dumps(value, canonical=True)  # type: ignore[arg-type]


def test_a_peer_that_invents_keys_fills_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    orders: dict[tuple[str, ...], tuple[str, ...]] = {}
    monkeypatch.setattr(deterministic, "_orders", orders)
    for number in range(3 * deterministic._MOST_ORDERS):
        encode_deterministic({f"key-{number}": 1, "a": 2})
        assert len(orders) <= deterministic._MOST_ORDERS
    orders.clear()
    encode_deterministic({"k" * 1000: 1, "b": 2})
    encode_deterministic({f"key-{number}": 1 for number in range(100)})
    assert not orders
    assert encode_deterministic({"zz": 1, "y": 2}) == cbor2.dumps({"zz": 1, "y": 2}, canonical=True)
    # What is used often is still known.
    assert list(orders) == [("zz", "y")]
