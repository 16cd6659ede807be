"""BoundedYamux alone: two in memory, or one with frames made by hand, in virtual time."""

import pytest
import trio
import trio.lowlevel
from libp2p.stream_muxer.exceptions import MuxedStreamClosed, MuxedStreamEOF, MuxedStreamError, MuxedStreamReset

from dms_host import HostLimits
from dms_host.limits import STREAM_WINDOW

KIB = 1024


async def open_streams(dialer, listener):
    ours = await dialer.open_stream()
    return ours, await listener.accept_stream()


async def test_bytes_go_both_ways_and_fin_ends_one(yamux_pair) -> None:
    async with yamux_pair() as (dialer, listener):
        ours, theirs = await open_streams(dialer, listener)
        await ours.write(b"question")
        await ours.close()
        assert await theirs.read(4) == b"ques"
        assert await theirs.read() == b"tion"
        with pytest.raises(MuxedStreamEOF):
            await theirs.read()
        await theirs.write(b"answer")
        await theirs.close()
        assert await ours.read() == b"answer"
        with pytest.raises(MuxedStreamEOF):
            await ours.read()
        with pytest.raises(MuxedStreamClosed):
            await ours.write(b"more")
        assert not dialer.streams
        assert not listener.streams


async def test_more_than_a_window_passes_when_it_is_read(yamux_pair) -> None:
    sent = bytes(range(256)) * (4 * STREAM_WINDOW // 256)
    received = bytearray()
    async with yamux_pair() as (dialer, listener), trio.open_nursery() as nursery:
        ours, theirs = await open_streams(dialer, listener)
        nursery.start_soon(ours.write, sent)
        while len(received) < len(sent):
            received += await theirs.read(10_000)
            assert listener.unread_bytes <= theirs.window
        assert received == sent
        assert listener.unread_bytes == 0


async def pass_through(ours, theirs, size: int) -> None:
    """Sends so many bytes, and reads them as fast as they come."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ours.write, bytes(size))
        while size > 0:
            size -= len(await theirs.read())


async def test_the_window_of_a_stream_that_is_read_grows_within_the_bound_of_its_connection(yamux_pair) -> None:
    limits = HostLimits(max_unread_bytes=4 * 1024 * KIB)
    async with yamux_pair(limits) as (dialer, listener):
        ours, theirs = await open_streams(dialer, listener)
        other, their_other = await open_streams(dialer, listener)
        await pass_through(ours, theirs, 8 * 1024 * KIB)
        assert theirs.window == STREAM_WINDOW + 2 * 1024 * KIB
        await pass_through(other, their_other, 2 * 1024 * KIB)
        # The first has all of it, and the second works as before.
        assert their_other.window == STREAM_WINDOW
        # All that the peer may send now is within the bound.
        assert theirs.window + their_other.window <= limits.max_unread_bytes
        await ours.write(bytes(2 * 1024 * KIB))
        await trio.testing.wait_all_tasks_blocked()
        assert listener.unread_bytes == 2 * 1024 * KIB
        assert not listener.event_shutting_down.is_set()
        await ours.close()
        await theirs.close()
        while listener.unread_bytes:
            await theirs.read()
        # What the first had is free for others.
        await pass_through(other, their_other, 2 * 1024 * KIB)
        assert their_other.window > STREAM_WINDOW


async def test_the_window_of_a_stream_that_is_read_slowly_stays(yamux_pair) -> None:
    async with yamux_pair() as (dialer, listener), trio.open_nursery() as nursery:
        ours, theirs = await open_streams(dialer, listener)
        left = 3 * 1024 * KIB
        nursery.start_soon(ours.write, bytes(left))
        while left:
            # Whatever the peer may send is there before the next read.
            await trio.testing.wait_all_tasks_blocked()
            left -= len(await theirs.read(50 * KIB))
        assert theirs.window <= 2 * STREAM_WINDOW


async def read_on(stream) -> None:
    while True:
        await stream.read()


async def test_a_reader_may_be_cancelled_at_any_moment_and_loses_nothing(yamux_pair) -> None:
    sent = bytes(range(256)) * 4096
    received = bytearray()
    attempts = 0
    async with yamux_pair() as (dialer, listener), trio.open_nursery() as nursery:
        ours, theirs = await open_streams(dialer, listener)
        nursery.start_soon(ours.write, sent)
        while len(received) < len(sent):
            attempts += 1
            # trio runs the tasks of one round in random order: the cancellation comes before, during or after the read.
            with trio.CancelScope() as scope:
                nursery.start_soon(cancel_in, attempts % 4, scope)
                received += await theirs.read(999)
        assert received == sent


async def cancel_in(rounds: int, scope: trio.CancelScope) -> None:
    for _ in range(rounds):
        await trio.lowlevel.checkpoint()
    scope.cancel()


async def test_a_read_that_must_announce_room_is_not_lost_when_cancelled(yamux_pair) -> None:
    async with yamux_pair() as (dialer, listener), trio.open_nursery() as nursery:
        ours, theirs = await open_streams(dialer, listener)
        await ours.write(bytes(STREAM_WINDOW))
        with trio.move_on_after(1):
            while listener.unread_bytes < STREAM_WINDOW:
                await trio.lowlevel.checkpoint()
        # The window update stops in the middle of its frame while the reader is cancelled.
        connection = listener.secured_conn
        connection.gate, connection.at_gate = trio.Event(), trio.Event()
        received = []

        async def read(scope: trio.CancelScope) -> None:
            with scope:
                received.append(await theirs.read())

        scope = trio.CancelScope()
        nursery.start_soon(read, scope)
        await connection.at_gate.wait()
        scope.cancel()
        connection.gate.set()
        await ours.write(b"the connection is whole")
        while sum(map(len, received)) == 0:
            await trio.lowlevel.checkpoint()
        assert received == [bytes(STREAM_WINDOW)]
        assert await theirs.read() == b"the connection is whole"


async def test_a_cancelled_write_sends_whole_frames_only(yamux_pair) -> None:
    async with yamux_pair() as (dialer, listener), trio.open_nursery() as nursery:
        ours, theirs = await open_streams(dialer, listener)
        other, their_other = await open_streams(dialer, listener)
        connection = dialer.secured_conn
        connection.gate, connection.at_gate = trio.Event(), trio.Event()
        scope = trio.CancelScope()

        async def write() -> None:
            with scope:
                await ours.write(bytes(100 * KIB))

        nursery.start_soon(write)
        await connection.at_gate.wait()
        scope.cancel()
        connection.gate.set()
        await other.write(b"the connection is whole")
        assert await their_other.read() == b"the connection is whole"
        # One whole frame was sent, the next was not, and the stream reports it to its user.
        assert 0 < len(await theirs.read()) < 100 * KIB
        assert ours.torn


async def test_a_cancelled_open_leaves_no_stream_behind(yamux_pair) -> None:
    async with yamux_pair() as (dialer, listener):
        with trio.CancelScope() as scope:
            scope.cancel()
            await dialer.open_stream()
        assert not dialer.streams
        ours, theirs = await open_streams(dialer, listener)
        await ours.write(b"first")
        assert await theirs.read() == b"first"


async def test_a_write_that_nobody_takes_drops_the_connection(yamux_pair, autojump_clock) -> None:
    async with yamux_pair(HostLimits(frame_timeout=7)) as (dialer, listener):
        ours, _ = await open_streams(dialer, listener)
        dialer.secured_conn.gate = trio.Event()
        started = trio.current_time()
        with pytest.raises(MuxedStreamReset):
            await ours.write(b"anything")
        assert trio.current_time() - started == pytest.approx(7)
        # At once, not only when a ping is not answered: nothing may follow half a frame.
        assert dialer.event_shutting_down.is_set()
        await dialer.event_closed.wait()
        assert dialer.secured_conn.closed


async def test_a_reader_that_makes_no_room_costs_its_stream_only(yamux_pair, autojump_clock) -> None:
    async with yamux_pair(HostLimits(window_timeout=5)) as (dialer, listener):
        ours, theirs = await open_streams(dialer, listener)
        other, their_other = await open_streams(dialer, listener)
        with pytest.raises(MuxedStreamReset, match="reads nothing"):
            await ours.write(bytes(STREAM_WINDOW + 1))
        with pytest.raises(MuxedStreamReset):
            await read_on(theirs)
        await other.write(b"alive")
        assert await their_other.read() == b"alive"
        assert listener.unread_bytes == 0


async def test_a_reset_wakes_the_reader_on_either_side(yamux_pair) -> None:
    async with yamux_pair() as (dialer, listener):
        ours, theirs = await open_streams(dialer, listener)
        woken = []

        async def read(stream) -> None:
            with pytest.raises(MuxedStreamReset):
                await stream.read()
            woken.append(stream)

        with trio.fail_after(5):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(read, ours)
                nursery.start_soon(read, theirs)
                await trio.testing.wait_all_tasks_blocked()
                await ours.reset()
        assert set(woken) == {ours, theirs}
        assert not dialer.streams
        assert not listener.streams


async def test_the_end_of_the_connection_is_no_end_of_a_stream(yamux_pair) -> None:
    async with yamux_pair() as (dialer, listener):
        _, cut = await open_streams(dialer, listener)
        ended_by, ended = await open_streams(dialer, listener)
        await ended_by.write(b"all of it")
        await ended_by.close()
        while not ended.fin_received:
            await trio.lowlevel.checkpoint()
        await dialer.secured_conn.close()
        await listener.event_closed.wait()
        with pytest.raises(MuxedStreamReset):
            await cut.read()
        assert await ended.read() == b"all of it"
        with pytest.raises(MuxedStreamEOF):
            await ended.read()


async def test_only_so_many_streams_can_be_opened_and_again_when_one_ends(yamux_pair) -> None:
    async with yamux_pair(HostLimits(max_outbound_streams=3)) as (dialer, listener):
        pairs = [await open_streams(dialer, listener) for _ in range(3)]
        with pytest.raises(MuxedStreamError, match="3 streams"):
            await dialer.open_stream()
        ours, theirs = pairs[0]
        # Closing our side is not enough: for the other side the stream is still open.
        await ours.close()
        with pytest.raises(MuxedStreamError):
            await dialer.open_stream()
        await theirs.close()
        with pytest.raises(MuxedStreamEOF):
            await ours.read()
        await open_streams(dialer, listener)


async def test_a_peer_beyond_its_streams_is_reset_and_the_others_go_on(yamux_attacker) -> None:
    async with yamux_attacker(HostLimits(max_inbound_streams=4)) as (frames, victim):
        for stream_id in range(1, 200, 2):
            await frames.send(frames.WINDOW_UPDATE, frames.SYN, stream_id)
            await frames.receive_until(frames.WINDOW_UPDATE, frames.ACK if stream_id < 8 else frames.RST, stream_id)
        assert len(victim.streams) == 4
        assert victim.limits_hit == {"inbound_streams": 96}
        first = await victim.accept_stream()
        await frames.send_data(1, b"still served")
        assert await first.read() == b"still served"
        # There is a slot again as soon as one stream has ended.
        await frames.send(frames.WINDOW_UPDATE, frames.RST, 3)
        await frames.send(frames.WINDOW_UPDATE, frames.SYN, 201)
        await frames.receive_until(frames.WINDOW_UPDATE, frames.ACK, 201)


async def test_a_stream_opened_and_never_ended_is_reset_after_a_minute(yamux_attacker, autojump_clock) -> None:
    async with yamux_attacker(HostLimits(ping_interval=1000)) as (frames, victim):
        await frames.send(frames.WINDOW_UPDATE, frames.SYN, 1)
        stream = await victim.accept_stream()
        await stream.close()
        stream.stop_reading()
        assert victim.streams
        with trio.fail_after(120):
            await frames.receive_until(frames.WINDOW_UPDATE, frames.RST, 1)
        assert not victim.streams


@pytest.mark.parametrize("size", [STREAM_WINDOW, 100], ids=["a used up window", "something unread"])
async def test_a_writer_that_can_send_nothing_more_is_reset_after_the_close_timeout(
    yamux_attacker, autojump_clock, size: int
) -> None:
    async with yamux_attacker(HostLimits(ping_interval=1000)) as (frames, victim):
        await frames.send(frames.WINDOW_UPDATE, frames.SYN, 1)
        stream = await victim.accept_stream()
        for start in range(0, size, 64 * KIB):
            await frames.send_data(1, bytes(min(64 * KIB, size - start)))
        while len(stream.buffer) < size:
            await trio.lowlevel.checkpoint()
        await stream.close()
        stream.stop_reading()
        began = trio.current_time()
        await frames.receive_until(frames.WINDOW_UPDATE, frames.RST, 1)
        assert trio.current_time() - began == pytest.approx(victim.limits.close_timeout, abs=0.1)
        assert not victim.streams
        assert victim.unread_bytes == 0


async def test_a_stream_that_we_have_ended_gives_way_to_a_new_one(yamux_attacker) -> None:
    async with yamux_attacker(HostLimits(max_inbound_streams=3)) as (frames, victim):
        for stream_id in (1, 3, 5):
            await frames.send(frames.WINDOW_UPDATE, frames.SYN, stream_id)
            stream = await victim.accept_stream()
            if stream_id > 1:
                await stream.close()
                stream.stop_reading()
        await frames.send(frames.WINDOW_UPDATE, frames.SYN, 7)
        await frames.receive_until(frames.WINDOW_UPDATE, frames.RST, 3)
        assert sorted(victim.streams) == [1, 5, 7]
        assert victim.limits_hit == {}
        assert (await victim.accept_stream()).stream_id == 7


async def test_what_came_before_a_reset_can_be_read_however_slow_the_reader_was(yamux_attacker) -> None:
    async with yamux_attacker() as (frames, victim):
        for stream_id in (1, 3):
            await frames.send(frames.WINDOW_UPDATE, frames.SYN, stream_id)
            stream = await victim.accept_stream()
            await frames.send_data(stream_id, b"the last word")
            await frames.send(frames.WINDOW_UPDATE, frames.RST, stream_id)
            while not stream.reset_received:
                await trio.lowlevel.checkpoint()
            assert victim.unread_bytes == 13
            if stream_id == 1:
                assert await stream.read(3) == b"the"
                assert await stream.read() == b" last word"
                with pytest.raises(MuxedStreamReset):
                    await stream.read()
            else:
                await stream.close()
                stream.stop_reading()
            assert victim.unread_bytes == 0
            assert not victim.streams


async def test_more_than_the_window_drops_the_connection(yamux_attacker) -> None:
    async with yamux_attacker() as (frames, victim):
        await frames.send(frames.WINDOW_UPDATE, frames.SYN, 1)
        for _ in range(4):
            await frames.send_data(1, bytes(64 * KIB))
        assert not victim.event_shutting_down.is_set()
        await frames.send_data(1, b"x")
        await frames.wait_dropped()
        await victim.event_closed.wait()
        assert victim.unread_bytes <= STREAM_WINDOW


async def test_unread_bytes_are_bounded_over_all_streams(yamux_attacker) -> None:
    limit = 3 * STREAM_WINDOW
    async with yamux_attacker(HostLimits(max_unread_bytes=limit)) as (frames, victim):
        for stream_id in (1, 3, 5):
            await frames.send(frames.WINDOW_UPDATE, frames.SYN, stream_id)
            for _ in range(4):
                await frames.send_data(stream_id, bytes(64 * KIB))
        await frames.send(frames.WINDOW_UPDATE, frames.SYN, 7)
        assert not victim.event_shutting_down.is_set()
        await frames.send_data(7, b"x")
        await frames.wait_dropped()
        assert victim.unread_bytes <= limit


async def test_a_huge_frame_is_refused_before_it_is_read(yamux_attacker) -> None:
    async with yamux_attacker() as (frames, victim):
        await frames.send(frames.WINDOW_UPDATE, frames.SYN, 1)
        await frames.send(frames.DATA, 0, 1, STREAM_WINDOW + 1)
        with trio.fail_after(5):
            await frames.wait_dropped()
            await victim.event_closed.wait()
        assert victim.event_closed.is_set()


@pytest.mark.parametrize(
    ("kind", "flags", "stream_id"),
    [(1, 1, 0), (1, 1, 2), (4, 0, 0), (255, 0, 1), (1, 1, 1)],
    ids=["stream 0", "an id of ours", "unknown type", "unknown type 255", "an id in use"],
)
async def test_a_frame_against_the_rules_drops_the_connection(yamux_attacker, kind, flags, stream_id) -> None:
    async with yamux_attacker() as (frames, victim):
        await frames.send(frames.WINDOW_UPDATE, frames.SYN, 1)
        await frames.send(kind, flags, stream_id)
        await frames.wait_dropped()
        await victim.event_closed.wait()


async def test_data_for_nobody_is_not_kept(yamux_attacker) -> None:
    async with yamux_attacker() as (frames, victim):
        await frames.send_data(77, bytes(64 * KIB))
        await frames.send(frames.WINDOW_UPDATE, frames.SYN, 1)
        stream = await victim.accept_stream()
        stream.stop_reading()
        await frames.send_data(1, bytes(64 * KIB))
        await frames.receive_until(frames.WINDOW_UPDATE, frames.RST, 1)
        assert victim.unread_bytes == 0
        assert not victim.streams


async def send_pings(frames) -> None:
    for number in range(10_000):
        await frames.send(frames.PING, frames.SYN, 0, number)


async def test_answers_that_are_not_taken_are_bounded(yamux_attacker) -> None:
    async with yamux_attacker() as (frames, victim):
        victim.secured_conn.gate = trio.Event()
        with pytest.raises(trio.BrokenResourceError):
            await send_pings(frames)
        await victim.event_closed.wait()


async def test_pings_are_answered_while_data_waits(yamux_attacker) -> None:
    async with yamux_attacker() as (frames, _):
        await frames.send(frames.PING, frames.SYN, 0, 42)
        assert (await frames.receive())[:4] == (frames.PING, frames.ACK, 0, 42)


async def test_a_silent_peer_is_dropped(yamux_attacker, autojump_clock) -> None:
    async with yamux_attacker(HostLimits(ping_interval=15, ping_timeout=10)) as (frames, victim):
        await frames.send(frames.WINDOW_UPDATE, frames.SYN, 1)
        stream = await victim.accept_stream()
        with trio.fail_after(26), pytest.raises(MuxedStreamReset):
            await stream.read()
        await victim.event_closed.wait()
        assert victim.secured_conn.closed


async def drip(frames) -> None:
    while True:
        await frames.connection.stream.send_all(b"\0")
        await trio.sleep(9)


async def test_a_peer_that_drips_half_a_frame_is_dropped(yamux_attacker, autojump_clock) -> None:
    async with yamux_attacker(HostLimits(ping_interval=15, ping_timeout=10)) as (frames, victim):
        with trio.fail_after(60), pytest.raises(trio.BrokenResourceError):
            await drip(frames)
        await victim.event_closed.wait()


async def test_a_peer_that_answers_pings_is_kept(yamux_pair, autojump_clock) -> None:
    async with yamux_pair(HostLimits(ping_interval=15, ping_timeout=10)) as (dialer, listener):
        ours, theirs = await open_streams(dialer, listener)
        await trio.sleep(3600)
        await ours.write(b"still here")
        assert await theirs.read() == b"still here"
        assert await dialer.is_responsive(1)


async def test_garbage_never_leaves_the_connection(yamux_attacker) -> None:
    import random

    for seed in range(30):
        random_bytes = random.Random(seed).randbytes(4096)
        async with yamux_attacker() as (frames, victim):
            await frames.send(frames.WINDOW_UPDATE, frames.SYN, 1)
            with trio.move_on_after(1):
                await frames.connection.write(random_bytes)
                await frames.connection.close()
            await victim.event_closed.wait()
