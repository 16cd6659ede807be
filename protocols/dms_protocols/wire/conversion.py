"""Converts maps of plain values into typed messages and back.

Types are exact: text is not converted into a number, nor a float into an integer. Unknown keys are ignored. The value
types of `dms_resources` are sent in the DMS's units.

The exception are the DMS's own structs as a Go program encodes them: whole floats are accepted for amounts in `cpu`,
`ram`, `disk` and `gpus`, and null for a field that may be left out.
"""

from __future__ import annotations

import re
from typing import Any, TypeVar

import msgspec

from dms_resources.encoding.go_structs import plain_resources
from dms_resources.units import decode_value, encode_value

from ..errors import MessageError
from .cbor import encode_deterministic, encode_fast

__all__ = ["from_map", "sealed_bytes", "to_bytes", "to_map"]

Message = TypeVar("Message")

_BUILTIN = (bytes,)
_PATH = re.compile(r" - at `\$\.?(.*)`$", re.DOTALL)


def from_map(value: object, kind: type[Message]) -> Message:
    """Make a typed message from a decoded map. Raises MessageError with the path of the invalid field."""
    try:
        return _convert(value, kind)
    except MessageError as error:
        # Only now, so that a message in the usual form costs nothing more.
        try:
            return _convert(plain_resources(value), kind)
        except MessageError as second:
            # A null that may not be left out is better named as it came.
            raise (error if "missing required field" in second.message else second) from None


def _convert(value: object, kind: type[Message]) -> Message:
    try:
        return msgspec.convert(value, kind, builtin_types=_BUILTIN, dec_hook=decode_value)
    except (msgspec.ValidationError, OverflowError, RecursionError) as error:
        text = str(error)
        found = _PATH.search(text)
        path = found[1][:200] if found else None
        raise MessageError((text if found is None else f"{path}: {text[: found.start()]}")[:400], path=path) from None


def to_map(message: msgspec.Struct) -> dict[str, Any]:
    """The map of plain values for a typed message."""
    value: dict[str, Any] = msgspec.to_builtins(message, builtin_types=_BUILTIN, enc_hook=encode_value)
    return value


def to_bytes(message: msgspec.Struct) -> bytes:
    """The CBOR of a typed message, in the fastest encoding."""
    return encode_fast(to_map(message))


def sealed_bytes(message: msgspec.Struct) -> bytes:
    """The deterministic CBOR of a typed message, for signatures and digests."""
    return encode_deterministic(to_map(message))
