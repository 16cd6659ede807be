"""Frames without content: their sender is charged, dropped and named once, and other peers are served meanwhile.

Everything is counted: charges, frames handled, turns of the scheduler. No test reads a clock.
"""

from __future__ import annotations

import logging
import struct
from contextlib import suppress

import pytest
import trio
import trio.testing
from libp2p.io.exceptions import IOException
from libp2p.peer.id import ID
from libp2p.stream_muxer.exceptions import MuxedConnUnavailable

from dms_host import HostLimits, host_addresses
from dms_host.yamux import accounts
from dms_host.yamux.accounts import OWN_ALLOWANCE, STREAM_PACE, Accounts, AddressAccount, ConnectionAccount
from dms_host.yamux.connection import FRAMES_PER_TURN, BoundedYamux
from dms_host.yamux.frames import ACK, DATA, FIN, PING, RST, SYN, WINDOW_UPDATE, pack_frame

# Nothing is restored by waiting, so that the counts are those of sent frames.
LIMITS = HostLimits(max_empty_frames=100, empty_frames_per_second=1e-6)
PAYABLE = OWN_ALLOWANCE + LIMITS.max_empty_frames

OPEN = pack_frame(WINDOW_UPDATE, SYN, 1, 0)


class Victim:
    """A BoundedYamux that gets whole messages, one for each read, without a task in between."""

    def __init__(self, messages: list[bytes], address: AddressAccount | None = None) -> None:
        self.is_initiator = False
        self.left = list(messages)
        self.yamux = BoundedYamux(self, ID(b"sender"), LIMITS, address=address)

    async def read(self) -> bytes:
        if not self.left:
            await trio.sleep_forever()
        return self.left.pop(0)

    async def write(self, data: bytes) -> None:
        await trio.lowlevel.checkpoint()

    async def close(self) -> None:
        await trio.lowlevel.checkpoint()

    def get_remote_address(self) -> tuple[str, int]:
        return "192.0.2.7", 4001

    async def run(self) -> bool:
        """Handle everything. Returns whether the connection was dropped."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.yamux.start)
            await trio.testing.wait_all_tasks_blocked(0.01)
            dropped = self.yamux.is_closed
            nursery.cancel_scope.cancel()
        return dropped


FLOODS = {
    "empty data for an unknown stream": pack_frame(DATA, 0, 77, 0),
    "data for an unknown stream": pack_frame(DATA, 0, 77, 3, b"abc"),
    "empty data for an open stream": pack_frame(DATA, 0, 1, 0),
    "one byte at a time": pack_frame(DATA, 0, 1, 1, b"x"),
    "empty data with FIN, again and again": pack_frame(DATA, FIN, 1, 0),
    "FIN, again and again": pack_frame(WINDOW_UPDATE, FIN, 1, 0),
    "window for an unknown stream": pack_frame(WINDOW_UPDATE, 0, 77, 1),
    "no window for an open stream": pack_frame(WINDOW_UPDATE, 0, 1, 0),
    "window that nothing used": pack_frame(WINDOW_UPDATE, 0, 1, 1),
    "acknowledgements": pack_frame(WINDOW_UPDATE, ACK, 77, 0),
    "resets of an unknown stream": pack_frame(WINDOW_UPDATE, RST, 77, 0),
    "pings": pack_frame(PING, SYN, 0, 1),
    "pongs that answer nothing": pack_frame(PING, ACK, 0, 1),
    "pings without a flag": pack_frame(PING, 0, 0, 0),
    "an acknowledgement of an open stream, again and again": pack_frame(WINDOW_UPDATE, ACK, 1, 0),
}


@pytest.mark.parametrize("frame", FLOODS.values(), ids=FLOODS)
async def test_whoever_sends_nothing_else_is_dropped(frame: bytes) -> None:
    # All in one message: only the count of frames can stop them.
    assert await Victim([OPEN + frame * 5000]).run()


@pytest.mark.parametrize("frame", FLOODS.values(), ids=FLOODS)
async def test_a_few_of_them_are_no_offence(frame: bytes) -> None:
    assert not await Victim([OPEN + frame * (OWN_ALLOWANCE // 2)]).run()


async def test_streams_that_are_reset_at_once_cost_their_sender() -> None:
    opened = (pack_frame(WINDOW_UPDATE, SYN, number, 0) for number in range(1, 4001, 2))
    reset = (pack_frame(WINDOW_UPDATE, RST, number, 0) for number in range(1, 4001, 2))
    frames = b"".join(frame for pair in zip(opened, reset, strict=True) for frame in pair)
    victim = Victim([frames])
    async with trio.open_nursery() as nursery:
        nursery.start_soon(take_streams, victim.yamux)
        assert await victim.run()
    assert not victim.yamux.streams


async def take_streams(yamux: BoundedYamux) -> None:
    with suppress(MuxedConnUnavailable):
        while True:
            await yamux.accept_stream()


async def test_half_headers_cost_their_sender() -> None:
    ping = pack_frame(PING, SYN, 0, 1)
    victim = Victim([ping[:6], ping[6:]] * 5000)
    assert await victim.run()
    # Two messages and one frame: three charges for each.
    assert len(victim.left) > 10_000 - 2 * PAYABLE


async def test_one_byte_in_a_message_costs_its_sender_though_the_frames_are_good() -> None:
    frame = pack_frame(DATA, 0, 1, 64, bytes(64))
    assert await Victim([OPEN, *(bytes((one,)) for one in frame * 200)]).run()


async def test_data_earns_back_what_frames_cost() -> None:
    # Some peers write the length of each message in a separate frame.
    message = pack_frame(DATA, 0, 1, 1, b"\x40") + pack_frame(DATA, 0, 1, 64, bytes(64))
    assert not await Victim([OPEN + message * 1000]).run()


async def test_window_for_what_was_sent_costs_nothing() -> None:
    victim = Victim([OPEN])
    async with trio.open_nursery() as nursery:
        nursery.start_soon(victim.yamux.start)
        stream = await victim.yamux.accept_stream()
        for _ in range(3 * PAYABLE):
            await stream.write(b"x")
            await victim.yamux._receive_window_update(0, 1, 1)
        assert not victim.yamux.event_shutting_down.is_set()
        nursery.cancel_scope.cancel()


class Turns(trio.abc.Instrument):
    """The number of frames that one task had handled each time another one ran."""

    def __init__(self, victim: Victim) -> None:
        self.victim = victim
        self.steps: list[int] = []

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.steps.append(self.victim.handled)


async def test_other_tasks_run_after_a_few_frames(monkeypatch) -> None:
    monkeypatch.setattr(BoundedYamux, "_charge", lambda self, frames=1: None)
    victim = Victim([FLOODS["empty data for an unknown stream"] * 5000])
    victim.handled = 0
    find = victim.yamux._find_stream

    async def count(flags: int, stream_id: int):
        victim.handled += 1
        return await find(flags, stream_id)

    monkeypatch.setattr(victim.yamux, "_find_stream", count)
    turns = Turns(victim)
    trio.lowlevel.add_instrument(turns)
    await victim.run()
    trio.lowlevel.remove_instrument(turns)
    assert victim.handled == 5000
    assert max(after - before for before, after in zip(turns.steps, turns.steps[1:], strict=False)) <= FRAMES_PER_TURN


async def test_other_tasks_run_after_a_few_messages(monkeypatch) -> None:
    monkeypatch.setattr(BoundedYamux, "_charge", lambda self, frames=1: None)
    victim = Victim([b"\0"] * 12 * 500)
    monkeypatch.setattr(Victim, "handled", property(lambda self: len(self.left)), raising=False)
    turns = Turns(victim)
    trio.lowlevel.add_instrument(turns)
    await victim.run()
    trio.lowlevel.remove_instrument(turns)
    assert not victim.left
    steps = zip(turns.steps, turns.steps[1:], strict=False)
    assert max(before - after for before, after in steps) <= FRAMES_PER_TURN


async def test_a_sender_is_named_once_however_many_connections_it_has(caplog) -> None:
    caplog.set_level(logging.WARNING, "dms_host.yamux")
    address = AddressAccount(LIMITS)
    for _ in range(24):
        assert await Victim([FLOODS["pings"] * 5000], address).run()
    named = [record.getMessage() for record in caplog.records if "carry nothing" in record.getMessage()]
    assert named == [f"{ID(b'sender')} at 192.0.2.7 sends frames that carry nothing"]


async def test_another_connection_gives_an_attacker_its_own_allowance_and_no_more() -> None:
    address = AddressAccount(LIMITS)
    assert await Victim([FLOODS["pings"] * 5000], address).run()
    assert await Victim([FLOODS["pings"] * (OWN_ALLOWANCE + 1)], address).run()
    assert not await Victim([FLOODS["pings"] * OWN_ALLOWANCE], address).run()


async def test_an_honest_connection_from_the_address_of_an_attacker_lives_on() -> None:
    address = AddressAccount(LIMITS)
    assert await Victim([FLOODS["pings"] * 5000], address).run()
    assert not await Victim([OPEN + pack_frame(DATA, 0, 1, 64, bytes(64)) * 1000], address).run()


async def test_addresses_have_accounts_of_their_own_and_the_oldest_is_forgotten(monkeypatch) -> None:
    monkeypatch.setattr(accounts, "MAX_ADDRESSES", 2)
    known = Accounts(LIMITS)
    first = known.of("192.0.2.1")
    assert known.of("192.0.2.2") is not first
    assert known.of("192.0.2.1") is first
    known.of("192.0.2.3")
    assert known.of("192.0.2.1") is first
    assert len(known._by_address) == 2


async def test_what_is_earned_is_bounded() -> None:
    account = ConnectionAccount(AddressAccount(LIMITS))
    account.earn(10**9)
    assert [account.charge() for _ in range(PAYABLE + 1)] == [True] * PAYABLE + [False]


async def test_new_connections_from_the_address_of_an_attacker_are_taken_slowly(autojump_clock) -> None:
    account = AddressAccount(LIMITS)
    assert all(account.admits_connection() for _ in range(100))
    assert account.condemn()
    assert not account.condemn()
    assert sum(account.admits_connection() for _ in range(100)) == accounts.PROBATION_BURST


async def test_after_a_minute_an_address_is_as_any_other(autojump_clock) -> None:
    account = AddressAccount(LIMITS)
    account.condemn()
    assert sum(account.admits_connection() for _ in range(100)) == accounts.PROBATION_BURST
    await trio.sleep(accounts.PROBATION)
    assert all(account.admits_connection() for _ in range(100))
    assert account.condemn()


async def test_streams_beyond_the_rate_are_read_more_slowly_and_not_refused(autojump_clock) -> None:
    limits = HostLimits(small_frames_burst=4 * STREAM_PACE, small_frames_per_second=2.0 * STREAM_PACE)
    opened = b"".join(pack_frame(WINDOW_UPDATE, SYN, number, 0) for number in (1, 3, 5, 7, 9, 11))
    victim = Victim([opened])
    victim.yamux.account = ConnectionAccount(AddressAccount(limits))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(victim.yamux.start)
        taken = []
        for _ in range(6):
            await victim.yamux.accept_stream()
            taken.append(trio.current_time())
        nursery.cancel_scope.cancel()
    assert [when - taken[0] for when in taken] == pytest.approx([0, 0, 0, 0, 0.5, 1.0])


async def test_small_frames_beyond_the_rate_are_read_more_slowly_and_not_refused(autojump_clock) -> None:
    limits = HostLimits(small_frames_burst=2 * STREAM_PACE, small_frames_per_second=10.0)
    short = pack_frame(DATA, 0, 1, 15, bytes(15))
    victim = Victim([OPEN + short * 1000])
    victim.yamux.account = ConnectionAccount(AddressAccount(limits))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(victim.yamux.start)
        stream, received = await victim.yamux.accept_stream(), 0
        started = trio.current_time()
        while received < 15 * 1000:
            received += len(await stream.read())
        # 40 tokens, of which the stream took 20, and ten more each second.
        assert trio.current_time() - started == pytest.approx(98)
        nursery.cancel_scope.cancel()


async def test_zero_length_everything_from_a_real_peer(server, frame_attacker, still_serves, eventually) -> None:
    async with frame_attacker(host_addresses(server)[0]) as frames:
        with suppress(IOException, trio.BrokenResourceError):
            while True:
                await frames.connection.write(b"".join(FLOODS.values()) * 10)
        await eventually(lambda: server.swarm.inbound_connections == 0)
        assert server.swarm.limits_hit["empty_frames"] == 1
    await still_serves(server)


def test_a_header_is_twelve_bytes_in_network_order() -> None:
    assert pack_frame(DATA, FIN, 3, 2, b"ab") == struct.pack("!BBHII", 0, 0, 4, 3, 2) + b"ab"
