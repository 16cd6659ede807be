from __future__ import annotations

from typing import Any

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dms_protocols.errors import MessageError
from dms_protocols.wire.envelope import MAX_ID, encode_error, encode_event, encode_ok, encode_request, read_id
from dms_protocols.wire.frames import FrameReader

ids = st.integers(0, MAX_ID) | st.sampled_from([0, 23, 24, 255, 256, 65535, 65536, 2**32 - 1, 2**32, MAX_ID])
bodies = st.dictionaries(st.text(max_size=4), st.integers(0, 9) | st.text(max_size=300), max_size=3)


def read(frame: bytes) -> Any:
    reader = FrameReader(1 << 20)
    reader.feed(frame)
    (payload,) = reader
    return cbor2.loads(payload)


@given(ids, bodies)
def test_frames_are_put_together_as_if_encoded_at_once(request_id: int, body: dict[str, Any]) -> None:
    encoded = cbor2.dumps(body)
    assert read(encode_ok(request_id, encoded)) == {"id": request_id, "ok": body}
    assert read(encode_event(request_id, encoded)) == {"id": request_id, "event": body}
    assert read(encode_error(request_id, encoded)) == {"id": request_id, "error": body}
    assert read(encode_error(None, encoded)) == {"id": None, "error": body}
    fields = {"op": "x", **body}
    assert read(encode_request(request_id, cbor2.dumps(fields))) == {"id": request_id, **fields}


def test_a_request_has_at_most_23_entries() -> None:
    encode_request(1, cbor2.dumps(dict.fromkeys(map(str, range(22)))))
    for fields in ({}, dict.fromkeys(map(str, range(23)))):
        with pytest.raises(ValueError, match="1 to 22"):
            encode_request(1, cbor2.dumps(fields))


@pytest.mark.parametrize("value", [None, -1, MAX_ID + 1, True, 1.0, "1", b"1", [], {}])
def test_an_id_is_an_integer_every_language_has(value: Any) -> None:
    with pytest.raises(MessageError) as caught:
        read_id({"id": value})
    assert caught.value.path == "id"
