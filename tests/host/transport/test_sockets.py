"""The socket that reads ahead, and locks that are taken at once."""

from __future__ import annotations

import pytest
import trio
import trio.lowlevel
import trio.testing
from libp2p.io.exceptions import ConnectionClosedError

from dms_host.streams.locks import QuickLock
from dms_host.transport import tcp
from dms_host.transport.tcp import PeerSocket


class CountingStream(trio.abc.Stream):
    """One side of a stream in memory, which counts how often it is read."""

    def __init__(self, inner: trio.abc.Stream) -> None:
        self.inner = inner
        self.reads = 0

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        self.reads += 1
        return await self.inner.receive_some(max_bytes)

    async def send_all(self, data: bytes) -> None:
        await self.inner.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self.inner.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        await self.inner.aclose()


@pytest.fixture
def socket_pair() -> tuple[trio.abc.Stream, CountingStream, PeerSocket]:
    ours, theirs = trio.testing.memory_stream_pair()
    counted = CountingStream(theirs)
    return ours, counted, PeerSocket(counted)  # type: ignore[arg-type]


async def test_what_has_come_is_fetched_once_and_read_in_pieces(socket_pair) -> None:
    ours, counted, socket = socket_pair
    await ours.send_all(b"\x00\x05hello\x00\x05world")
    found = [await socket.read(size) for size in (0, 2, 5, 1, 1, 100)]
    assert found == [b"", b"\x00\x05", b"hello", b"\x00", b"\x05", b"world"]
    assert counted.reads == 1
    await ours.send_all(b"all of it")
    assert await socket.read() == b"all of it"
    await ours.send_all(b"the rest")
    assert await socket.read(4) + await socket.read() == b"the rest"
    await ours.aclose()
    assert await socket.read(2) == b""
    # The library would read a hundred times.
    fetched = counted.reads
    for _ in range(2):
        with pytest.raises(ConnectionClosedError):
            await socket.read()
    assert counted.reads == fetched


async def test_no_more_is_fetched_than_is_kept(socket_pair, monkeypatch) -> None:
    monkeypatch.setattr(tcp, "FETCH_SIZE", 8)
    ours, counted, socket = socket_pair
    await ours.send_all(bytes(range(20)))
    assert b"".join([await socket.read(3) for _ in range(8)]) == bytes(range(20))
    assert counted.reads == 3


async def test_a_cancelled_read_has_taken_nothing(socket_pair) -> None:
    ours, _, socket = socket_pair
    with trio.move_on_after(0):
        await socket.read(3)
    await ours.send_all(b"abc")
    assert await socket.read(3) == b"abc"


async def test_a_free_lock_is_taken_at_once() -> None:
    lock, turns = QuickLock(), []

    async def other() -> None:
        turns.append("other")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(other)
        async with lock:
            turns.append("ours")
        async with lock:
            turns.append("ours again")
    assert turns == ["ours", "ours again", "other"]


async def test_a_lock_is_one_tasks_at_a_time_and_passed_on_in_turn() -> None:
    lock, turns = QuickLock(), []

    async def wait(name: str) -> None:
        async with lock:
            turns.append(name)
            await trio.lowlevel.checkpoint()
            turns.append(name)

    async with trio.open_nursery() as nursery, lock:
        for name in "abc":
            nursery.start_soon(wait, name)
            await trio.testing.wait_all_tasks_blocked()
        assert turns == []
    assert turns == ["a", "a", "b", "b", "c", "c"]


async def test_who_is_cancelled_while_waiting_for_a_lock_does_not_have_it() -> None:
    lock = QuickLock()
    async with lock:
        with trio.move_on_after(0) as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(lock.__aenter__)
        assert scope.cancelled_caught
    async with lock:
        pass
