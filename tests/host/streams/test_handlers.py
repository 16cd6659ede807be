"""Handlers that fail, registered directly on the host as for any libp2p protocol."""

import logging
from types import SimpleNamespace

import pytest
import trio
from libp2p.abc import INotifee

from dms_host import dial, host_addresses, open_stream
from dms_host.streams.handlers import guarded

FAIL, ECHO = "/fail/1.0.0", "/echo/1.0.0"


async def echo(stream) -> None:
    await stream.write(await stream.read(100))


async def is_served(client, peer_id: str) -> bool:
    with trio.fail_after(5):
        async with await open_stream(client, peer_id, [ECHO]) as stream:
            await stream.send_all(b"hello")
            return await stream.receive_some() == b"hello"


async def raise_value_error(stream) -> None:
    raise ValueError("a handler's\nown mistake")


async def raise_group(stream) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(raise_value_error, stream)
        nursery.start_soon(trio.sleep_forever)


async def raise_group_while_cancelled(stream) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(raise_value_error_when_cancelled)
        await trio.lowlevel.checkpoint()
        nursery.cancel_scope.cancel()


async def raise_value_error_when_cancelled() -> None:
    try:
        await trio.sleep_forever()
    finally:
        raise ValueError("while cancelled")


@pytest.mark.parametrize("handler", [raise_value_error, raise_group, raise_group_while_cancelled])
async def test_a_handler_that_raises_costs_its_stream_only(server, client, caplog, handler) -> None:
    server.set_stream_handler(FAIL, handler)
    server.set_stream_handler(ECHO, echo)
    peer_id = await dial(client, host_addresses(server)[0])
    with caplog.at_level(logging.INFO, logger="dms_host"):
        for _ in range(3):
            stream = await open_stream(client, peer_id, [FAIL])
            with pytest.raises(trio.BrokenResourceError):
                await stream.receive_some()
            await stream.aclose()
            assert await is_served(client, peer_id)
    # The limit on lines applies to the process: earlier tests may have used it up, which the next line reports first.
    records = [one for one in caplog.records if one.name == "dms_host.streams.handlers"]
    lines = [one for one in records if "left out" not in one.getMessage()]
    assert len(lines) == 3
    assert all("ValueError" in line.getMessage() and "\n" not in line.getMessage() for line in lines)


async def test_an_error_beside_a_cancellation_ends_in_the_cage_and_the_cancellation_does_not() -> None:
    async def fail_when_cancelled(stream) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(raise_value_error_when_cancelled)
            await trio.sleep_forever()

    stream = RecordingStream()
    with trio.CancelScope() as scope:
        scope.cancel()
        await guarded(fail_when_cancelled, close_timeout=1)(stream)
    assert scope.cancelled_caught
    assert stream.ended_by == ["reset"]


class RecordingStream:
    """The part of a stream that the wrapper uses."""

    muxed_conn = SimpleNamespace(peer_id="somebody")

    def __init__(self) -> None:
        self.ended_by: list[str] = []

    def get_protocol(self) -> None:
        return None

    async def reset(self) -> None:
        self.ended_by.append("reset")


async def test_a_handler_that_always_raises_does_not_fill_the_log(server, client, caplog) -> None:
    server.set_stream_handler(FAIL, raise_value_error)
    peer_id = await dial(client, host_addresses(server)[0])
    with caplog.at_level(logging.INFO, logger="dms_host"):
        for _ in range(60):
            stream = await open_stream(client, peer_id, [FAIL])
            await stream.aclose()
    assert len([record for record in caplog.records if record.name == "dms_host.streams.handlers"]) < 40


async def test_a_handler_that_returns_leaves_no_stream_behind(server, client, eventually) -> None:
    server.set_stream_handler(ECHO, echo)
    peer_id = await dial(client, host_addresses(server)[0])
    (connection,) = server.get_network().get_connections()
    for _ in range(server.limits.max_inbound_streams + 5):
        assert await is_served(client, peer_id)
    await eventually(lambda: not connection.get_streams())
    await eventually(lambda: not connection.muxed_conn.streams)


class Watcher(INotifee):
    """Records the events that it gets, and may fail at them."""

    def __init__(self, error: Exception | None = None) -> None:
        self.told: list[str] = []
        self.error = error

    async def note(self, event: str) -> None:
        self.told.append(event)
        if self.error:
            raise self.error

    async def opened_stream(self, network, stream) -> None:
        await self.note("opened")

    async def closed_stream(self, network, stream) -> None:
        await self.note("closed")

    async def connected(self, network, conn) -> None: ...

    async def disconnected(self, network, conn) -> None: ...

    async def listen(self, network, multiaddr) -> None: ...

    async def listen_close(self, network, multiaddr) -> None: ...


async def test_who_watches_streams_and_fails_harms_neither_them_nor_others_who_watch(server, client, caplog) -> None:
    watchers = [Watcher(ValueError("a watcher's mistake")), Watcher()]
    for watcher in watchers:
        server.swarm.register_notifee(watcher)
    server.set_stream_handler(ECHO, echo)
    peer_id = await dial(client, host_addresses(server)[0])
    assert await is_served(client, peer_id)
    assert watchers[0].told[0] == "opened"
    assert watchers[0].told == watchers[1].told
    assert "a watcher's mistake" in caplog.text


async def test_what_a_handler_wrote_last_arrives(server, client) -> None:
    async def write_much(stream) -> None:
        await stream.write(bytes(200_000))

    server.set_stream_handler(ECHO, write_much)
    peer_id = await dial(client, host_addresses(server)[0])
    async with await open_stream(client, peer_id, [ECHO]) as stream:
        assert sum([len(chunk) async for chunk in stream]) == 200_000


async def test_an_identify_that_raises_does_not_end_the_program(server, client, monkeypatch, eventually) -> None:
    called = []

    async def fail(peer_id, *, reason: str) -> None:
        called.append(peer_id)
        raise RuntimeError("identify")

    monkeypatch.setattr(server, "_identify_peer", fail)
    server.set_stream_handler(ECHO, echo)
    peer_id = await dial(client, host_addresses(server)[0])
    await eventually(lambda: called)
    assert await is_served(client, peer_id)
