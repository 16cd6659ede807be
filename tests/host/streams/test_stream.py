import pytest
import trio

from dms_host import attach_protocols, dial, host_addresses, open_stream
from dms_host.limits import STREAM_WINDOW
from dms_host.streams.stream import PeerStream

BIG = bytes(range(256)) * (8 * STREAM_WINDOW // 256)


async def receive_all(stream: trio.abc.ReceiveStream) -> bytes:
    received = bytearray()
    async for chunk in stream:
        received += chunk
    return bytes(received)


async def send_and_end(stream: trio.abc.HalfCloseableStream, data: bytes) -> None:
    await stream.send_all(data)
    await stream.send_eof()


async def test_it_is_a_stream_as_trio_knows_them(stream_pair) -> None:
    ours, theirs = await stream_pair()
    assert isinstance(ours, trio.abc.HalfCloseableStream)
    assert ours.protocol == theirs.protocol == "/pair/1.0.0"
    async with trio.open_nursery() as nursery:
        nursery.start_soon(send_and_end, ours, BIG)
        assert await receive_all(theirs) == BIG
        # Half closed: the other direction continues.
        nursery.start_soon(send_and_end, theirs, BIG)
        assert await receive_all(ours) == BIG
    assert await ours.receive_some() == b""
    await ours.aclose()
    await ours.aclose()


async def test_each_end_knows_who_is_at_the_other(stream_pair, server, client) -> None:
    ours, theirs = await stream_pair()
    assert ours.remote_peer_id == server.get_id().to_base58()
    assert theirs.remote_peer_id == client.get_id().to_base58()


async def test_after_aclose_nothing_goes(stream_pair) -> None:
    ours, theirs = await stream_pair()
    await ours.aclose()
    for call in (ours.send_all, ours.receive_some):
        with pytest.raises(trio.ClosedResourceError):
            await call(b"x") if call == ours.send_all else await call()
    with pytest.raises(trio.ClosedResourceError):
        await ours.send_eof()
    assert await theirs.receive_some() == b""


async def test_after_send_eof_nothing_is_sent(stream_pair) -> None:
    ours, _ = await stream_pair()
    await ours.send_eof()
    await ours.send_eof()
    with pytest.raises(trio.ClosedResourceError):
        await ours.send_all(b"x")


async def test_a_reset_is_no_end(stream_pair) -> None:
    ours, theirs = await stream_pair()
    await ours.send_all(b"half a mess")
    assert await theirs.receive_some() == b"half a mess"
    await ours.areset()
    with pytest.raises(trio.BrokenResourceError):
        await theirs.receive_some()
    with pytest.raises(trio.BrokenResourceError):
        await theirs.send_all(b"x")
    await theirs.aclose()


async def test_a_lost_connection_is_no_end_either(stream_pair, server) -> None:
    ours, theirs = await stream_pair()
    (connection,) = server.get_network().get_connections()
    await connection.muxed_conn.secured_conn.close()
    with pytest.raises(trio.BrokenResourceError):
        await ours.receive_some()
    with pytest.raises(trio.BrokenResourceError):
        await theirs.receive_some()


async def test_closing_wakes_the_reader_beside_it(stream_pair) -> None:
    ours, _ = await stream_pair()
    await close_beside_a_reader(ours)


async def close_beside_a_reader(stream: PeerStream) -> None:
    async def read() -> None:
        with pytest.raises(trio.ClosedResourceError):
            await stream.receive_some()

    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            await trio.testing.wait_all_tasks_blocked()
            await stream.aclose()


async def test_two_tasks_may_not_read_or_write_at_once(stream_pair) -> None:
    ours, theirs = await stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ours.receive_some)
        nursery.start_soon(ours.send_all, BIG)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(trio.BusyResourceError):
            await ours.receive_some()
        with pytest.raises(trio.BusyResourceError):
            await ours.send_all(b"x")
        nursery.cancel_scope.cancel()
    await theirs.aclose()


async def test_a_cancelled_read_loses_nothing(stream_pair) -> None:
    ours, theirs = await stream_pair()
    received = bytearray()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(send_and_end, ours, BIG)
        attempts = 0
        while len(received) < len(BIG):
            attempts += 1
            with trio.CancelScope() as scope:
                nursery.start_soon(cancel_in, attempts % 8, scope)
                received += await theirs.receive_some(40_000)
    assert received == BIG


async def cancel_in(rounds: int, scope: trio.CancelScope) -> None:
    for _ in range(rounds):
        await trio.lowlevel.checkpoint()
    scope.cancel()


async def test_a_write_cancelled_before_it_began_leaves_the_stream_whole(stream_pair) -> None:
    ours, theirs = await stream_pair()
    with trio.CancelScope() as scope:
        scope.cancel()
        await ours.send_all(BIG)
    await send_and_end(ours, b"whole")
    assert await receive_all(theirs) == b"whole"


async def test_a_write_cancelled_halfway_resets_its_stream_and_no_other(stream_pair) -> None:
    ours, theirs = await stream_pair()
    other, their_other = await stream_pair()
    with trio.move_on_after(0.05) as scope:
        # The other side does not read, so it stops at the end of the window.
        await ours.send_all(BIG)
    assert scope.cancelled_caught
    with trio.fail_after(5):
        with pytest.raises(trio.BrokenResourceError):
            await ours.send_all(b"more")
        with pytest.raises(trio.BrokenResourceError):
            await receive_all(theirs)
    await send_and_end(other, b"the connection is whole")
    assert await receive_all(their_other) == b"the connection is whole"


async def test_waiting_for_room_waits_for_the_reader(stream_pair) -> None:
    ours, theirs = await stream_pair()
    await ours.wait_send_all_might_not_block()
    await ours.send_all(bytes(ours._muxed.send_window))
    with trio.move_on_after(0.05) as scope:
        await ours.wait_send_all_might_not_block()
    assert scope.cancelled_caught
    with trio.fail_after(5):
        await theirs.receive_some(STREAM_WINDOW)
        await ours.wait_send_all_might_not_block()


async def test_arguments_are_checked(stream_pair) -> None:
    ours, theirs = await stream_pair()
    with pytest.raises(ValueError, match="at least 1"):
        await ours.receive_some(0)
    await ours.send_all(b"")
    await ours.send_all(bytearray(b"ab"))
    await ours.send_all(memoryview(b"cd"))
    await ours.send_eof()
    assert await receive_all(theirs) == b"abcd"


# On a plain host


@pytest.fixture
async def foreign_stream(foreign, client):
    """The foreign end of a stream, and ours: `async with` is not needed, both end with the hosts."""
    sender, receiver = trio.open_memory_channel(1)
    done = trio.Event()

    async def hand_over(stream: PeerStream, peer_id: str) -> None:
        await sender.send(stream)
        await done.wait()

    async with attach_protocols(foreign, {"/pair/1.0.0": hand_over}):
        peer_id = await dial(client, host_addresses(foreign)[0])
        ours = await open_stream(client, peer_id, ["/pair/1.0.0"])
        theirs = await receiver.receive()
        yield theirs, ours
        done.set()
    sender.close()
    receiver.close()


async def test_foreign_streams_carry_as_much(foreign_stream) -> None:
    theirs, ours = foreign_stream
    async with trio.open_nursery() as nursery:
        nursery.start_soon(send_and_end, ours, BIG)
        assert await receive_all(theirs) == BIG
        nursery.start_soon(send_and_end, theirs, BIG)
        assert await receive_all(ours) == BIG


async def test_a_cancelled_read_on_a_foreign_host_is_an_error_never_a_gap(foreign_stream) -> None:
    theirs, ours = foreign_stream
    with trio.move_on_after(0.05) as scope:
        await theirs.receive_some()
    assert scope.cancelled_caught
    with pytest.raises(trio.BrokenResourceError):
        await theirs.receive_some()
    with pytest.raises(trio.BrokenResourceError):
        await ours.receive_some()


async def test_a_cancelled_write_on_a_foreign_host_leaves_its_connection_whole(foreign_stream, foreign, client) -> None:
    theirs, ours = foreign_stream
    with trio.move_on_after(0.05):
        await theirs.send_all(BIG)
    with pytest.raises(trio.BrokenResourceError):
        await receive_all(ours)
    peer_id = foreign.get_id().to_base58()
    ping = await open_stream(client, peer_id, ["/ipfs/ping/1.0.0"])
    await ping.send_all(bytes(32))
    assert await ping.receive_some() == bytes(32)
    await ping.aclose()


async def test_closing_wakes_the_reader_on_a_foreign_host_too(foreign_stream) -> None:
    theirs, _ = foreign_stream
    await close_beside_a_reader(theirs)


async def test_a_write_on_a_foreign_host_is_not_cut_within_a_frame(foreign_stream, foreign, client) -> None:
    theirs, ours = foreign_stream
    raw = theirs._stream.muxed_conn.secured_conn.conn.read_writer.read_write_closer
    write, at_gate, gate = raw.write, trio.Event(), trio.Event()

    async def write_in_halves(data: bytes) -> None:
        await write(data[: len(data) // 2])
        at_gate.set()
        await gate.wait()
        await write(data[len(data) // 2 :])

    raw.write = write_in_halves
    async with trio.open_nursery() as nursery:
        nursery.start_soon(theirs.send_all, bytes(1000))
        await at_gate.wait()
        nursery.cancel_scope.cancel()
        gate.set()
    assert await ours.receive_some(1000) == bytes(1000)
    async with await open_stream(client, foreign.get_id().to_base58(), ["/ipfs/ping/1.0.0"]) as ping:
        await ping.send_all(bytes(32))
        assert await ping.receive_some() == bytes(32)
