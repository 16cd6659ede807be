"""The counters of a service: every request once, by names of this side's own code, whatever the peer wrote."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import trio

from dms_protocols.bidding.service import bid_operations
from dms_protocols.messages.bid import BidRequest
from dms_protocols.rpc.counts import ServiceCounts
from dms_protocols.rpc.limits import ServiceLimits
from dms_protocols.rpc.operations import Caller
from dms_protocols.wire.conversion import to_map


async def test_every_request_is_counted_by_operation_and_outcome(serving: Any, autojump_clock: Any) -> None:
    counts = ServiceCounts()
    async with serving(counts=counts) as peer:
        await peer.send(
            {"id": 1, "op": "echo", "text": "a"},
            {"id": 2, "op": "echo", "text": "b"},
            {"id": 3, "op": "echo"},
            {"id": 4, "op": "slow", "seconds": 1},
            {"id": 5, "op": "slow_fail", "kind": "busy"},
            {"id": 6, "op": "fail", "kind": "crash"},
            {"id": 7, "op": "count", "last": 1},
        )
        await peer.stream.send_eof()
        await peer.receive_rest()
    assert counts.requests == {
        ("echo", "ok"): 2,
        ("echo", "bad_message"): 1,
        ("slow", "ok"): 1,
        ("slow_fail", "busy"): 1,
        ("fail", "internal"): 1,
        ("count", "ok"): 1,
    }


async def test_no_peer_makes_the_tables_grow(serving: Any) -> None:
    counts = ServiceCounts()
    async with serving(counts=counts) as peer:
        await peer.send(*({"id": number, "op": f"invented-{number}"} for number in range(50)))
        await peer.send(*("no map" for _ in range(50)), *({"op": "echo"} for _ in range(50)))
        for _ in range(150):
            await peer.receive()
    assert {operation for operation, _ in counts.requests} == {"unreadable"}
    assert sum(counts.requests.values()) == 150


async def test_what_ends_a_stream_is_counted_too(serving: Any) -> None:
    counts = ServiceCounts()
    async with serving(ServiceLimits(frame_bytes=64, skip_bytes=128), counts=counts) as peer:
        await peer.stream.send_all(b"\xff\xff\x7f")
        await peer.receive_rest()
    assert set(counts.requests) == {("unreadable", "frame_too_large")}


async def test_streams_are_counted_while_they_are_served(serving: Any) -> None:
    counts = ServiceCounts()
    async with serving(counts=counts) as peer:
        await peer.send({"id": 1, "op": "echo", "text": ""})
        await peer.receive()
        assert counts.streams == 1
    with trio.fail_after(5):
        while counts.streams:
            await trio.lowlevel.checkpoint()


async def test_bids_and_refusals_are_counted_by_code(
    provider: Any, ask: Callable[..., Any], node: Callable[..., Any], requester: Any
) -> None:
    counts = ServiceCounts()
    operations = bid_operations(provider.manager, provider.signer, clock=provider.clock.wall, counts=counts)
    request = BidRequest(ensemble=to_map(ask(node("fits"), node("does not", cores=10_000))))
    operations["bid_request"].handler(request, Caller(requester.peer_id))
    operations["bid_request"].handler(request, Caller(requester.peer_id))
    assert counts.bids == 2
    assert counts.refusals == {"resources": 2}
