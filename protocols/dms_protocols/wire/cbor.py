"""The CBOR of the protocols: exactly one map, with nothing that two languages could read differently.

Accepted (RFC 8949): maps with text keys that differ from each other, arrays, text, byte strings, integers of 64 bits,
finite floats, true, false, null, all of definite length. Refused: tags of any kind, undefined, other simple values, NaN
and infinities, bytes after the map, more depth or items than the limits allow.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from typing import Any, NoReturn

import cbor2

from ..errors import CBORError
from .deterministic import encode_deterministic

__all__ = [
    "MAX_DEPTH",
    "MAX_ITEMS",
    "decode_map",
    "encode_deterministic",
    "encode_fast",
    "whole_numbers_as_integers",
]

MAX_DEPTH = 16
"""The nesting depth of containers, unless the caller passes another limit."""

MAX_ITEMS = 4096
"""Values in a map, at all depths together, unless the caller passes another limit."""

_FIRST_INEXACT = 2**53
_LEAVES = frozenset((int, str, bytes, bool, type(None)))


def _refuse_tag(value: object, immutable: bool) -> NoReturn:
    raise ValueError("tags are not allowed")


class _EveryTag(dict[int, Any]):
    """Looks like a table with a decoder for every tag, so that cbor2 uses none of its own decoders."""

    def __contains__(self, tag: object) -> bool:
        return True

    def __getitem__(self, tag: int) -> Any:
        return _refuse_tag

    def get(self, tag: int, default: Any = None) -> Any:
        return _refuse_tag


_EVERY_TAG = _EveryTag()


def decode_map(data: bytes, *, max_depth: int = MAX_DEPTH, max_items: int = MAX_ITEMS) -> dict[str, Any]:
    """Decode exactly one map. For all other bytes it raises CBORError, and nothing else."""
    source = io.BytesIO(data)
    try:
        value = cbor2.CBORDecoder(
            source,
            semantic_decoders=_EVERY_TAG,
            max_depth=max_depth,
            allow_indefinite=False,
            allow_duplicate_keys=False,
            strict_hashable_types=True,
        ).decode()
    except Exception as error:
        raise CBORError(f"not acceptable CBOR: {_reason(error)}") from None
    if type(value) is not dict:
        raise CBORError("not acceptable CBOR: the message is not a map")
    if source.tell() != len(data):
        raise CBORError("not acceptable CBOR: bytes after the map")
    _check(value, max_items)
    return value


def encode_fast(value: Mapping[str, Any]) -> bytes:
    """Encode a map of plain values in its own order."""
    return cbor2.dumps(value)


def whole_numbers_as_integers(value: Any) -> Any:
    """The same value, with whole floats as integers if every language can represent them exactly.

    This is the "numeric reduction" of dCBOR (draft-mcnally-deterministic-cbor), for integers below 2^53. A decoder with
    a single type of number reads such a float and writes it again as an integer.
    """
    kind = type(value)
    if kind is float:
        return int(value) if value.is_integer() and abs(value) < _FIRST_INEXACT else value
    if kind is dict:
        return {key: whole_numbers_as_integers(item) for key, item in value.items()}
    if kind is list or kind is tuple:
        return [whole_numbers_as_integers(item) for item in value]
    return value


def _check(value: dict[str, Any], max_items: int) -> None:
    # The frame limit bounds the decoding. This loop bounds all later work on the map, and finds values that only cbor2
    # accepts.
    containers: list[Any] = [value]
    items = 0
    while containers:
        container = containers.pop()
        items += len(container)
        if items > max_items:
            raise CBORError(f"not acceptable CBOR: more than {max_items} values")
        if type(container) is dict:
            for key in container:
                if type(key) is not str:
                    raise CBORError("not acceptable CBOR: a key is not text")
            container = container.values()
        for item in container:
            kind = type(item)
            if kind in _LEAVES:
                continue
            if kind is dict or kind is list:
                containers.append(item)
            elif kind is not float or not math.isfinite(item):
                raise CBORError(f"not acceptable CBOR: a value of the kind {_kind(item)}")


def _kind(value: object) -> str:
    return "NaN or infinity" if type(value) is float else type(value).__name__


def _reason(error: Exception) -> str:
    cause = error.__cause__
    text = str(error) if cause is None else f"{error}: {cause}"
    return text[:200]
