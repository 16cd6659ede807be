"""Attaching protocols to our own host and to one that another program made."""

from contextlib import AsyncExitStack

import pytest
import trio
from libp2p.identity.identify_push.identify_push import ID_PUSH

from dms_host import attach_protocols, dial, host_addresses, open_host, open_stream
from dms_host.errors import DialError, ProtocolTakenError
from dms_host.identify import push as announcements
from dms_host.identify.push import announcing
from dms_host.keys.identity import new_identity

ECHO, FAIL, HOLD = "/echo/1.0.0", "/fail/1.0.0", "/hold/1.0.0"


@pytest.fixture(params=["server", "foreign"])
def host(request):
    """Each test runs on both."""
    return request.getfixturevalue(request.param)


async def echo(stream, peer_id: str) -> None:
    async for chunk in stream:
        await stream.send_all(chunk)


async def fail(stream, peer_id: str) -> None:
    raise ValueError("a handler's own mistake")


async def call(client, peer_id: str) -> bytes:
    with trio.fail_after(5):
        async with await open_stream(client, peer_id, [ECHO]) as stream:
            await stream.send_all(b"hello")
            return await stream.receive_some()


async def test_served_while_attached_and_no_longer(host, client) -> None:
    peer_id = await dial(client, host_addresses(host)[0])
    with pytest.raises(DialError):
        await call(client, peer_id)
    async with attach_protocols(host, {ECHO: echo}):
        assert await call(client, peer_id) == b"hello"
    with pytest.raises(DialError) as caught:
        await call(client, peer_id)
    assert caught.value.code == "protocol_not_supported"
    async with attach_protocols(host, {ECHO: echo}):
        assert await call(client, peer_id) == b"hello"


async def test_the_handler_is_told_who_calls(host, client) -> None:
    callers = []

    async def remember(stream, peer_id: str) -> None:
        callers.append(peer_id)
        await stream.send_all(b"hello")

    async with attach_protocols(host, {ECHO: remember}):
        peer_id = await dial(client, host_addresses(host)[0])
        assert await call(client, peer_id) == b"hello"
    assert callers == [client.get_id().to_base58()]


async def test_a_handler_that_raises_does_not_end_the_host(host, client) -> None:
    async with attach_protocols(host, {ECHO: echo, FAIL: fail}):
        peer_id = await dial(client, host_addresses(host)[0])
        for _ in range(3):
            stream = await open_stream(client, peer_id, [FAIL])
            with pytest.raises(trio.BrokenResourceError):
                await stream.receive_some()
            await stream.aclose()
            assert await call(client, peer_id) == b"hello"


async def test_peers_that_are_connected_already_are_told(host, client, eventually) -> None:
    await dial(client, host_addresses(host)[0])
    known = client.get_peerstore()
    await eventually(lambda: known.has_peer(host.get_id()) and known.get_protocols(host.get_id()))
    async with attach_protocols(host, {ECHO: echo}):
        await eventually(lambda: ECHO in known.get_protocols(host.get_id()))
    await eventually(lambda: ECHO not in known.get_protocols(host.get_id()))


def count_messages(client) -> list:
    """What others reported to the client from now on."""
    original, told = client.get_mux().handlers[ID_PUSH], []

    async def count(stream) -> None:
        told.append(stream.muxed_conn.peer_id)
        await original(stream)

    client.set_stream_handler(ID_PUSH, count)
    return told


async def test_what_is_attached_and_taken_off_together_is_told_once(host, client, eventually) -> None:
    names = [f"/one-of-many/{number}.0.0" for number in range(6)]
    peer_id = await dial(client, host_addresses(host)[0])
    known = client.get_peerstore()
    await eventually(lambda: known.has_peer(host.get_id()) and known.get_protocols(host.get_id()))
    told = count_messages(client)
    async with announcing(host):
        async with AsyncExitStack() as stack:
            for name in names:
                await stack.enter_async_context(attach_protocols(host, {name: echo}))
            await eventually(lambda: set(names) <= set(known.get_protocols(host.get_id())))
        await eventually(lambda: not set(names) & set(known.get_protocols(host.get_id())))
    assert [one.to_base58() for one in told] == [peer_id] * 2


async def test_a_host_that_closes_says_no_farewell(client, eventually) -> None:
    told = count_messages(client)
    async with open_host(new_identity(), ["/ip4/127.0.0.1/tcp/0"]) as server:
        await dial(client, host_addresses(server)[0])
        async with AsyncExitStack() as stack:
            for number in range(6):
                await stack.enter_async_context(attach_protocols(server, {f"/one-of-many/{number}.0.0": echo}))
            await eventually(lambda: told)
    assert len(told) == 1


async def test_who_is_attached_longer_than_another_is_told_of_too(foreign, client, eventually) -> None:
    known, peer_id = client.get_peerstore(), foreign.get_id()
    await dial(client, host_addresses(foreign)[0])
    await eventually(lambda: known.has_peer(peer_id) and known.get_protocols(peer_id))
    async with AsyncExitStack() as later:
        async with attach_protocols(foreign, {ECHO: echo}):
            await later.enter_async_context(attach_protocols(foreign, {HOLD: echo}))
            await eventually(lambda: {ECHO, HOLD} <= set(known.get_protocols(peer_id)))
        await eventually(lambda: ECHO not in known.get_protocols(peer_id))
    await eventually(lambda: HOLD not in known.get_protocols(peer_id))


async def test_an_announcement_that_is_cut_off_leaves_a_foreign_connection_whole(
    foreign, client, eventually, monkeypatch
) -> None:
    """A cancelled write or read on the library's own streams would end the connection below them."""
    monkeypatch.setattr(announcements, "_SETTLING", 0)
    await dial(client, host_addresses(foreign)[0])
    known = client.get_peerstore()
    await eventually(lambda: known.has_peer(foreign.get_id()) and known.get_protocols(foreign.get_id()))
    (connection,) = client.get_network().get_connections(foreign.get_id())
    for steps in range(0, 150, 3):
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(cancel_after, steps, scope)
                async with attach_protocols(foreign, {ECHO: echo}):
                    await trio.sleep_forever()
    async with attach_protocols(foreign, {ECHO: echo}):
        assert await call(client, foreign.get_id().to_base58()) == b"hello"
    assert client.get_network().get_connections(foreign.get_id()) == [connection]


async def cancel_after(steps: int, scope: trio.CancelScope) -> None:
    for _ in range(steps):
        await trio.lowlevel.checkpoint()
    scope.cancel()


async def test_running_calls_may_finish(host, client) -> None:
    started, finish = trio.Event(), trio.Event()

    async def slow(stream, peer_id: str) -> None:
        started.set()
        await finish.wait()
        await stream.send_all(b"finished")

    async with trio.open_nursery() as nursery:
        async with attach_protocols(host, {HOLD: slow}):
            peer_id = await dial(client, host_addresses(host)[0])
            stream = await open_stream(client, peer_id, [HOLD])
            await started.wait()
            nursery.start_soon(finish_soon, finish)
        assert await stream.receive_some() == b"finished"
        await stream.aclose()


async def test_a_call_that_waits_for_more_is_told_that_nothing_comes(server, client) -> None:
    started, ended = trio.Event(), []

    async def serve_until_eof(stream, peer_id: str) -> None:
        started.set()
        ended.append(await stream.receive_some())
        ended.append(await stream.receive_some())
        await stream.send_all(b"goodbye")

    with trio.fail_after(20):
        async with attach_protocols(server, {HOLD: serve_until_eof}, stop_timeout=5):
            peer_id = await dial(client, host_addresses(server)[0])
            stream = await open_stream(client, peer_id, [HOLD])
            await started.wait()
        assert ended == [b"", b""]
        assert await stream.receive_some() == b"goodbye"
        await stream.aclose()


async def finish_soon(finish: trio.Event) -> None:
    await trio.sleep(0.05)
    finish.set()


async def test_calls_that_do_not_finish_are_cancelled_and_seen_to_be_cut(host, client) -> None:
    started, cancelled = trio.Event(), []

    async def hold(stream, peer_id: str) -> None:
        started.set()
        try:
            await trio.sleep_forever()
        finally:
            cancelled.append(peer_id)

    async with attach_protocols(host, {HOLD: hold, ECHO: echo}, stop_timeout=0.05):
        peer_id = await dial(client, host_addresses(host)[0])
        stream = await open_stream(client, peer_id, [HOLD])
        await started.wait()
    assert cancelled == [client.get_id().to_base58()]
    with pytest.raises(trio.BrokenResourceError):
        await stream.receive_some()
    await stream.aclose()
    # The host itself continues.
    async with attach_protocols(host, {ECHO: echo}):
        assert await call(client, peer_id) == b"hello"


async def test_a_stream_agreed_on_just_before_the_end_is_reset(server, client) -> None:
    called = []

    async def remember(stream, peer_id: str) -> None:
        called.append(peer_id)

    async with attach_protocols(server, {ECHO: remember}):
        handler = server.get_mux().handlers[ECHO]
    # As if the negotiation had looked it up while it was registered.
    server.set_stream_handler(ECHO, handler)
    peer_id = await dial(client, host_addresses(server)[0])
    stream = await open_stream(client, peer_id, [ECHO])
    with pytest.raises(trio.BrokenResourceError):
        await stream.receive_some()
    assert called == []


async def test_cancelling_the_block_takes_everything_off(host, client) -> None:
    started = trio.Event()

    async def hold(stream, peer_id: str) -> None:
        started.set()
        await trio.sleep_forever()

    with trio.fail_after(8), trio.CancelScope() as scope:
        async with attach_protocols(host, {HOLD: hold}, stop_timeout=0.05):
            peer_id = await dial(client, host_addresses(host)[0])
            await open_stream(client, peer_id, [HOLD])
            await started.wait()
            scope.cancel()
            await trio.sleep_forever()
    assert HOLD not in host.get_mux().get_protocols()


async def test_an_error_in_the_block_comes_out_as_it_is(host) -> None:
    with pytest.raises(KeyError, match="mine"):
        async with attach_protocols(host, {ECHO: echo}):
            raise KeyError("mine")
    assert ECHO not in host.get_mux().get_protocols()


async def test_a_protocol_is_attached_once(host) -> None:
    async with attach_protocols(host, {ECHO: echo}):
        with pytest.raises(ProtocolTakenError) as caught:
            async with attach_protocols(host, {ECHO: echo, FAIL: fail}):
                pytest.fail("attached twice")
        assert caught.value.code == "protocol_taken"
        assert ECHO in host.get_mux().get_protocols()
        assert FAIL not in host.get_mux().get_protocols()


async def test_calls_of_one_peer_are_bounded(host, client) -> None:
    running = []

    async def hold(stream, peer_id: str) -> None:
        running.append(stream)
        await trio.sleep_forever()

    async with attach_protocols(host, {HOLD: hold}, stop_timeout=0):
        peer_id = await dial(client, host_addresses(host)[0])
        refused = 0
        for _ in range(70):
            try:
                stream = await open_stream(client, peer_id, [HOLD])
            except DialError:
                refused += 1
                continue
            with trio.move_on_after(0 if len(running) < 64 else 0.5):
                refused += await is_reset(stream)
        assert len(running) <= 64
        assert refused >= 6


async def is_reset(stream) -> bool:
    try:
        await stream.receive_some()
    except trio.BrokenResourceError:
        return True
    return False
