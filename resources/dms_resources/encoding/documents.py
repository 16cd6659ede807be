"""JSON documents for programs: an amount that is zero is there, like any other."""

from __future__ import annotations

from typing import Any

import msgspec

from ..units import encode_value

__all__ = ["to_document"]


def to_document(value: Any) -> Any:
    """Return plain values for JSON of structs, mappings and sequences, with every field that has a value.

    On the wire a field that has its default is left out. Here only what is unknown (None) is, so that a program does
    not need to know the defaults. Cores are numbers, bytes are base64.
    """
    if isinstance(value, msgspec.Struct):
        return _fields(value)
    if isinstance(value, dict):
        return {msgspec.to_builtins(key, str_keys=True): to_document(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_document(item) for item in value]
    return msgspec.to_builtins(value, enc_hook=encode_value)


def _fields(value: msgspec.Struct) -> dict[str, Any]:
    config = value.__struct_config__
    document: dict[str, Any] = {} if config.tag_field is None else {config.tag_field: config.tag}
    # `msgspec.structs.fields` evaluates annotations, whose names may be there for the type checker alone.
    defaults = value.__struct_defaults__
    required = len(value.__struct_fields__) - len(defaults)
    names = zip(value.__struct_fields__, value.__struct_encode_fields__, strict=True)
    for number, (name, encoded) in enumerate(names):
        item = getattr(value, name)
        unknown = number >= required and defaults[number - required] is None
        if item is not None or not unknown or not config.omit_defaults:
            document[encoded] = to_document(item)
    return document
