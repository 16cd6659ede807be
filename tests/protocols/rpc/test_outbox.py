from __future__ import annotations

import trio
import trio.testing

from dms_protocols.rpc.outbox import Outbox


async def test_frames_put_in_one_turn_are_one_write(nursery: trio.Nursery) -> None:
    sender, receiver = trio.testing.memory_stream_one_way_pair()
    writes = []
    deliver = sender.send_all_hook

    async def count_writes() -> None:
        writes.append(1)
        await deliver()

    sender.send_all_hook = count_writes
    outbox = Outbox(sender, high_water=100, write_deadline=1)
    nursery.start_soon(outbox.run)
    for number in range(10):
        outbox.put(bytes([number]))
    await outbox.flushed()
    assert await receiver.receive_some() == bytes(range(10))
    assert len(writes) == 1
    nursery.cancel_scope.cancel()


async def test_room_waits_above_the_high_water_mark_only(nursery: trio.Nursery) -> None:
    sender, receiver = trio.testing.lockstep_stream_one_way_pair()
    outbox = Outbox(sender, high_water=4, write_deadline=1000)
    nursery.start_soon(outbox.run)
    outbox.put(b"abc")
    await outbox.wait_for_space()
    outbox.put(b"d")
    assert outbox.full
    waiting = trio.Event()

    async def wait_for_room() -> None:
        await outbox.wait_for_space()
        waiting.set()

    nursery.start_soon(wait_for_room)
    await trio.testing.wait_all_tasks_blocked()
    assert not waiting.is_set()
    assert await receiver.receive_some(10) in (b"abcd", b"abc")
    await waiting.wait()
    nursery.cancel_scope.cancel()


async def test_a_stalled_write_ends_it(autojump_clock: trio.testing.MockClock) -> None:
    sender, _receiver = trio.testing.lockstep_stream_one_way_pair()
    outbox = Outbox(sender, high_water=4, write_deadline=20)
    outbox.put(b"abc")
    start = trio.current_time()
    assert "took nothing for 20 s" in await outbox.run()
    assert trio.current_time() - start == 20


async def test_a_broken_stream_ends_it() -> None:
    sender, receiver = trio.testing.memory_stream_one_way_pair()
    outbox = Outbox(sender, high_water=4, write_deadline=20)
    receiver.close()
    outbox.put(b"abc")
    assert await outbox.run() == "the stream is broken"
