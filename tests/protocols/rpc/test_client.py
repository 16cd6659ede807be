from __future__ import annotations

from contextlib import suppress
from typing import Any

import cbor2
import pytest
import trio
import trio.testing
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dms_protocols.errors import (
    ConnectionLostError,
    DeadlineExceededError,
    FrameError,
    MessageError,
    ProtocolError,
    RemoteError,
)
from dms_protocols.rpc.client import open_client
from dms_protocols.rpc.client_limits import ClientLimits
from dms_protocols.rpc.limits import ServiceLimits
from dms_protocols.rpc.operations import Caller
from dms_protocols.rpc.service import serve_stream
from dms_protocols.wire.frames import encode_frame


@pytest.fixture
async def served(market: Any, nursery: trio.Nursery) -> Any:
    """The client's end of a stream to the small service."""
    ours, theirs = trio.testing.memory_stream_pair()
    nursery.start_soon(serve_stream, theirs, market.operations, Caller("peer-1"))
    return ours


async def test_a_call(served: Any, messages: Any) -> None:
    async with open_client(served) as client:
        answer = await client.call(messages.Echo("hello", b"\x00"), messages.EchoAnswer, timeout=1)
    assert answer == messages.EchoAnswer("hello", "peer-1")


async def test_many_callers_share_the_stream_and_each_gets_its_own(
    served: Any, messages: Any, autojump_clock: Any
) -> None:
    answers = {}
    async with open_client(served, ClientLimits(calls_in_flight=10)) as client, trio.open_nursery() as nursery:

        async def ask(number: int) -> None:
            request = messages.Echo(str(number)) if number % 3 else messages.Slow(float(number % 7), str(number))
            answers[number] = (await client.call(request, messages.EchoAnswer, timeout=100)).text
            assert client.waiting <= 10

        for number in range(100):
            nursery.start_soon(ask, number)
    assert answers == {number: str(number) for number in range(100)}


async def test_requests_of_one_turn_are_one_write(market: Any, messages: Any, nursery: trio.Nursery) -> None:
    ours, theirs = trio.testing.memory_stream_pair()
    writes, deliver = [], ours.send_stream.send_all_hook

    async def count_writes() -> None:
        writes.append(1)
        await deliver()

    ours.send_stream.send_all_hook = count_writes
    nursery.start_soon(serve_stream, theirs, market.operations, Caller("peer-1"))
    async with open_client(ours) as client, trio.open_nursery() as callers:
        for _ in range(64):
            callers.start_soon(lambda: client.call(messages.Echo("x"), messages.EchoAnswer, timeout=1))
    assert len(writes) <= 2


async def test_a_refusal_is_a_remote_error_with_its_details(served: Any, messages: Any) -> None:
    async with open_client(served) as client:
        with pytest.raises(RemoteError, match="later") as caught:
            await client.call(messages.Fail("busy"), messages.EchoAnswer, timeout=1)
    assert caught.value.code == "busy"
    assert caught.value.retry_after == 2.5


async def test_a_deadline_ends_one_call_and_its_late_answer_is_passed_over(
    served: Any, messages: Any, autojump_clock: Any
) -> None:
    async with open_client(served) as client:
        with pytest.raises(DeadlineExceededError):
            await client.call(messages.Slow(5.0, "late"), messages.EchoAnswer, timeout=2)
        assert client.waiting == 0
        await trio.sleep(10)
        assert (await client.call(messages.Echo("next"), messages.EchoAnswer, timeout=2)).text == "next"


async def test_waiting_for_a_turn_counts_into_the_deadline(served: Any, messages: Any, autojump_clock: Any) -> None:
    async with open_client(served, ClientLimits(calls_in_flight=1)) as client, trio.open_nursery() as nursery:
        nursery.start_soon(lambda: client.call(messages.Slow(10.0), messages.EchoAnswer, timeout=20))
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(DeadlineExceededError):
            await client.call(messages.Echo("x"), messages.EchoAnswer, timeout=2)
    assert trio.current_time() == pytest.approx(10)


async def test_a_cancelled_caller_harms_nobody(served: Any, messages: Any, autojump_clock: Any) -> None:
    async with open_client(served) as client, trio.open_nursery() as nursery:
        answers = []

        async def ask(text: str) -> None:
            answers.append((await client.call(messages.Slow(5.0, text), messages.EchoAnswer, timeout=20)).text)

        nursery.start_soon(ask, "stays")
        with trio.move_on_after(1):
            await ask("goes")
        nursery.start_soon(ask, "comes")
    assert answers == ["stays", "comes"]


async def test_a_lost_stream_fails_everybody_who_waits(messages: Any) -> None:
    ours, theirs = trio.testing.memory_stream_pair()
    lost = []
    async with open_client(ours, ClientLimits(calls_in_flight=2)) as client, trio.open_nursery() as nursery:

        async def ask() -> None:
            try:
                await client.call(messages.Echo("x"), messages.EchoAnswer, timeout=60)
            except ConnectionLostError as error:
                lost.append(str(error))

        for _ in range(5):
            nursery.start_soon(ask)
        await trio.testing.wait_all_tasks_blocked()
        await theirs.aclose()
    assert lost == ["the connection is lost: the other side closed it"] * 5


async def test_after_the_loss_every_call_says_so_at_once(messages: Any) -> None:
    ours, theirs = trio.testing.memory_stream_pair()
    async with open_client(ours) as client:
        await theirs.aclose()
        await trio.testing.wait_all_tasks_blocked()
        assert client.lost
        with pytest.raises(ConnectionLostError):
            await client.call(messages.Echo("x"), messages.EchoAnswer, timeout=60)


async def test_whoever_holds_a_client_may_wait_for_its_end(autojump_clock: Any) -> None:
    ours, theirs = trio.testing.memory_stream_pair()
    async with open_client(ours) as client:
        with trio.move_on_after(1):
            await client.wait_lost()
        assert not client.lost
        await theirs.aclose()
        with trio.fail_after(1):
            await client.wait_lost()
        assert client.lost


async def test_a_peer_that_takes_nothing_is_lost(messages: Any, autojump_clock: Any) -> None:
    ours, _theirs = trio.testing.lockstep_stream_pair()
    async with open_client(ours, ClientLimits(write_deadline=5)) as client:
        with pytest.raises(ConnectionLostError, match="took nothing"):
            await client.call(messages.Echo("x"), messages.EchoAnswer, timeout=60)


@pytest.mark.parametrize(
    "answer",
    [b"\x80\x00", encode_frame(b"\xff"), encode_frame(cbor2.dumps([1])), b"\xff\xff\xff\x7f"],
    ids=["length", "no CBOR", "no map", "too large"],
)
async def test_what_is_no_answer_ends_the_connection(messages: Any, answer: bytes) -> None:
    ours, theirs = trio.testing.memory_stream_pair()
    async with open_client(ours) as client:
        await theirs.send_all(answer)
        with pytest.raises(ConnectionLostError, match="invalid answer"):
            await client.call(messages.Echo("x"), messages.EchoAnswer, timeout=60)


@pytest.mark.parametrize(
    "answer",
    [{"ok": {}}, {"ok": {"text": 5}}, {"ok": 5}, {}, {"error": "no"}, {"error": {"code": 5}}, {"error": {"code": "x"}}],
)
async def test_an_answer_of_another_form_is_the_callers_error(messages: Any, answer: dict[str, Any]) -> None:
    ours, theirs = trio.testing.memory_stream_pair()
    async with open_client(ours) as client, trio.open_nursery() as nursery:
        nursery.start_soon(theirs.send_all, encode_frame(cbor2.dumps({"id": 0, **answer})))
        with pytest.raises(MessageError):
            await client.call(messages.Echo("x"), messages.EchoAnswer, timeout=60)
        assert not client.lost


async def test_an_error_without_an_id_reaches_the_only_caller(messages: Any, market: Any, nursery: Any) -> None:
    ours, theirs = trio.testing.memory_stream_pair()
    nursery.start_soon(serve_stream, theirs, market.operations, Caller("x"), ServiceLimits(frame_bytes=100))
    async with open_client(ours) as client:
        with pytest.raises(RemoteError) as caught:
            await client.call(messages.Echo("x" * 200), messages.EchoAnswer, timeout=60)
    assert caught.value.code == "frame_too_large"


async def test_a_request_above_the_limit_stays_here(served: Any, messages: Any) -> None:
    async with open_client(served) as client:
        with pytest.raises(FrameError):
            await client.call(messages.Echo("x" * 70_000), messages.EchoAnswer, timeout=1)
        assert (await client.call(messages.Echo("x"), messages.EchoAnswer, timeout=1)).text == "x"


async def test_an_error_of_the_block_comes_out_as_it_is(served: Any) -> None:
    with pytest.raises(ZeroDivisionError):
        async with open_client(served):
            raise ZeroDivisionError


async def test_the_stream_is_closed_at_the_end(messages: Any) -> None:
    ours, theirs = trio.testing.memory_stream_pair()
    async with open_client(ours):
        pass
    assert await theirs.receive_some() == b""


# Watches


async def test_a_watch(served: Any, messages: Any, autojump_clock: Any) -> None:
    async with (
        open_client(served) as client,
        client.watch(messages.Count(last=3), messages.CountEvent, timeout=5) as events,
    ):
        assert [event.number async for event in events] == [0, 1, 2, 3]


async def test_leaving_a_watch_ends_it_at_the_other_side(
    served: Any, messages: Any, market: Any, autojump_clock: Any
) -> None:
    async with open_client(served) as client:
        async with client.watch(messages.Count(last=1000), messages.CountEvent, timeout=5) as events:
            assert (await anext(events)).number == 0
            assert market.watches == 1
        await trio.sleep(0.5)
        assert market.watches == 0
        assert client.waiting == 0


async def test_a_refused_watch(served: Any, messages: Any) -> None:
    async with open_client(served) as client:
        with pytest.raises(RemoteError, match="later"):
            async with client.watch(messages.Fail("busy"), messages.CountEvent, timeout=5) as events:
                await anext(events)


async def test_a_watch_that_says_nothing(messages: Any, autojump_clock: Any) -> None:
    ours, _theirs = trio.testing.memory_stream_pair()
    async with open_client(ours) as client, client.watch(messages.Count(), messages.CountEvent, timeout=5) as events:
        with pytest.raises(DeadlineExceededError):
            await anext(events)
    assert trio.current_time() == pytest.approx(5)


async def test_a_watch_of_a_lost_stream(messages: Any) -> None:
    ours, theirs = trio.testing.memory_stream_pair()
    async with open_client(ours) as client, client.watch(messages.Count(), messages.CountEvent, timeout=5) as events:
        await theirs.aclose()
        with pytest.raises(ConnectionLostError):
            await anext(events)


async def test_a_slow_reader_keeps_the_newest_and_holds_nobody_up(
    served: Any, messages: Any, autojump_clock: Any
) -> None:
    limits = ClientLimits(watch_events=2)
    async with (
        open_client(served, limits) as client,
        client.watch(messages.Count(last=100), messages.CountEvent, timeout=5) as events,
    ):
        assert (await anext(events)).number == 0
        await trio.sleep(50.5)
        assert (await client.call(messages.Echo("x"), messages.EchoAnswer, timeout=1)).text == "x"
        assert [(await anext(events)).number for _ in range(2)] == [49, 50]


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(pieces=st.lists(st.binary(max_size=40) | st.binary(max_size=40).map(encode_frame), max_size=8))
def test_whatever_the_other_side_sends_a_call_ends_with_an_error_of_ours(messages: Any, pieces: list[bytes]) -> None:
    async def run() -> None:
        ours, theirs = trio.testing.memory_stream_pair()
        async with trio.open_nursery() as nursery:

            async def answer() -> None:
                with suppress(trio.BrokenResourceError):
                    for piece in pieces:
                        await theirs.send_all(piece)

            nursery.start_soon(answer)
            async with open_client(ours) as client:
                with pytest.raises(ProtocolError):
                    await client.call(messages.Echo("x"), messages.EchoAnswer, timeout=5)

    trio.run(run, clock=trio.testing.MockClock(autojump_threshold=0))
