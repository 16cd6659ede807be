"""The deterministic encoding of RFC 8949, 4.2.1, several times as fast as cbor2's own.

cbor2 encodes every key of every map to sort them. A protocol has few different sequences of keys. This module sorts
each of them once, and lets cbor2 encode maps that are in order already. cbor2 also encodes values of types that this
module does not know.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any, Final

import cbor2

__all__ = ["encode_deterministic"]

_LEAVES: Final = frozenset((int, str, bytes, bool, type(None)))
_HALF: Final = struct.Struct(">e")
_SINGLE: Final = struct.Struct(">f")
# Peers choose the keys of maps that are digested. When this many sequences are known, all of them are forgotten.
_MOST_ORDERS: Final = 1024
_MOST_KEYS: Final = 32
_LONGEST_KEY: Final = 64

_orders: dict[tuple[str, ...], tuple[str, ...]] = {}


class _UnknownError(Exception):
    """A value of a type that cbor2 has to encode."""


class _Encoded:
    """A value that is encoded already."""

    __slots__ = ("raw",)

    def __init__(self, raw: bytes) -> None:
        self.raw = raw


def encode_deterministic(value: Mapping[str, Any]) -> bytes:
    """Encode so that equal maps give equal bytes, for digests and signatures.

    Keys are sorted, and every value has its shortest form.
    """
    try:
        return cbor2.dumps(_ordered_map(value), default=_write)
    except (_UnknownError, UnicodeEncodeError):
        return cbor2.dumps(value, canonical=True)


def _write(encoder: cbor2.CBOREncoder, value: _Encoded) -> None:
    encoder.write(value.raw)


def _ordered_map(value: Mapping[str, Any]) -> Mapping[str, Any]:
    names = tuple(value)
    if not names:
        return value
    ordered = {}
    for name in _orders.get(names) or _order(names):
        one = value[name]
        # Most values are plain; only the others need a closer look.
        ordered[name] = one if type(one) in _LEAVES else _ordered(one)
    return ordered


def _ordered(value: Any) -> Any:
    kind = type(value)
    if kind is dict:
        return _ordered_map(value)
    if kind is list or kind is tuple:
        return [one if type(one) in _LEAVES else _ordered(one) for one in value]
    if kind is float:
        return _shortest(value)
    raise _UnknownError


def _order(names: tuple[str, ...]) -> tuple[str, ...]:
    if any(type(name) is not str for name in names):
        raise _UnknownError
    # Bytewise order of the encoded keys: shorter keys come first.
    order = tuple(sorted(names, key=lambda name: (len(raw := name.encode()), raw)))
    if len(names) <= _MOST_KEYS and all(len(name) <= _LONGEST_KEY for name in names):
        if len(_orders) >= _MOST_ORDERS:
            _orders.clear()
        _orders[names] = order
    return order


def _shortest(value: float) -> object:
    if value != value:
        raise _UnknownError
    # Most floats are times and need all 64 bits. A float that does not fit 32 bits does not fit 16 either.
    single = _exactly(value, _SINGLE)
    if single is None:
        return value
    half = _exactly(value, _HALF)
    return _Encoded(b"\xfa" + single if half is None else b"\xf9" + half)


def _exactly(value: float, form: struct.Struct) -> bytes | None:
    try:
        raw = form.pack(value)
    except OverflowError:
        return None
    return raw if form.unpack(raw)[0] == value else None
