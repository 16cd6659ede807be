"""Files with signed bids, with any content."""

from __future__ import annotations

from pathlib import Path

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dms_host.keys.envelopes import sign_envelope
from dms_host.keys.identity import new_identity
from dms_peer.cli.bid_files import bids_document, read_bids, read_bids_file
from dms_protocols.errors import EnvelopeError

ENVELOPES = [sign_envelope(new_identity(bytes([seed]) * 32), "dms-bid", b"/dms/bid/1.0.0", b"x") for seed in (1, 2)]


def test_one_bid_is_its_envelope_and_several_come_back_in_order() -> None:
    assert bids_document(ENVELOPES[:1]) == ENVELOPES[0]
    assert read_bids(ENVELOPES[0]) == (ENVELOPES[0],)
    assert read_bids(bids_document(ENVELOPES)) == tuple(ENVELOPES)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no envelope",
        cbor2.dumps([b"a"]),
        cbor2.dumps({}),
        cbor2.dumps({"bids": []}),
        cbor2.dumps({"bids": b"a"}),
        cbor2.dumps({"bids": [b"a", "b"]}),
        cbor2.dumps({"bids": [b"a"] * 65}),
        cbor2.dumps({"bids": [b"a"]}) + b"x",
    ],
)
def test_what_holds_no_bids(content: bytes) -> None:
    with pytest.raises(EnvelopeError) as caught:
        read_bids(content)
    assert caught.value.code == "bad_envelope"


@given(st.binary(max_size=100))
def test_any_bytes_are_envelopes_or_a_coded_error(content: bytes) -> None:
    try:
        envelopes = read_bids(content)
    except EnvelopeError:
        return
    assert envelopes
    assert all(isinstance(envelope, bytes) for envelope in envelopes)


def test_a_huge_file_is_not_read_to_its_end(tmp_path: Path) -> None:
    path = tmp_path / "huge"
    with path.open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(EnvelopeError, match="larger than"):
        read_bids_file(path)
