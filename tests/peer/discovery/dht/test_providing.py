"""What is announced and when, in virtual time, with a DHT that records announcements."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from contextlib import aclosing, asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing

from dms_peer.discovery.dht.providing import keep_providing
from dms_protocols.adverts.classes import CapabilityClass
from dms_resources.components import CPU, RAM, Disk, FreeResources
from dms_resources.units import Cores


class Manager:
    """Reports what is free, as the ledger does."""

    def __init__(self, cores: int) -> None:
        self.changed = trio.Event()
        self.set(cores)

    def set(self, cores: int) -> None:
        self.free = FreeResources(
            cpu=CPU(cores=Cores.of(cores)),
            ram=RAM(size=0),
            disk=Disk(size=0),
            gpus=(),
            ports=0,
            onboarded=True,
            draining=False,
            simulated=False,
        )
        self.changed.set()
        self.changed = trio.Event()

    def get_free_resources(self) -> FreeResources:
        return self.free

    @asynccontextmanager
    async def watch(self) -> AsyncIterator[AsyncIterator[FreeResources]]:
        async def changes() -> AsyncGenerator[FreeResources, None]:
            while True:
                changed = self.changed
                yield self.free
                await changed.wait()

        async with aclosing(changes()) as found:
            yield found


class DHT:
    """Records announcements. `taken` is how many peers accept one."""

    def __init__(self) -> None:
        self.joined = trio.Event()
        self.taken = 8
        self.notes: list[tuple[float, list[str]]] = []
        self.broken: Exception | None = None
        self.peers = 8
        self.grown = trio.Event()

    async def wait_joined(self) -> None:
        await self.joined.wait()

    async def wait_peers(self, number: int) -> None:
        while self.peers < number:
            await self.grown.wait()

    def set_peers(self, number: int) -> None:
        self.peers = number
        self.grown.set()
        self.grown = trio.Event()

    async def announce(self, classes: Iterable[CapabilityClass]) -> int:
        self.notes.append((trio.current_time() - began, sorted(map(str, classes))))
        if self.broken:
            raise self.broken
        return self.taken


began = 0.0


@pytest.fixture
async def keeping(autojump_clock: trio.testing.MockClock, nursery: Any) -> tuple[DHT, Manager]:
    global began
    began = trio.current_time()
    dht, manager = DHT(), Manager(2)
    nursery.start_soon(lambda: keep_providing(dht, manager, interval=1000, rng=lambda: 0.5))
    return dht, manager


async def test_all_is_announced_at_intervals(keeping: Any, autojump_clock: Any) -> None:
    dht, _ = keeping
    dht.joined.set()
    await trio.sleep(2500)
    assert dht.notes == [(time, ["cores ≥ 1", "cores ≥ 2"]) for time in (0, 1000, 2000)]


async def test_changes_in_between_do_not_put_that_off(keeping: Any, autojump_clock: Any) -> None:
    dht, manager = keeping
    dht.joined.set()
    for _ in range(6):
        await trio.sleep(300)
        manager.set(1)
        await trio.sleep(10)
        manager.set(2)
    everything = [time for time, classes in dht.notes if classes == ["cores ≥ 1", "cores ≥ 2"]]
    assert everything == [0, 1000]


async def test_what_is_newly_reached_is_announced_soon_and_alone(keeping: Any, autojump_clock: Any) -> None:
    dht, manager = keeping
    dht.joined.set()
    await trio.sleep(100)
    manager.set(3)
    await trio.sleep(100)
    manager.set(4)
    await trio.sleep(1)
    # Within the settling time.
    manager.set(8)
    await trio.sleep(100)
    assert dht.notes[1:] == [(200, ["cores ≥ 4"]), (205, ["cores ≥ 8"])]


async def test_a_class_that_was_lost_in_between_is_announced_again(keeping: Any, autojump_clock: Any) -> None:
    dht, manager = keeping
    dht.joined.set()
    await trio.sleep(100)
    manager.set(1)
    await trio.sleep(100)
    manager.set(2)
    await trio.sleep(1)
    assert dht.notes[1:] == [(200, ["cores ≥ 2"])]


async def test_who_has_nothing_free_announces_nothing(keeping: Any, autojump_clock: Any) -> None:
    dht, manager = keeping
    manager.set(0)
    dht.joined.set()
    await trio.sleep(3000)
    assert dht.notes == []
    manager.set(1)
    await trio.sleep(1)
    assert dht.notes == [(3000, ["cores ≥ 1"])]


async def test_all_is_announced_again_when_the_network_has_doubled(keeping: Any, autojump_clock: Any) -> None:
    dht, _ = keeping
    dht.joined.set()
    for number in (12, 15, 16, 31, 32):
        await trio.sleep(10)
        dht.set_peers(number)
    await trio.sleep(100)
    assert dht.notes == [(time, ["cores ≥ 1", "cores ≥ 2"]) for time in (0, 30, 50)]


async def test_before_anybody_is_there_nothing_is_announced(keeping: Any, autojump_clock: Any) -> None:
    dht, _ = keeping
    await trio.sleep(3000)
    assert dht.notes == []
    dht.joined.set()
    await trio.sleep(1)
    assert len(dht.notes) == 1


@pytest.mark.parametrize("broken", [None, ZeroDivisionError()])
async def test_what_failed_is_tried_again(keeping: Any, autojump_clock: Any, broken: Exception | None) -> None:
    dht, _ = keeping
    dht.taken, dht.broken = 0, broken
    dht.joined.set()
    await trio.sleep(50)
    dht.taken, dht.broken = 8, None
    await trio.sleep(500)
    assert [time for time, _ in dht.notes] == [0, 30, 60]
