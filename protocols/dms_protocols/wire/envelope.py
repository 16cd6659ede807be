"""The form of messages: requests, answers and events, as bytes.

::

    request  {"id": uint, "op": text, …fields of the operation, "token": bytes and "trace": text where they are needed}
    answer   {"id": uint, "ok": map}
             {"id": uint / null, "error": {"code": text, "message": text, …}}
    event    {"id": uint, "event": map}

The client chooses the id. It is null if the service could not read the id of a request. Messages are assembled from
encoded parts, so that the body of an answer can be encoded once and sent many times.
"""

from __future__ import annotations

import struct
from typing import Annotated, Any, TypeAlias

import cbor2
import msgspec

from ..errors import MessageError, RemoteError
from .clocks import clock_difference
from .frames import encode_frame

__all__ = [
    "MAX_ID",
    "Encoded",
    "RequestID",
    "add_token",
    "add_trace",
    "encode_error",
    "encode_event",
    "encode_ok",
    "encode_request",
    "read_id",
    "read_ok",
]

MAX_ID = 2**53 - 1
"""The largest id. The numbers of every language represent it exactly."""

RequestID: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=MAX_ID)]

Encoded: TypeAlias = bytes
"""The CBOR of one map, ready to be put into an answer."""

_MAP_OF_2 = b"\xa2\x62id"
_OK = b"\x62ok"
_ERROR = b"\x65error"
_EVENT = b"\x65event"
_NULL = b"\xf6"


def _uint(value: int) -> bytes:
    if value < 24:
        return bytes((value,))
    if value < 1 << 8:
        return bytes((0x18, value))
    if value < 1 << 16:
        return struct.pack(">BH", 0x19, value)
    if value < 1 << 32:
        return struct.pack(">BI", 0x1A, value)
    return struct.pack(">BQ", 0x1B, value)


def encode_request(request_id: int, fields: Encoded) -> bytes:
    """The frame of a request; `fields` is the map with `op` and the operation's fields, at most 22 of them."""
    return encode_frame(_one_more(fields, b"\x62id" + _uint(request_id)))


def add_token(fields: Encoded, token: bytes) -> Encoded:
    """The fields of a request with a token added."""
    return _one_more(fields, b"\x65token" + cbor2.dumps(token))


def add_trace(fields: Encoded, trace: str) -> Encoded:
    """The fields of a request with a trace added, for the logs of both sides."""
    return _one_more(fields, b"\x65trace" + cbor2.dumps(trace))


def _one_more(fields: Encoded, entry: bytes) -> Encoded:
    size = fields[0] - 0xA0
    if not 0 < size < 23:
        raise ValueError("the fields of a request are a map of 1 to 22 entries")
    return bytes((0xA1 + size,)) + entry + fields[1:]


def encode_ok(request_id: int, body: Encoded) -> bytes:
    """The frame of a successful answer."""
    return encode_frame(_MAP_OF_2 + _uint(request_id) + _OK + body)


def encode_error(request_id: int | None, body: Encoded) -> bytes:
    """The frame of an error. It has no id if the id of the request could not be read."""
    return encode_frame(_MAP_OF_2 + (_NULL if request_id is None else _uint(request_id)) + _ERROR + body)


def encode_event(request_id: int, body: Encoded) -> bytes:
    """The frame of one event of a watch."""
    return encode_frame(_MAP_OF_2 + _uint(request_id) + _EVENT + body)


def read_id(message: dict[str, Any]) -> int:
    """The id of a request or an answer. Raises MessageError if it is missing or invalid."""
    value = message.get("id")
    if type(value) is not int or not 0 <= value <= MAX_ID:
        raise MessageError(f"id: an integer from 0 to {MAX_ID} is expected", path="id")
    return value


def read_ok(answer: dict[str, Any]) -> dict[str, Any]:
    """The body of an answer. Raises RemoteError if it is an error, and MessageError if it is neither."""
    if "ok" in answer:
        body: dict[str, Any] = answer["ok"]
        return body
    error = answer.get("error")
    if not isinstance(error, dict):
        raise MessageError("an answer without ok and error")
    code, text = error.get("code"), error.get("message")
    if type(code) is not str or type(text) is not str:
        raise MessageError("an error without code and message", path="error")
    if different := clock_difference(error.get("time")):
        text = f"{text}; {different}"
    raise RemoteError(text, code=code, details={**error, "message": text})
