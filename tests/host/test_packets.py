"""The number of packets: frames without a waiting task are sent together with other frames."""

from __future__ import annotations

from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing
from libp2p.io.utils import read_exactly
from libp2p.network.stream.net_stream import NetStream
from libp2p.stream_muxer.exceptions import MuxedStreamClosed, MuxedStreamEOF, MuxedStreamReset

from dms_host import HostLimits, dial, host_addresses, open_stream
from dms_host.errors import DialError
from dms_host.limits import STREAM_WINDOW
from dms_host.streams.outbound import _negotiate
from dms_host.yamux import writer as yamux
from dms_host.yamux.frames import pack_frame

GREETING = b"\x13/multistream/1.0.0\n"
PROTOCOL, OTHER = b"\x09/a/1.0.0\n", b"\x09/b/1.0.0\n"
REFUSAL = b"\x03na\n"


@pytest.fixture
def never_soon(monkeypatch):
    """Frames that may be delayed are not sent by themselves."""
    monkeypatch.setattr(yamux, "REPLY_DELAY", 1e6)


@pytest.fixture
def counted(monkeypatch):
    """Counts the packets of a connection: `packets = counted(connection)`."""

    def count(connection) -> list[bytes]:
        packets: list[bytes] = []
        write = connection.secured_conn.write

        async def counting(data: bytes) -> None:
            packets.append(data)
            await write(data)

        monkeypatch.setattr(connection.secured_conn, "write", counting)
        return packets

    return count


async def test_a_new_stream_its_negotiation_and_its_first_bytes_are_one_packet_each_way(
    yamux_pair, counted, never_soon
) -> None:
    async with yamux_pair() as (dialer, listener):
        there, back = counted(dialer), counted(listener)
        ours = await dialer.open_stream()
        await ours.write_soon(b"greeting, ")
        await ours.write(b"question")
        theirs = await listener.accept_stream()
        assert await read_exactly(theirs, 18) == b"greeting, question"
        await theirs.write_soon(b"agreed, ")
        await theirs.write(b"answer")
        assert await read_exactly(ours, 14) == b"agreed, answer"
        assert (len(there), len(back)) == (1, 1)


async def test_whoever_waits_for_the_peer_has_said_everything_before(yamux_pair, counted, never_soon) -> None:
    async with yamux_pair() as (dialer, listener), trio.open_nursery() as nursery:
        ours = await dialer.open_stream()
        await ours.write_soon(b"anybody there?")
        nursery.start_soon(ours.read)
        theirs = await listener.accept_stream()
        assert await theirs.read() == b"anybody there?"
        await theirs.write(b"yes")


async def test_what_nobody_takes_along_leaves_by_itself(yamux_pair) -> None:
    async with yamux_pair() as (dialer, listener):
        ours = await dialer.open_stream()
        await ours.write_soon(b"when you have time")
        await ours.close()
        with trio.fail_after(5):
            theirs = await listener.accept_stream()
            assert await theirs.read() == b"when you have time"
            with pytest.raises(MuxedStreamEOF):
                await theirs.read()


async def test_what_was_said_before_a_reset_arrives(yamux_pair) -> None:
    async with yamux_pair() as (dialer, listener):
        ours = await dialer.open_stream()
        theirs = await listener.accept_stream()
        await theirs.write_soon(b"agreed")
        await theirs.reset()
        assert await ours.read() == b"agreed"
        with pytest.raises(MuxedStreamReset):
            await ours.read()


async def test_writing_soon_keeps_the_rules_of_writing(yamux_pair) -> None:
    async with yamux_pair() as (dialer, listener):
        ours = await dialer.open_stream()
        theirs = await listener.accept_stream()
        await ours.write(bytes(STREAM_WINDOW - 3))
        await ours.write_soon(b"abc")
        with pytest.raises(MuxedStreamReset, match="not opened its window"):
            await ours.write_soon(b"d")
        await ours.close()
        with pytest.raises(MuxedStreamClosed):
            await ours.write_soon(b"e")
        await theirs.reset()
        with pytest.raises(MuxedStreamReset):
            await theirs.write_soon(b"f")


async def test_hundreds_of_streams_that_begin_and_end_at_once_are_no_offence(yamux_pair) -> None:
    many = 3 * yamux.MAX_REPLIES
    # None of these streams carries data. A peer that opens many such streams is dropped.
    limits = HostLimits(max_inbound_streams=many // 2, max_outbound_streams=many, max_empty_frames=10 * many)
    async with yamux_pair(limits) as (dialer, listener):
        streams = [await dialer.open_stream() for _ in range(many)]
        for _ in range(many // 2):
            await listener.accept_stream()
        async with trio.open_nursery() as nursery:
            for stream in streams:
                nursery.start_soon(stream.close)
        survivor, theirs = streams[0], listener.streams[1]
        await theirs.write(b"still here")
        assert await survivor.read() == b"still here"


async def test_hundreds_of_frames_in_one_packet_are_answered(yamux_attacker) -> None:
    many = 4 * yamux.MAX_REPLIES
    async with yamux_attacker() as (frames, _):
        await frames.connection.stream.send_all(
            b"".join(pack_frame(frames.PING, frames.SYN, 0, number) for number in range(many))
        )
        with trio.fail_after(5):
            answered = [(await frames.receive())[3] for _ in range(many)]
        assert answered == list(range(many))


@asynccontextmanager
async def negotiation(yamux_attacker, *protocols: str):
    """Negotiates these protocols with a peer that the test controls: `as (frames, outcome)`."""
    outcome: list[object] = []

    async def negotiate(stream: NetStream) -> None:
        try:
            await _negotiate(stream, protocols, "peer", HostLimits())
            outcome.append(stream.get_protocol())
        except DialError as error:
            outcome.append(error.code)

    async with yamux_attacker() as (frames, victim), trio.open_nursery() as nursery:
        stream = await victim.open_stream()
        nursery.start_soon(negotiate, NetStream(stream, None, None))
        assert (await frames.receive())[:2] == (frames.WINDOW_UPDATE, frames.SYN)
        yield frames, outcome


async def test_greeting_and_protocol_are_sent_before_the_other_side_has_said_anything(yamux_attacker) -> None:
    async with negotiation(yamux_attacker, "/a/1.0.0", "/b/1.0.0") as (frames, outcome):
        assert (await frames.receive())[4] == GREETING + PROTOCOL
        await frames.send_data(2, GREETING)
        await frames.send_data(2, PROTOCOL)
    assert outcome == ["/a/1.0.0"]


async def test_what_the_other_side_does_not_speak_is_followed_by_the_next(yamux_attacker) -> None:
    async with negotiation(yamux_attacker, "/a/1.0.0", "/b/1.0.0") as (frames, outcome):
        assert (await frames.receive())[4] == GREETING + PROTOCOL
        await frames.send_data(2, GREETING + REFUSAL)
        assert (await frames.receive())[4] == OTHER
        await frames.send_data(2, OTHER)
    assert outcome == ["/b/1.0.0"]


@pytest.mark.parametrize(
    ("answers", "code"),
    [
        (GREETING + REFUSAL + REFUSAL, "protocol_not_supported"),
        (GREETING + OTHER, "stream_failed"),
        (PROTOCOL + PROTOCOL, "stream_failed"),
        (b"\xff\xff\xff\x7f", "stream_failed"),
    ],
)
async def test_whatever_else_is_answered_is_an_error_with_a_code(yamux_attacker, answers: bytes, code: str) -> None:
    async with negotiation(yamux_attacker, "/a/1.0.0", "/b/1.0.0") as (frames, outcome):
        await frames.send_data(2, answers)
    assert outcome == [code]


class Turns(trio.abc.Instrument):
    """Counts how often the scheduler runs a task."""

    count = 0

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.count += 1


async def test_a_question_on_a_stream_of_its_own_takes_few_turns_of_the_scheduler(server, client) -> None:
    async def answer(stream) -> None:
        await stream.write(await stream.read(100))

    server.set_stream_handler("/answer/1.0.0", answer)
    peer_id, questions, turns = await dial(client, host_addresses(server)[0]), 50, Turns()

    async def ask() -> None:
        stream = await open_stream(client, peer_id, ["/answer/1.0.0"])
        await stream.send_all(b"question")
        assert await stream.receive_some() == b"question"
        await stream.aclose()

    # Meanwhile the rest of the work of connecting is done.
    for _ in range(questions):
        await ask()
    trio.lowlevel.add_instrument(turns)
    for _ in range(questions):
        await ask()
    trio.lowlevel.remove_instrument(turns)
    # Of both sides together: 33, and 47 or more without one of the measures.
    assert turns.count / questions < 40
