"""Both sides of a piece of work write the same trace into their logs."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import trio
import trio.testing

from dms_protocols.rpc.client import open_client
from dms_protocols.rpc.operations import Caller
from dms_protocols.rpc.service import serve_stream
from dms_protocols.rpc.traces import MAX_TRACE, current_trace, tracing


@pytest.fixture
def events(caplog: pytest.LogCaptureFixture) -> Any:
    """The log of the service: event and fields of each line."""
    caplog.set_level(logging.INFO, "dms_protocols.requests")
    return lambda: [(record.getMessage(), record.fields) for record in caplog.records if hasattr(record, "fields")]


async def test_what_changes_something_and_what_is_refused_is_logged_with_its_trace(serving: Any, events: Any) -> None:
    async with serving() as peer:
        await peer.send(
            {"id": 1, "op": "slow", "seconds": 0, "trace": "visit"},
            {"id": 2, "op": "echo", "text": "quick", "trace": "visit"},
            {"id": 3, "op": "echo", "trace": "visit"},
            {"id": 4, "op": "slow_fail", "kind": "busy", "trace": "other"},
            {"id": 5, "op": "slow", "seconds": 0},
            {"id": 6, "op": "unheard of", "trace": "visit"},
        )
        await peer.stream.send_eof()
        await peer.receive_rest()
    one = {"peer": "peer-1"}
    assert sorted(events(), key=lambda event: event[1]["id"]) == [
        ("answered", {**one, "op": "slow", "outcome": "ok", "id": 1, "trace": "visit"}),
        ("refused", {**one, "op": "echo", "outcome": "bad_message", "id": 3, "trace": "visit"}),
        ("refused", {**one, "op": "slow_fail", "outcome": "busy", "id": 4, "trace": "other"}),
        ("answered", {**one, "op": "slow", "outcome": "ok", "id": 5}),
        ("refused", {**one, "op": "unreadable", "outcome": "unknown_operation", "id": 6}),
    ]


async def test_a_trace_that_makes_no_sense_changes_nothing(serving: Any, events: Any) -> None:
    async with serving() as peer:
        for number, trace in enumerate((7, b"bytes", None, ["list"], "x" * 1000)):
            await peer.send({"id": number, "op": "slow", "seconds": 0, "trace": trace})
            assert "ok" in await peer.receive()
    assert [len(fields.get("trace", "")) for _, fields in events()] == [0, 0, 0, 0, MAX_TRACE]


async def test_nothing_is_read_or_written_where_nobody_listens(serving: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "dms_protocols.requests")
    async with serving() as peer:
        await peer.send({"id": 1, "op": "slow", "seconds": 0, "trace": "visit"}, {"id": 2, "op": "echo"})
        await peer.stream.send_eof()
        assert len(await peer.receive_rest()) == 2
    assert caplog.records == []


async def test_a_client_sends_the_trace_of_its_task(market: Any, messages: Any, events: Any) -> None:
    ours, theirs = trio.testing.memory_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve_stream, theirs, market.operations, Caller("requester"))
        async with open_client(ours) as client:

            async def ask() -> None:
                await client.call(messages.Slow(0.0), messages.EchoAnswer, timeout=5)

            with tracing() as trace:
                assert current_trace() == trace
                async with trio.open_nursery() as asking:
                    asking.start_soon(ask)
            assert current_trace() == ""
            await ask()
    assert [fields.get("trace", "") for _, fields in events()] == [trace, ""]
