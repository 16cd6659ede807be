from __future__ import annotations

import inspect
import time
from typing import Any

import pytest

from dms_protocols import errors as protocol_errors
from dms_protocols.errors import BidError, BusyError, MessageError, ProtocolError, RemoteError
from dms_protocols.wire.cbor import decode_map
from dms_protocols.wire.clocks import clock_difference
from dms_protocols.wire.conversion import from_map
from dms_protocols.wire.envelope import read_ok
from dms_protocols.wire.error_bodies import ErrorBody, encode_error_body, error_body
from dms_resources import errors as resource_errors
from dms_resources import refusals
from dms_resources.demands import CPUDemand, CPUShortage, RAMShortage
from dms_resources.errors import NotHolderError, ResourcesError
from dms_resources.refusals import InsufficientError, WindowError
from dms_resources.units import Cores

NOW = 1_700_000_000.0
SHORTAGES = (
    CPUShortage(
        asked=CPUDemand(cores=Cores(4000)), free=CPUDemand(cores=Cores(500)), total=CPUDemand(cores=Cores(2000))
    ),
    RAMShortage(asked=8, free=2, total=4),
)


def test_a_refusal_names_every_short_dimension() -> None:
    error = InsufficientError("too little", shortages=SHORTAGES, retry_after=7.5, index=2)
    body = decode_map(encode_error_body(error))
    assert body == {
        "code": "insufficient",
        "message": "too little",
        "retry_after": 7.5,
        "index": 2,
        "shortages": [
            {"dimension": "cpu", "asked": {"cores": 4}, "free": {"cores": 0.5}, "total": {"cores": 2}},
            {"dimension": "ram", "asked": 8, "free": 2, "total": 4},
        ],
    }
    assert from_map(body, ErrorBody).shortages == SHORTAGES


@pytest.mark.parametrize(
    ("error", "fields"),
    [
        (BusyError("later", retry_after=2.0), {"code": "busy", "retry_after": 2.0}),
        (MessageError("wrong", path="a.b"), {"code": "bad_message", "path": "a.b"}),
        (BidError("old", code="bid_expired"), {"code": "bid_expired", "time": NOW}),
        (BidError("another's", code="not_my_bid"), {"code": "not_my_bid"}),
        (
            MessageError("over", path="ensemble.deadline"),
            {"code": "bad_message", "path": "ensemble.deadline", "time": NOW},
        ),
        (NotHolderError("no", lease_id="l1"), {"code": "not_holder", "lease_id": "l1"}),
        (WindowError("closed", retry_after=3.0), {"code": "window", "retry_after": 3.0}),
    ],
)
def test_details(error: ProtocolError | ResourcesError, fields: dict[str, object]) -> None:
    assert decode_map(encode_error_body(error, lambda: NOW)) == {"message": error.message, **fields}


@pytest.mark.parametrize(
    ("theirs", "said"),
    [
        (NOW + 120, "the clock of this machine is 120 s behind the peer's"),
        (NOW - 4000, "the clock of this machine is 4000 s ahead of the peer's"),
        *((theirs, "") for theirs in (NOW, NOW + 9, NOW - 9, None, True, "now", float("nan"), float("inf"), [])),
    ],
)
def test_the_requester_says_by_how_much_the_clocks_differ(theirs: Any, said: str) -> None:
    assert clock_difference(theirs, lambda: NOW).startswith(said)
    assert bool(clock_difference(theirs, lambda: NOW)) == bool(said)


def test_an_error_that_clocks_caused_says_so() -> None:
    now = time.time()
    over = MessageError("ensemble.deadline: it has passed", path="ensemble.deadline")
    for offset in (-3600.0, 0.0, 3600.0):
        body = decode_map(encode_error_body(over, lambda offset=offset: now + offset))
        with pytest.raises(RemoteError) as caught:
            read_ok({"error": body})
        assert ("the clock of this machine is 36" in caught.value.message) == bool(offset)
        assert ("ahead of" in caught.value.message) == (offset < 0)


def test_an_error_that_a_peer_passes_on_is_not_blamed_on_clocks_twice() -> None:
    """A running peer passes the provider's error on to a command of its own machine."""
    remote = RemoteError("it has passed; the clocks differ", code="bid_expired", details={"time": time.time() - 9999})
    with pytest.raises(RemoteError) as caught:
        read_ok({"error": decode_map(encode_error_body(remote))})
    assert caught.value.message == "it has passed; the clocks differ"


def test_a_long_message_is_cut() -> None:
    assert len(error_body(MessageError("x" * 10_000)).message) == 500


def test_every_code_of_the_protocols_is_drawn_in_the_docstring() -> None:
    assert protocol_errors.__doc__
    for name in protocol_errors.__all__:
        kind = getattr(protocol_errors, name)
        assert name in protocol_errors.__doc__
        if kind not in (ProtocolError, RemoteError):
            assert kind.default_code in protocol_errors.__doc__ or kind is BidError


def test_every_error_of_the_ledger_has_a_code_of_its_own() -> None:
    kinds = {kind for module in (resource_errors, refusals) for _, kind in inspect.getmembers(module, inspect.isclass)}
    codes = [kind.code for kind in kinds if issubclass(kind, ResourcesError)]
    assert len(set(codes)) == len(codes)
