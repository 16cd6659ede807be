from __future__ import annotations

from typing import Any

import msgspec
import pytest

from dms_protocols.errors import MessageError
from dms_protocols.wire.conversion import from_map, sealed_bytes, to_bytes, to_map
from dms_resources.demands import Demand
from dms_resources.units import Cores


class Inner(msgspec.Struct, frozen=True):
    size: int


class Outer(msgspec.Struct, frozen=True, omit_defaults=True):
    name: str
    inner: tuple[Inner, ...] = ()
    data: bytes = b""
    share: float = 0.0
    cores: Cores = Cores(0)


def test_there_and_back() -> None:
    message = Outer("x", (Inner(1), Inner(2)), b"\x00\xff", 0.5, Cores.of("0.1"))
    assert from_map(to_map(message), Outer) == message
    assert to_map(message)["data"] == b"\x00\xff"
    assert to_map(message)["cores"] == 0.1


def test_unknown_keys_are_passed_over() -> None:
    assert from_map({"name": "x", "new in 1.1": {"a": 1}}, Outer) == Outer("x")


@pytest.mark.parametrize(
    ("value", "path"),
    [
        ({}, None),
        ({"name": 1}, "name"),
        ({"name": "x", "inner": [{"size": 1}, {"size": 1.0}]}, "inner[1].size"),
        ({"name": "x", "inner": [{"size": True}]}, "inner[0].size"),
        ({"name": "x", "inner": {}}, "inner"),
        ({"name": "x", "data": "AAA="}, "data"),
        ({"name": "x", "share": "0.5"}, "share"),
        ({"name": "x", "share": 10**400}, "share"),
        ({"name": "x", "cores": -1}, "cores"),
        ({"name": "x", "cores": 0.0001}, "cores"),
        ({"name": "x", "cores": 1e300}, "cores"),
        ({"name": "x", "cores": True}, "cores"),
        ([], None),
        (None, None),
    ],
)
def test_wrong_fields_are_named(value: Any, path: str | None) -> None:
    with pytest.raises(MessageError) as caught:
        from_map(value, Outer)
    assert caught.value.code == "bad_message"
    assert caught.value.path == path
    assert len(caught.value.message) <= 400
    if path:
        assert caught.value.message.startswith(path)


def test_a_message_does_not_quote_without_bound() -> None:
    with pytest.raises(MessageError) as caught:
        from_map({"gpus": [{"vendor": "x" * 60_000}]}, Demand)
    assert len(caught.value.message) <= 400


def test_sealed_bytes_do_not_depend_on_the_order_of_fields() -> None:
    class One(msgspec.Struct):
        a: int
        bb: int

    class Two(msgspec.Struct):
        bb: int
        a: int

    assert sealed_bytes(One(1, 2)) == sealed_bytes(Two(2, 1))
    assert to_bytes(One(1, 2)) != to_bytes(Two(2, 1))
