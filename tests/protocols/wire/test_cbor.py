from __future__ import annotations

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dms_protocols.errors import CBORError
from dms_protocols.wire.cbor import decode_map, encode_deterministic, encode_fast

plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**64), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8)
    | st.binary(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=20,
)
maps = st.dictionaries(st.text(max_size=8), plain, max_size=5)

REFUSED = {
    "nothing": "",
    "no map": "01",
    "array": "80",
    "truncated": "a16161",
    "indefinite map": "bf616101ff",
    "indefinite array": "a161619f01ff",
    "indefinite text": "a161617f6161ff",
    "duplicate key": "a2616101616102",
    "integer key": "a10102",
    "bytes key": "a1416102",
    "null key": "a1f602",
    "array key": "a18002",
    "map key": "a1a002",
    "bignum": "a16161c249010000000000000000",
    "datetime": "a16161c11a514b67b0",
    "decimal": "a16161c48221196ab3",
    "shared": "a16161d81c80",
    "shared reference": "a16161d81d00",
    "string references": "a16161d9010080",
    "set": "a16161d901028101",
    "self-described": "d9d9f7a0",
    "unknown tag": "a16161d9ffff00",
    "tag on the key": "a1c1616101",
    "undefined": "a16161f7",
    "undefined in an array": "a1616181f7",
    "simple value": "a16161f0",
    "simple value of two bytes": "a16161f8ff",
    "NaN": "a16161f97e00",
    "infinity": "a16161f97c00",
    "minus infinity in an array": "a1616181fbfff0000000000000",
    "reserved": "a161611c",
    "break": "a16161ff",
    "text that is no UTF-8": "a16161" + "61ff",
    "bytes behind": "a0a0",
    "one byte behind": "a000",
    "huge array": "a161619bffffffffffffffff",
    "huge text": "a161617bffffffffffffffff",
    "huge map": "bbffffffffffffffff",
    "too deep": "a16161" + "81" * 16 + "00",
    "far too deep": "a16161" + "81" * 60000 + "00",
}


@pytest.mark.parametrize("data", REFUSED.values(), ids=REFUSED.keys())
def test_refused(data: str) -> None:
    with pytest.raises(CBORError) as caught:
        decode_map(bytes.fromhex(data))
    assert caught.value.code == "bad_cbor"
    assert len(caught.value.message) < 300


def test_depth_up_to_the_limit() -> None:
    assert decode_map(bytes.fromhex("a16161" + "81" * 14 + "00"))


def test_items_up_to_the_limit() -> None:
    assert decode_map(cbor2.dumps({"a": [0] * 9}), max_items=10)
    with pytest.raises(CBORError, match="more than 9 values"):
        decode_map(cbor2.dumps({"a": [0] * 9}), max_items=9)
    with pytest.raises(CBORError, match="more than 9 values"):
        decode_map(cbor2.dumps({"a": [[0] * 3] * 3}), max_items=9)


@given(maps)
def test_what_is_encoded_is_read_back(value: dict[str, object]) -> None:
    assert decode_map(encode_fast(value)) == value
    assert decode_map(encode_deterministic(value)) == value


@given(maps)
def test_deterministic_whatever_the_order(value: dict[str, object]) -> None:
    assert encode_deterministic(dict(reversed(value.items()))) == encode_deterministic(value)


def test_deterministic_form_of_rfc_8949() -> None:
    # Shorter keys first, then by bytes; floats and integers in their shortest form.
    assert encode_deterministic({"bb": 1, "c": 1.5, "a": 0.1, "aa": 24}).hex() == (
        "a4" + "6161" + "fb3fb999999999999a" + "6163" + "f93e00" + "626161" + "1818" + "626262" + "01"
    )


@given(st.binary(max_size=64))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    try:
        value = decode_map(data)
    except CBORError:
        return
    assert type(value) is dict


@given(maps, st.data())
def test_damaged_messages_are_read_or_refused(value: dict[str, object], data: st.DataObject) -> None:
    encoded = bytearray(encode_fast(value))
    position = data.draw(st.integers(0, len(encoded) - 1))
    encoded[position] = data.draw(st.integers(0, 255))
    try:
        decode_map(bytes(encoded))
    except CBORError:
        return
