from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import cbor2
import pytest
import trio
import trio.testing
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dms_protocols.logs import LimitedLog
from dms_protocols.rpc import service
from dms_protocols.rpc.limits import ServiceLimits
from dms_protocols.rpc.operations import Caller, Operations
from dms_protocols.rpc.service import serve_stream
from dms_protocols.wire.frames import encode_frame, encode_varint


@pytest.fixture(autouse=True)
def fresh_log(monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit of log lines applies to the process. Each test gets a new one."""
    monkeypatch.setattr(service, "_log", LimitedLog(logging.getLogger("dms_protocols.rpc.service"), lines=5))


def by_id(messages: list[dict[str, Any]]) -> dict[Any, dict[str, Any]]:
    return {message["id"]: message for message in messages}


def counted_writes() -> tuple[list[int], Callable[[], Any]]:
    """A list that grows with each write of the service, and a function that makes its pair of streams."""
    writes: list[int] = []

    def pair() -> Any:
        ours, theirs = trio.testing.memory_stream_pair()
        deliver = theirs.send_stream.send_all_hook

        async def count_writes() -> None:
            writes.append(1)
            await deliver()

        theirs.send_stream.send_all_hook = count_writes
        return ours, theirs

    return writes, pair


async def test_one_request_one_answer(serving: Any) -> None:
    async with serving() as peer:
        await peer.send({"id": 7, "op": "echo", "text": "hello"})
        assert await peer.receive() == {"id": 7, "ok": {"text": "hello", "peer_id": "peer-1"}}


async def test_a_one_shot_client_reads_its_answer_and_then_the_end(serving: Any) -> None:
    async with serving() as peer:
        await peer.send({"id": 0, "op": "echo", "text": ""})
        await peer.stream.send_eof()
        assert len(await peer.receive_rest()) == 1


async def test_pipelined_requests_are_answered_in_one_write(serving: Any) -> None:
    writes, pair = counted_writes()
    async with serving(pair=pair) as peer:
        await peer.send(*({"id": number, "op": "echo", "text": str(number)} for number in range(64)))
        answers = [await peer.receive() for _ in range(64)]
    assert [answer["ok"]["text"] for answer in answers] == [str(number) for number in range(64)]
    assert len(writes) == 1


async def test_a_request_one_byte_at_a_time(serving: Any) -> None:
    async with serving() as peer:
        for byte in encode_frame(cbor2.dumps({"id": 1, "op": "echo", "text": "x"})):
            await peer.stream.send_all(bytes([byte]))
        assert (await peer.receive())["ok"]["text"] == "x"


async def test_slow_operations_do_not_hold_up_quick_ones(serving: Any, autojump_clock: Any) -> None:
    async with serving() as peer:
        await peer.send({"id": 1, "op": "slow", "seconds": 5.0}, {"id": 2, "op": "echo", "text": "x"})
        assert [(await peer.receive())["id"], (await peer.receive())["id"]] == [2, 1]


async def test_slow_operations_that_end_together_are_one_write(serving: Any, autojump_clock: Any) -> None:
    writes, pair = counted_writes()
    async with serving(pair=pair) as peer:
        await peer.send(*({"id": number, "op": "slow", "seconds": 1.0} for number in range(20)))
        for _ in range(20):
            await peer.receive()
    assert len(writes) <= 2


async def test_more_slow_operations_than_allowed_are_told_when_to_come_back(serving: Any, autojump_clock: Any) -> None:
    limits = ServiceLimits(operations_in_flight=2, busy_retry_after=1.5)
    async with serving(limits) as peer:
        await peer.send(*({"id": number, "op": "slow", "seconds": 1.0} for number in range(3)))
        refusal = await peer.receive()
        assert (refusal["id"], refusal["error"]["code"], refusal["error"]["retry_after"]) == (2, "busy", 1.5)
        assert {(await peer.receive())["id"] for _ in range(2)} == {0, 1}
        await peer.send({"id": 3, "op": "slow", "seconds": 1.0})
        assert "ok" in await peer.receive()


async def test_a_slow_operation_has_a_deadline(serving: Any, market: Any, autojump_clock: Any) -> None:
    async with serving(ServiceLimits(operation_deadline=3)) as peer:
        await peer.send({"id": 1, "op": "slow", "seconds": 100.0, "text": "long"})
        assert (await peer.receive())["error"]["code"] == "deadline_exceeded"
    assert market.cancelled == ["long"]


async def test_at_the_end_of_the_input_what_runs_is_finished_and_answered(
    serving: Any, market: Any, autojump_clock: Any
) -> None:
    async with serving() as peer:
        await peer.send({"id": 1, "op": "slow", "seconds": 5.0, "text": "a"}, {"id": 2, "op": "count", "last": 1000})
        await peer.stream.send_eof()
        messages = await peer.receive_rest()
    assert market.finished == ["a"]
    assert {"id": 1, "ok": {"text": "a", "peer_id": ""}} in messages
    assert {"id": 2, "ok": {}} in messages
    assert market.watches == 0


async def test_a_stream_that_ends_in_good_order_is_not_cut_off(serving: Any) -> None:
    ended = []

    def pair() -> Any:
        ours, theirs = trio.testing.memory_stream_pair()

        close = theirs.aclose

        async def aclose() -> None:
            try:
                await trio.lowlevel.checkpoint()
                ended.append("in good order")
            finally:
                await close()

        theirs.aclose = aclose
        return ours, theirs

    async with serving(pair=pair) as peer:
        await peer.stream.send_eof()
        await peer.receive_rest()
    assert ended


async def test_cancelling_the_service_cancels_what_runs_and_closes_the_stream(market: Any) -> None:
    ours, theirs = trio.testing.memory_stream_pair()
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve_stream, theirs, market.operations, Caller("peer-1"))
            await ours.send_all(encode_frame(cbor2.dumps({"id": 1, "op": "slow", "seconds": 9.0, "text": "a"})))
            await trio.testing.wait_all_tasks_blocked()
            scope.cancel()
    assert market.cancelled == ["a"]
    assert await ours.receive_some() == b""


# Bad requests


@pytest.mark.parametrize(
    ("request_", "request_id", "code"),
    [
        ({"id": 1, "op": "nothing"}, 1, "unknown_operation"),
        ({"id": 1, "op": "x" * 5000}, 1, "unknown_operation"),
        ({"id": 1, "op": 5}, 1, "bad_message"),
        ({"id": 1}, 1, "bad_message"),
        ({"id": 1, "op": "echo"}, 1, "bad_message"),
        ({"id": 1, "op": "echo", "text": 5}, 1, "bad_message"),
        ({"id": 1, "op": "cancel"}, 1, "bad_message"),
        ({"op": "echo", "text": "x"}, None, "bad_message"),
        ({"id": -1, "op": "echo", "text": "x"}, None, "bad_message"),
        ({"id": "1", "op": "echo", "text": "x"}, None, "bad_message"),
        ({"id": 1, "op": "echo", "text": "x", "more": [0] * 5000}, None, "bad_cbor"),
        ([1, 2], None, "bad_cbor"),
        ({"id": 1, "op": "echo", "text": "x" * 70_000}, None, "frame_too_large"),
    ],
)
async def test_a_bad_request_gets_its_code_and_leaves_the_stream_usable(
    serving: Any, request_: object, request_id: int | None, code: str
) -> None:
    async with serving() as peer:
        await peer.send(request_)
        answer = await peer.receive()
        assert (answer["id"], answer["error"]["code"]) == (request_id, code)
        assert len(cbor2.dumps(answer)) < 700
        await peer.send({"id": 2, "op": "echo", "text": "still here"})
        assert (await peer.receive())["ok"]["text"] == "still here"


@pytest.mark.parametrize(("bytes_", "code"), [(b"\x80\x00", "bad_frame"), (encode_varint(1 << 30), "frame_too_large")])
async def test_what_cannot_be_passed_over_is_answered_and_ends_the_stream(
    serving: Any, bytes_: bytes, code: str
) -> None:
    async with serving() as peer:
        await peer.send({"id": 1, "op": "echo", "text": "x"})
        await peer.stream.send_all(bytes_)
        messages = await peer.receive_rest()
    assert len(messages) == 2
    assert messages[0]["id"] == 1
    assert (messages[1]["id"], messages[1]["error"]["code"]) == (None, code)


@pytest.mark.parametrize("op", ["fail", "slow_fail"])
@pytest.mark.parametrize("kind", ["crash", "group"])
async def test_an_unexpected_error_is_internal_and_one_line_in_the_log(
    serving: Any, caplog: pytest.LogCaptureFixture, op: str, kind: str
) -> None:
    async with serving() as peer:
        await peer.send({"id": 9, "op": op, "kind": kind})
        answer = await peer.receive()
        assert answer["error"]["code"] == "internal"
        assert "secret" not in str(answer)
        await peer.send({"id": 10, "op": "echo", "text": "x"})
        assert "ok" in await peer.receive()
    (record,) = caplog.records
    assert "id=9" in record.message
    assert "peer=peer-1" in record.message
    assert "\n" not in record.message


async def test_a_peer_cannot_fill_the_log(serving: Any, caplog: pytest.LogCaptureFixture) -> None:
    async with serving() as peer:
        await peer.send(*({"id": number, "op": "fail"} for number in range(100)))
        for _ in range(100):
            await peer.receive()
    assert len(caplog.records) == 5


@pytest.mark.parametrize("op", ["fail", "slow_fail"])
async def test_a_refusal_keeps_its_code_and_details(serving: Any, caplog: pytest.LogCaptureFixture, op: str) -> None:
    async with serving() as peer:
        await peer.send({"id": 1, "op": op, "kind": "busy"})
        answer = await peer.receive()
    assert answer["error"] == {"code": "busy", "message": "later", "retry_after": 2.5}
    assert not caplog.records


async def test_an_answer_above_the_limit_becomes_an_error(serving: Any) -> None:
    async with serving(ServiceLimits(answer_bytes=1000)) as peer:
        await peer.send({"id": 1, "op": "echo", "text": "x" * 2000})
        assert (await peer.receive())["error"]["code"] == "answer_too_large"


# Peers that hold back


async def test_a_peer_that_never_reads_is_not_read_from_and_then_dropped(market: Any, autojump_clock: Any) -> None:
    limits = ServiceLimits(outgoing_bytes=10_000, write_deadline=20)
    ours, theirs = trio.testing.lockstep_stream_pair()
    request = encode_frame(cbor2.dumps({"id": 1, "op": "echo", "text": "x" * 1000}))
    sent = 0
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve_stream, theirs, market.operations, Caller("peer-1"), limits)
        with suppress(trio.BrokenResourceError):
            while sent < 1000:
                await ours.send_all(request)
                sent += 1
    assert trio.current_time() == pytest.approx(20)
    assert sent < 30


async def test_answers_of_slow_operations_are_bounded_too(market: Any, autojump_clock: Any) -> None:
    limits = ServiceLimits(outgoing_bytes=1000, write_deadline=1000, operations_in_flight=3)
    ours, theirs = trio.testing.memory_stream_pair()
    reading, deliver = trio.Event(), theirs.send_stream.send_all_hook

    async def wait_for_the_reader() -> None:
        await reading.wait()
        await deliver()

    theirs.send_stream.send_all_hook = wait_for_the_reader
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve_stream, theirs, market.operations, Caller("peer-1"), limits)
        slow = {"op": "slow", "seconds": 1.0, "text": "x" * 2000}
        await ours.send_all(b"".join(encode_frame(cbor2.dumps({"id": n, **slow})) for n in range(3)))
        await trio.sleep(2)
        for number in range(3, 20):
            await ours.send_all(encode_frame(cbor2.dumps({"id": number, **slow})))
            await trio.sleep(2)
        # One answer waits to be written, the others wait for space and still count as running. Nothing more is read.
        assert len(market.finished) == 4
        reading.set()
        assert len(await ours.receive_some()) < 2100
        nursery.cancel_scope.cancel()


async def test_a_silent_peer_is_closed_after_the_idle_deadline(serving: Any, autojump_clock: Any) -> None:
    async with serving(ServiceLimits(idle_deadline=30)) as peer:
        await peer.send({"id": 1, "op": "echo", "text": "x"})
        await peer.receive()
        assert await peer.receive() is None
    assert trio.current_time() == pytest.approx(30)


async def test_one_byte_a_second_does_not_keep_a_stream(serving: Any, autojump_clock: Any) -> None:
    async with serving(ServiceLimits(idle_deadline=30)) as peer:
        with suppress(trio.BrokenResourceError):
            for byte in encode_frame(bytes(1000)):
                await peer.stream.send_all(bytes([byte]))
                await trio.sleep(1)
    assert trio.current_time() < 33


async def test_requests_keep_a_stream(serving: Any, autojump_clock: Any) -> None:
    async with serving(ServiceLimits(idle_deadline=64)) as peer:
        # The second of each pair comes so soon after the first that the deadline is not moved for it.
        for pause in (50.0, 0.5) * 5:
            await trio.sleep(pause)
            await peer.send({"id": 1, "op": "echo", "text": "x"})
            assert "ok" in await peer.receive()
        last = trio.current_time()
        assert await peer.receive() is None
    assert 63 <= trio.current_time() - last <= 64


async def test_a_silent_peer_is_closed_although_it_never_asked(serving: Any, autojump_clock: Any) -> None:
    async with serving(ServiceLimits(idle_deadline=30)) as peer:
        assert await peer.receive() is None
    assert trio.current_time() == pytest.approx(30)


async def test_a_stream_is_one_task_until_it_asks(serving: Any) -> None:
    def tasks() -> int:
        return trio.lowlevel.current_statistics().tasks_living

    alone = tasks()
    async with serving() as peer:
        await trio.testing.wait_all_tasks_blocked()
        assert tasks() == alone + 1
        await peer.send({"id": 1, "op": "echo", "text": "x"})
        await peer.receive()
        assert tasks() == alone + 2


async def test_a_stream_with_something_running_is_not_idle(serving: Any, autojump_clock: Any) -> None:
    async with serving(ServiceLimits(idle_deadline=10, operation_deadline=100)) as peer:
        await peer.send({"id": 1, "op": "slow", "seconds": 50.0})
        assert "ok" in await peer.receive()
        assert trio.current_time() == pytest.approx(50)
        assert await peer.receive() is None
    assert trio.current_time() == pytest.approx(60)


async def test_a_flood_on_one_stream_leaves_others_their_turn(market: Any) -> None:
    ours, theirs = trio.testing.memory_stream_pair()
    request = encode_frame(cbor2.dumps({"id": 1, "op": "echo", "text": ""}))
    await ours.send_all(request * 3000)
    turns = 0

    async def count_turns() -> None:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(count_turns)
        nursery.start_soon(serve_stream, theirs, market.operations, Caller("x"), ServiceLimits(batch_frames=100))
        received = 0
        while received < 3000 * 25:
            received += len(await ours.receive_some())
        seen = turns
        nursery.cancel_scope.cancel()
    assert seen >= 25


# Watches


async def test_a_watch_streams_events_and_ends_with_ok(serving: Any, autojump_clock: Any) -> None:
    async with serving() as peer:
        await peer.send({"id": 5, "op": "count", "last": 2})
        assert [await peer.receive() for _ in range(4)] == [
            {"id": 5, "event": {"number": 0}},
            {"id": 5, "event": {"number": 1}},
            {"id": 5, "event": {"number": 2}},
            {"id": 5, "ok": {}},
        ]


async def test_a_watch_can_be_cancelled(serving: Any, market: Any, autojump_clock: Any) -> None:
    async with serving() as peer:
        await peer.send({"id": 5, "op": "count", "last": 1000})
        await peer.receive()
        await peer.send({"id": 6, "op": "cancel", "target": 5})
        answers = by_id([await peer.receive(), await peer.receive()])
        assert answers == {5: {"id": 5, "ok": {}}, 6: {"id": 6, "ok": {"cancelled": True}}}
        assert market.watches == 0
        await peer.send({"id": 7, "op": "cancel", "target": 5})
        assert await peer.receive() == {"id": 7, "ok": {"cancelled": False}}


async def test_watches_are_bounded_and_their_ids_differ(serving: Any, autojump_clock: Any) -> None:
    async with serving(ServiceLimits(watches=2)) as peer:
        await peer.send({"id": 1, "op": "count", "interval": 100.0}, {"id": 1, "op": "count"})
        answers = [await peer.receive(), await peer.receive()]
        assert [a["error"]["code"] for a in answers if "error" in a] == ["bad_message"]
        await peer.send({"id": 2, "op": "count", "interval": 100.0}, {"id": 3, "op": "count"})
        answers = [await peer.receive(), await peer.receive()]
        assert [a["error"]["code"] for a in answers if "error" in a] == ["busy"]


async def test_a_slow_reader_of_a_watch_sees_the_newest(market: Any, autojump_clock: Any, raw_peer: Any) -> None:
    ours, theirs = trio.testing.lockstep_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve_stream, theirs, market.operations, Caller("x"), ServiceLimits(write_deadline=1000))
        peer = raw_peer(ours)
        await peer.send({"id": 1, "op": "count", "last": 100})
        numbers = []
        for _ in range(3):
            await trio.sleep(10.5)
            numbers.append((await peer.receive())["event"]["number"])
        nursery.cancel_scope.cancel()
    assert numbers == [0, 11, 21]


# Any input


# Function-scoped fixtures are not reset: the log's limit and a factory keep no state of an example.
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.binary(max_size=60)
        | st.binary(max_size=60).map(encode_frame)
        | st.dictionaries(
            st.sampled_from(["id", "op", "text", "kind", "target", "seconds", "last", "x"]),
            st.integers(-1, 3)
            | st.sampled_from(["echo", "fail", "slow_fail", "count", "cancel", "", None, 0.0])
            | st.lists(st.none(), max_size=2),
            max_size=5,
        ).map(lambda message: encode_frame(cbor2.dumps(message))),
        max_size=12,
    )
)
def test_nothing_that_arrives_raises(new_market: Any, pieces: list[bytes]) -> None:
    async def run() -> None:
        ours, theirs = trio.testing.memory_stream_pair()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve_stream, theirs, new_market().operations, Caller("x"))
            with suppress(trio.BrokenResourceError):
                for piece in pieces:
                    await ours.send_all(piece)
                    await trio.lowlevel.checkpoint()
                await ours.send_eof()
            while await ours.receive_some():
                pass

    trio.run(run, clock=trio.testing.MockClock(autojump_threshold=0))


async def test_an_empty_service_knows_no_operation(serving: Any) -> None:
    async with serving(operations=Operations()) as peer:
        await peer.send({"id": 1, "op": "echo", "text": "x"})
        assert (await peer.receive())["error"]["code"] == "unknown_operation"
