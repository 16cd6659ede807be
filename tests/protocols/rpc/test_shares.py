"""Shares: the limits of one peer and of all together. Above them `busy` is answered, and other peers are
not affected.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import cbor2
import msgspec
import pytest
import trio
import trio.testing

from dms_protocols.errors import BusyError
from dms_protocols.rpc.limits import ServiceLimits, Share, Shares
from dms_protocols.rpc.operations import Caller, Operations
from dms_protocols.rpc.service import refuse_stream, serve_stream
from dms_protocols.rpc.shares import SharesInUse
from dms_protocols.wire.frames import encode_frame


def shares(*, total: dict[str, Any] | None = None, assured: dict[str, Any] | None = None, **peer: Any) -> Shares:
    """The default shares with some of them changed."""
    usual = Shares()
    return msgspec.structs.replace(
        usual,
        peer=msgspec.structs.replace(usual.peer, **peer),
        total=msgspec.structs.replace(usual.total, **(total or {})),
        **(assured or {}),
    )


class Served:
    """A service that several peers share, on streams in memory."""

    def __init__(self, shares: Shares, operations: Operations, nursery: trio.Nursery, raw_peer: Any) -> None:
        self.spent = 0.0
        self.in_use = SharesInUse(shares, timer=lambda: self.spent)
        self._operations = operations
        self._nursery = nursery
        self._raw_peer = raw_peer

    async def _serve(self, stream: trio.abc.HalfCloseableStream, peer_id: str) -> None:
        try:
            with self.in_use.stream(peer_id) as share:
                await serve_stream(stream, self._operations, Caller(peer_id), share=share)
        except BusyError as error:
            await refuse_stream(stream, error)

    @asynccontextmanager
    async def stream(
        self, peer_id: str, pair: Callable[[], Any] = trio.testing.memory_stream_pair
    ) -> AsyncIterator[Any]:
        ours, theirs = pair()
        self._nursery.start_soon(self._serve, theirs, peer_id)
        try:
            yield self._raw_peer(ours)
        finally:
            await trio.aclose_forcefully(ours)


@pytest.fixture
def serve(market: Any, nursery: trio.Nursery, raw_peer: Any) -> Callable[..., Served]:
    """Makes a service with these shares."""

    def make(shares: Shares, operations: Operations | None = None) -> Served:
        return Served(shares, market.operations if operations is None else operations, nursery, raw_peer)

    return make


def outcomes(messages: list[dict[str, Any]]) -> Counter[str]:
    return Counter("ok" if "ok" in message else message["error"]["code"] for message in messages)


def echo(request_id: int) -> dict[str, Any]:
    return {"id": request_id, "op": "echo", "text": ""}


def slow(request_id: int, seconds: float = 1) -> dict[str, Any]:
    return {"id": request_id, "op": "slow", "seconds": seconds}


async def ask(peer: Any, *messages: dict[str, Any]) -> list[dict[str, Any]]:
    await peer.send(*messages)
    return [await peer.receive() for _ in messages]


async def test_requests_above_the_rate_are_busy_until_the_time_that_was_said(
    serve: Any, autojump_clock: trio.testing.MockClock
) -> None:
    served = serve(shares(requests=2, requests_burst=3))
    async with served.stream("one") as peer:
        answers = await ask(peer, *map(echo, range(5)))
        assert outcomes(answers) == {"ok": 3, "busy": 2}
        wait = answers[-1]["error"]["retry_after"]
        assert wait == pytest.approx(0.5)
        await trio.sleep(wait)
        assert outcomes(await ask(peer, echo(5), echo(6))) == {"ok": 1, "busy": 1}
        # Unused tokens add up to the burst and not beyond.
        await trio.sleep(100)
        assert outcomes(await ask(peer, *map(echo, range(5)))) == {"ok": 3, "busy": 2}


async def test_a_train_of_ten_thousand_is_answered_to_the_last_one(serve: Any) -> None:
    served = serve(shares(requests=1e-9, requests_burst=1000))
    async with served.stream("one") as peer:
        assert outcomes(await ask(peer, *map(echo, range(10_000)))) == {"ok": 1000, "busy": 9000}


async def test_streams_and_protocols_of_a_peer_share_one_rate_which_a_new_stream_does_not_renew(serve: Any) -> None:
    served = serve(shares(requests=1e-9, requests_burst=3))
    async with served.stream("one") as first, served.stream("one") as second:
        assert outcomes(await ask(first, echo(0), echo(1))) == {"ok": 2}
        assert outcomes(await ask(second, echo(0), echo(1))) == {"ok": 1, "busy": 1}
    async with served.stream("one") as third, served.stream("two") as other:
        assert outcomes(await ask(third, echo(0))) == {"busy": 1}
        assert outcomes(await ask(other, echo(0))) == {"ok": 1}


async def test_what_all_together_use_up_leaves_each_what_is_assured(
    serve: Any, autojump_clock: trio.testing.MockClock
) -> None:
    served = serve(shares(total={"requests": 1e-9, "requests_burst": 10}, assured={"assured_requests": 2.0}))
    async with served.stream("flood") as flood, served.stream("guest") as guest:
        assert outcomes(await ask(flood, *map(echo, range(20)))) == {"ok": 12, "busy": 8}
        assert outcomes(await ask(guest, *map(echo, range(3)))) == {"ok": 2, "busy": 1}
        await trio.sleep(0.5)
        assert outcomes(await ask(guest, *map(echo, range(3)))) == {"ok": 1, "busy": 2}


async def test_what_all_together_used_up_is_not_taken_from_a_peers_own(serve: Any) -> None:
    bounds = shares(
        requests=1e-9, requests_burst=2000, total={"requests": 1e-9, "requests_burst": 300},
        assured={"assured_requests": 1000.0},
    )  # fmt: skip
    async with serve(bounds).stream("one") as peer:
        answers = await ask(peer, *map(echo, range(1500)))
        assert outcomes(answers)["ok"] >= 1300
        assert all("all peers" in one["error"]["message"] for one in answers if "error" in one)


async def test_bids_have_a_rate_of_their_own(serve: Any, market: Any, messages: Any) -> None:
    operations = Operations()
    operations.quick(messages.Echo, market.echo)
    operations.slow(messages.Slow, lambda request, caller: messages.EchoAnswer(""), rate="bids")
    served = serve(shares(bids=1e-9, bids_burst=2), operations)
    async with served.stream("one") as peer:
        assert outcomes(await ask(peer, *map(slow, range(5)))) == {"ok": 2, "busy": 3}
        assert outcomes(await ask(peer, *map(echo, range(5)))) == {"ok": 5}


async def test_a_slow_operation_is_one_request_although_it_shortens_the_turn(serve: Any, messages: Any) -> None:
    operations = Operations()
    operations.slow(messages.Slow, lambda request, caller: messages.EchoAnswer(""))
    served = serve(shares(requests=1e-9, requests_burst=2000), operations)
    async with served.stream("one") as peer:
        # Some were counted for a turn that is not over.
        assert outcomes(await ask(peer, *map(slow, range(1990)))) == {"ok": 1990}
        assert outcomes(await ask(peer, *map(slow, range(20)))) == {"ok": 10, "busy": 10}


async def test_leaving_a_watch_is_never_refused(serve: Any, market: Any, autojump_clock: Any) -> None:
    served = serve(shares(requests=1e-9, requests_burst=1))
    async with served.stream("one") as peer:
        await peer.send({"id": 0, "op": "count", "last": 1000})
        assert (await peer.receive())["event"] == {"number": 0}
        answers = await ask(peer, echo(1), {"id": 2, "op": "cancel", "target": 0})
        assert {message["id"]: "ok" in message for message in answers} == {1: False, 2: True}
        await trio.testing.wait_all_tasks_blocked()
        assert market.watches == 0


async def test_operations_are_counted_over_all_streams_of_a_peer(serve: Any, autojump_clock: Any) -> None:
    served = serve(shares(operations=5))
    async with served.stream("one") as first, served.stream("one") as second, served.stream("two") as other:
        await first.send(*map(slow, range(4)))
        await trio.testing.wait_all_tasks_blocked()
        await second.send(*map(slow, range(3)))
        assert (await second.receive())["error"]["code"] == "busy"
        assert "retry_after" in (await second.receive())["error"]
        assert outcomes(await ask(other, *map(slow, range(5)))) == {"ok": 5}
        assert "ok" in await second.receive()
        # All have ended by now, so there are free slots again.
        assert outcomes([await first.receive() for _ in range(4)]) == {"ok": 4}
        assert outcomes(await ask(first, *map(slow, range(5)))) == {"ok": 5}


async def test_watches_count_as_operations(serve: Any, autojump_clock: Any) -> None:
    served = serve(shares(operations=1))
    async with served.stream("one") as first, served.stream("one") as second:
        await first.send({"id": 0, "op": "count", "last": 1000})
        assert "event" in await first.receive()
        assert outcomes(await ask(second, slow(0))) == {"busy": 1}


async def test_operations_of_all_peers_together_are_bounded(serve: Any, autojump_clock: Any) -> None:
    served = serve(shares(total={"operations": 3}, assured={"assured_operations": 2}))
    async with served.stream("one") as first, served.stream("two") as second, served.stream("two") as third:
        await first.send(*map(slow, range(4)))
        await trio.testing.wait_all_tasks_blocked()
        assert outcomes([await first.receive()]) == {"busy": 1}
        # The assured part counts over all streams of a peer.
        await second.send(slow(0))
        await third.send(slow(0))
        await trio.testing.wait_all_tasks_blocked()
        assert outcomes(await ask(second, slow(1))) == {"busy": 1}
        assert outcomes(await ask(third, slow(1))) == {"busy": 1}
        assert outcomes([await second.receive(), await third.receive()]) == {"ok": 2}


async def test_a_stream_above_the_share_is_told_so_and_closed(serve: Any) -> None:
    served = serve(shares(streams=2, total={"streams": 3}, assured={"assured_streams": 1}))
    async with served.stream("one") as first, served.stream("one") as second:
        assert outcomes([*await ask(first, echo(0)), *await ask(second, echo(0))]) == {"ok": 2}
        async with served.stream("one") as third:
            answer = await third.receive()
            assert await third.receive() is None
        assert answer["id"] is None
        assert answer["error"]["code"] == "busy"
        assert answer["error"]["retry_after"] > 0
        assert outcomes(await ask(first, echo(0))) == {"ok": 1}
        async with served.stream("two") as other:
            assert outcomes(await ask(other, echo(0))) == {"ok": 1}
            async with served.stream("two") as more:
                assert (await more.receive())["error"]["code"] == "busy"
            # Peers that opened all available streams cannot keep out another peer.
            async with served.stream("three") as last:
                assert outcomes(await ask(last, echo(0))) == {"ok": 1}
    await trio.testing.wait_all_tasks_blocked()
    async with served.stream("one") as again:
        assert outcomes(await ask(again, echo(0))) == {"ok": 1}


BIG = {"id": 0, "op": "echo", "text": "x" * 10_000}


async def test_answers_that_are_not_taken_count_over_all_streams_and_only_against_their_peer(
    serve: Any, raw_peer: Any, autojump_clock: Any
) -> None:
    served = serve(shares(bytes_in_flight=50_000))
    # A stream of which nothing is read takes nothing.
    unread = trio.testing.lockstep_stream_pair
    async with served.stream("one", unread) as silent, served.stream("one") as second, served.stream("two") as other:
        await silent.send(*[BIG] * 6)
        await trio.testing.wait_all_tasks_blocked()
        answer = (await ask(second, echo(0)))[0]
        assert answer["error"]["code"] == "busy"
        assert "bytes" in answer["error"]["message"]
        assert outcomes(await ask(other, echo(0))) == {"ok": 1}
        # They are read at last, and there is space again, also for the last one, which was not read before.
        assert outcomes([await silent.receive() for _ in range(6)]) == {"ok": 6}
        assert outcomes(await ask(second, echo(0))) == {"ok": 1}


async def test_a_peer_far_from_its_rate_is_told_when_its_bytes_are_used_up(serve: Any, autojump_clock: Any) -> None:
    served = serve(shares(bytes_in_flight=50_000))
    unread = trio.testing.lockstep_stream_pair
    async with served.stream("one", unread) as silent, served.stream("one") as second:
        # Into a turn that is counted as a whole.
        assert outcomes(await ask(second, *map(echo, range(100)))) == {"ok": 100}
        await silent.send(*[BIG] * 6)
        await trio.testing.wait_all_tasks_blocked()
        assert outcomes(await ask(second, echo(0))) == {"busy": 1}


async def test_a_peer_that_takes_not_even_the_refusals_cannot_make_them_pile_up(
    serve: Any, nursery: trio.Nursery, autojump_clock: Any
) -> None:
    served = serve(shares(bytes_in_flight=50_000, streams=40))
    async with trio.open_nursery() as flood:

        async def send_only() -> None:
            async with served.stream("one", trio.testing.lockstep_stream_pair) as peer:
                await peer.send(*[BIG] * 5, *map(echo, range(1000)))
                await trio.sleep_forever()

        for _ in range(40):
            flood.start_soon(send_only)
        await trio.testing.wait_all_tasks_blocked()
        (share,) = served.in_use._present.values()
        # The share, and on each stream one refusal more than the mark.
        assert 50_000 < share._own.bytes < 50_000 + 10_100 + 40 * 8_400
        flood.cancel_scope.cancel()


async def test_bytes_of_all_peers_leave_each_what_is_assured(serve: Any, autojump_clock: Any) -> None:
    served = serve(shares(total={"bytes_in_flight": 50_000}, assured={"assured_bytes": 1_000}))
    unread = trio.testing.lockstep_stream_pair
    async with served.stream("one", unread) as silent, served.stream("two") as other, served.stream("one") as own:
        await silent.send(*[BIG] * 5)
        await trio.testing.wait_all_tasks_blocked()
        assert outcomes(await ask(own, echo(0))) == {"busy": 1}
        assert outcomes(await ask(other, echo(0))) == {"ok": 1}


async def test_everything_is_given_back_however_a_stream_ends(serve: Any, market: Any, autojump_clock: Any) -> None:
    served = serve(shares())
    total = served.in_use._total
    unread = trio.testing.lockstep_stream_pair
    async with served.stream("one", unread) as peer, served.stream("two") as other:
        await peer.send(BIG, slow(1, 1e6), {"id": 2, "op": "count", "last": 1000, "interval": 1e3})
        await other.send(slow(1, 1e6))
        await trio.testing.wait_all_tasks_blocked()
        assert (total.streams, total.operations) == (2, 3)
        assert total.bytes > 10_000
    await trio.sleep(100)
    assert (total.streams, total.operations, total.bytes) == (0, 0, 0)


async def test_strangers_that_come_and_go_are_not_remembered_without_bound(serve: Any) -> None:
    served = serve(msgspec.structs.replace(shares(requests=1e-9, requests_burst=1), remembered=10))
    async with served.stream("regular") as regular:
        for number in range(100):
            async with served.stream(f"stranger-{number}") as peer:
                assert outcomes(await ask(peer, echo(0))) == {"ok": 1}
            await trio.testing.wait_all_tasks_blocked()
        assert served.in_use.peers == 11
        # A peer with a stream is never forgotten, nor the peer that left last.
        assert outcomes(await ask(regular, echo(0), echo(1))) == {"ok": 1, "busy": 1}
        async with served.stream("stranger-99") as peer:
            assert outcomes(await ask(peer, echo(0))) == {"busy": 1}


async def test_who_asked_for_nothing_is_not_remembered(serve: Any, autojump_clock: Any) -> None:
    served = serve(shares())
    async with served.stream("one"):
        await trio.testing.wait_all_tasks_blocked()
        assert served.in_use.peers == 1
    await trio.testing.wait_all_tasks_blocked()
    assert served.in_use.peers == 0


async def test_who_has_rested_is_forgotten(serve: Any, autojump_clock: Any) -> None:
    served = serve(shares(requests=1, requests_burst=2, bids=1, bids_burst=1))
    for number in range(20):
        async with served.stream(f"stranger-{number}") as peer:
            assert outcomes(await ask(peer, echo(0))) == {"ok": 1}
        await trio.testing.wait_all_tasks_blocked()
    assert served.in_use.peers == 20
    await trio.sleep(1.5)
    # Its bucket is full again: the peers that left before it are forgotten when the next one leaves.
    async with served.stream("another") as peer:
        assert outcomes(await ask(peer, echo(0))) == {"ok": 1}
    await trio.testing.wait_all_tasks_blocked()
    assert served.in_use.peers == 1


@pytest.mark.parametrize("streams", [1, 40])
async def test_a_flood_leaves_others_their_turn_whatever_the_number_of_its_streams(
    serve: Any, market: Any, messages: Any, streams: int
) -> None:
    """Counted, not timed: how many requests of the flood are answered while another peer waits for one answer."""
    answered = Counter[str]()
    operations = Operations()

    def count(request: Any, caller: Caller) -> Any:
        answered[caller.peer_id] += 1
        return messages.EchoAnswer("")

    operations.quick(messages.Echo, count)
    operations.slow(messages.Slow, market.slow)
    served = serve(shares(requests=1e9, requests_burst=1e9), operations)
    waited: list[int] = []
    train = b"".join(encode_frame(cbor2.dumps(one)) for one in [*[slow(0, 1e6)] * 10, *[echo(0)] * 10_000])
    async with served.stream("guest") as guest, trio.open_nursery() as flood:
        await ask(guest, echo(0))

        async def drain(peer: Any) -> None:
            while await peer.receive():
                pass

        async def attack() -> None:
            async with served.stream("flood") as peer:
                flood.start_soon(drain, peer)
                await peer.stream.send_all(train)
                await trio.sleep_forever()

        for _ in range(streams):
            flood.start_soon(attack)
        while not answered["flood"]:
            await trio.lowlevel.checkpoint()
        for _ in range(20):
            before = answered["flood"]
            await ask(guest, echo(0))
            waited.append(answered["flood"] - before)
        flood.cancel_scope.cancel()
    assert answered["flood"] > 10 * answered["guest"]
    # A few turns: the other peer's bytes arrive, are answered and written, each in a turn of its own.
    assert max(waited) <= 10 * ServiceLimits().batch_frames


@pytest.mark.parametrize("beside", [False, True], ids=["in place", "beside"])
async def test_what_keeps_the_processor_takes_as_much_more_of_its_peers_turn(
    serve: Any, messages: Any, beside: bool
) -> None:
    """The test controls the time: each of these takes a hundredth of a second, as long as two turns of queries."""
    ran = 0

    def dear(request: Any, caller: Caller) -> Any:
        nonlocal ran
        ran += 1
        served.spent += 0.01
        return messages.EchoAnswer("")

    async def dear_beside(request: Any, caller: Caller) -> Any:
        return dear(request, caller)

    operations = Operations()
    operations.quick(messages.Echo, lambda request, caller: messages.EchoAnswer(""))
    operations.slow(messages.Slow, dear_beside if beside else dear)
    served = serve(shares(), operations)
    async with served.stream("guest") as guest, served.stream("flood") as flood:
        await ask(guest, echo(0))
        await flood.send(*map(slow, range(60)))
        while not ran:
            await trio.lowlevel.checkpoint()
        before = ran
        await ask(guest, echo(0))
        assert ran - before <= 8
        # No request is refused for it, and running operations are answered.
        assert outcomes([await flood.receive() for _ in range(60)]) == {"ok": 60}


async def test_all_streams_of_a_peer_get_their_turn(serve: Any) -> None:
    served = serve(shares())
    async with trio.open_nursery() as nursery:

        async def ask_many() -> None:
            async with served.stream("one") as peer:
                assert outcomes(await ask(peer, *map(echo, range(1500)))) == {"ok": 1500}

        for _ in range(10):
            nursery.start_soon(ask_many)


async def test_each_count_is_refused_at_its_bound_and_not_before() -> None:
    limits = shares(
        streams=2,
        operations=2,
        total={"streams": 3, "operations": 3},
        assured={"assured_streams": 1, "assured_operations": 1},
    )
    in_use = SharesInUse(limits)
    with in_use.stream("one") as one, in_use.stream("one"):
        with pytest.raises(BusyError, match="2 streams of this peer"), in_use.stream("one"):
            pass
        for _ in range(2):
            one.begin_operation(1)
        with pytest.raises(BusyError, match="2 operations of this peer"):
            one.begin_operation(1)
        with in_use.stream("two") as two:
            two.begin_operation(1)
            with pytest.raises(BusyError, match="3 streams of all peers"), in_use.stream("two"):
                pass
            with pytest.raises(BusyError, match="3 operations of all peers"):
                two.begin_operation(1)
            # What is assured to a peer is beyond what all together may have.
            with in_use.stream("three") as three:
                three.begin_operation(1)
                three.end_operation(1)
            for share, count in ((one, 2), (two, 1)):
                for _ in range(count):
                    share.end_operation(1)
    with in_use.stream("one"), in_use.stream("one"):
        pass


async def test_bytes_are_refused_at_their_bound_and_not_before() -> None:
    limits = shares(bytes_in_flight=10, total={"bytes_in_flight": 15}, assured={"assured_bytes": 5})
    in_use = SharesInUse(limits)
    with in_use.stream("one") as one, in_use.stream("two") as two:
        one.hold(9)
        one.admit()
        assert not one.crowded
        one.hold(1)
        assert one.crowded
        with pytest.raises(BusyError, match="10 bytes of this peer"):
            one.admit()
        two.hold(4)
        two.admit()
        # All together have 15 now, and this peer what is assured to it.
        two.hold(1)
        with pytest.raises(BusyError, match="15 bytes of all peers"):
            two.admit()
        two.hold(-1)
        one.hold(1)
        two.admit()


@pytest.mark.parametrize(
    "changes", [{"requests_burst": 1}, {"bids_burst": 1}, {"capacity": 1000}, {"requests": 0.001}, {"streams": 1}]
)
def test_a_share_that_lets_one_through_is_taken(changes: dict[str, Any]) -> None:
    fields = msgspec.structs.asdict(Shares().peer) | changes
    assert Share(**fields).capacity <= 1000


def test_the_least_and_the_most_of_all_shares_are_taken() -> None:
    least = {name: 1 for name in Shares.__struct_fields__ if name not in ("peer", "total")}
    assert Shares(**least).remembered == 1
    assert Shares(stranger_capacity=1000).stranger_capacity == 1000
    with pytest.raises(ValueError, match="at most 1000"):
        Shares(stranger_capacity=1001)


@pytest.mark.parametrize(
    "changes", [{"requests": 0}, {"streams": -1}, {"requests_burst": 0.5}, {"bids_burst": 0.5}, {"capacity": 1001}]
)
def test_a_share_that_would_let_nothing_through_is_refused(changes: dict[str, Any]) -> None:
    fields = msgspec.structs.asdict(Shares().peer) | changes
    with pytest.raises(ValueError, match=r"must be|at least|at most"):
        Share(**fields)


@pytest.mark.parametrize("field", [name for name in Shares.__struct_fields__ if name not in ("peer", "total")])
def test_nothing_that_is_assured_is_nothing(field: str) -> None:
    with pytest.raises(ValueError, match=f"{field} must be at least 1"):
        Shares(**{field: 0})


def test_a_word_that_no_share_knows_is_refused() -> None:
    with pytest.raises(msgspec.ValidationError, match="unknown field"):
        msgspec.convert({"peers": {}}, Shares)
