"""Documents for programs have every field that has a value."""

from __future__ import annotations

from enum import Enum

import msgspec

from dms_resources.encoding.documents import to_document
from dms_resources.units import Cores


class _Inner(msgspec.Struct, omit_defaults=True):
    size: int = 0
    name: str = ""
    unknown: float | None = None


class _Colour(Enum):
    RED = "red"


class _Outer(msgspec.Struct, tag_field="op", tag="outer"):
    inner: _Inner = msgspec.field(name="in", default_factory=_Inner)
    many: tuple[_Inner, ...] = ()
    by_name: dict[_Colour, _Inner] = {}
    cores: Cores = Cores(0)
    data: bytes = b""
    colour: _Colour = _Colour.RED
    nothing: int | None = None


def test_zero_and_empty_are_values_and_unknown_is_not() -> None:
    assert to_document(_Inner()) == {"size": 0, "name": ""}
    assert to_document(_Inner(unknown=1.5)) == {"size": 0, "name": "", "unknown": 1.5}


def test_everything_inside_is_written_too() -> None:
    document = to_document(_Outer(many=(_Inner(size=1),), by_name={_Colour.RED: _Inner()}, cores=Cores(500), data=b"x"))
    assert document == {
        "op": "outer",
        "in": {"size": 0, "name": ""},
        "many": [{"size": 1, "name": ""}],
        "by_name": {"red": {"size": 0, "name": ""}},
        "cores": 0.5,
        "data": "eA==",
        "colour": "red",
        "nothing": None,
    }
    assert to_document({"rest": [_Inner()]}) == {"rest": [{"size": 0, "name": ""}]}
