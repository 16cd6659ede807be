"""The rate of all peers together does not grow with their number, and small changes are not published."""

from __future__ import annotations

import random
from typing import Any

import pytest
import trio
from msgspec.structs import replace

from dms_peer.discovery.adverts.advertiser import AdvertKeeper
from dms_peer.discovery.adverts.own_advert import OwnAdvert
from dms_peer.discovery.adverts.peer_count import PeerCount
from dms_peer.discovery.adverts.schedule import AdvertSchedule, changed_much
from dms_protocols.messages.adverts import LONGEST_ADVERT_TTL
from dms_protocols.wire.cbor import decode_map
from dms_resources.components import CPU, GPU, RAM, Disk, FreeResources
from dms_resources.units import GIB, Cores


def free(*, cores: float = 12, ram: float = 48, disk: int = 200, vram: tuple[float, ...] = (20,), **fields: Any) -> Any:
    said = {"ports": 10, "onboarded": True, "draining": False, "simulated": False} | fields
    return FreeResources(
        cpu=CPU(cores=Cores.of(cores)),
        ram=RAM(size=int(ram * GIB)),
        disk=Disk(size=disk * GIB),
        gpus=tuple(GPU(uuid=f"GPU-{number}", vram=int(one * GIB)) for number, one in enumerate(vram)),
        **said,
    )


@pytest.mark.parametrize(
    ("now", "news"),
    [
        (free(), False),
        (free(cores=11, ram=45), False),
        (free(cores=10.5), True),
        (free(ram=44), False),
        (free(ram=40), True),
        (free(disk=150), True),
        (free(vram=(19,)), False),
        (free(vram=(18,)), True),
        (free(cores=8), True),
        (free(vram=(15.9,)), True),
        (free(vram=()), True),
        (free(vram=(20, 20)), True),
        (free(draining=True), True),
        (free(onboarded=False), True),
        (free(ports=9), False),
    ],
)
def test_what_is_news(now: FreeResources, news: bool) -> None:
    assert changed_much(free(), now) is news
    assert changed_much(now, free()) is news


def test_a_capability_class_that_is_crossed_is_news() -> None:
    assert changed_much(free(ram=16.1), free(ram=15.9))
    assert not changed_much(free(ram=16.3), free(ram=16.1))


def test_a_device_that_somebody_has_alone_is_news() -> None:
    before = free()
    after = replace(before, gpus=(replace(before.gpus[0], exclusive=True),))
    assert changed_much(before, after)


@pytest.mark.parametrize("peers", [0, 10, 100, 1000, 10_000])
def test_all_together_are_bounded(peers: int) -> None:
    schedule = AdvertSchedule(interval=60, rate=2)
    assert peers / schedule.interval_for(peers) <= 2
    assert peers / schedule.gap_for(peers) <= 2
    assert schedule.ttl_for(peers) >= 3 * schedule.interval_for(peers)
    assert schedule.ttl_for(peers) <= LONGEST_ADVERT_TTL


def test_a_million_peers_still_hear_of_each_other_in_time() -> None:
    schedule = AdvertSchedule()
    assert schedule.ttl_for(10**6) == LONGEST_ADVERT_TTL
    assert schedule.interval_for(10**6) == schedule.longest


# In virtual time


class Manager:
    """Free capacity that changes."""

    def __init__(self) -> None:
        self.free = free()
        self._changed = trio.Event()

    def get_free_resources(self) -> FreeResources:
        return self.free

    def become(self, now: FreeResources) -> None:
        self.free = now
        self._changed.set()

    def watch(self) -> Any:
        return self

    async def __aenter__(self) -> Any:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    def __aiter__(self) -> Any:
        return self

    async def __anext__(self) -> FreeResources:
        await self._changed.wait()
        self._changed = trio.Event()
        return self.free


class Signer:
    def __init__(self, peer_id: str = "me") -> None:
        self.peer_id = peer_id

    def sign(self, domain: str, payload_type: bytes, payload: bytes) -> bytes:
        return payload


class Member:
    """One peer that advertises. `times` are the times of its adverts."""

    def __init__(self, schedule: AdvertSchedule, *, peers: int = 0, heard: bool = True, draw: Any = None) -> None:
        self.times: list[float] = []
        self.manager = Manager()
        self.count = PeerCount(clock=trio.current_time)
        self.count._secret = b"the same each time"
        for number in range(peers):
            self.count.heard(f"peer-{number}")
        self.heard = heard
        own: Any = OwnAdvert(Signer(), lambda: (), clock=trio.current_time)
        manager: Any = self.manager
        self.own = own
        self.keeper = AdvertKeeper(
            own, manager, schedule, self.count, self.publish, draw=draw or random.Random(0).random
        )

    async def publish(self, raw: bytes) -> bool:
        await trio.lowlevel.checkpoint()
        self.times.append(trio.current_time())
        return self.heard


async def test_an_advert_is_repeated(autojump_clock: Any, nursery: trio.Nursery) -> None:
    member = Member(AdvertSchedule(interval=60))
    nursery.start_soon(member.keeper.keep)
    await trio.sleep(6000)
    gaps = [after - before for before, after in zip(member.times, member.times[1:], strict=False)]
    assert 90 <= len(gaps) <= 110
    assert 30 <= min(gaps) < 35
    assert 85 < max(gaps) <= 90


async def test_news_is_told_soon_and_noise_is_not(autojump_clock: Any, nursery: trio.Nursery) -> None:
    member = Member(AdvertSchedule(interval=1000, gap=5))
    nursery.start_soon(member.keeper.keep)
    await trio.sleep(100)
    assert len(member.times) == 1
    member.manager.become(free(cores=11.5))
    await trio.sleep(100)
    assert len(member.times) == 1
    member.manager.become(free(cores=4))
    await trio.sleep(1)
    assert member.times[1:] == [200.0]
    # The next change waits for the gap, and what was undone by then is not published.
    member.manager.become(free(cores=8))
    await trio.sleep(1)
    member.manager.become(free(cores=4))
    await trio.sleep(20)
    assert len(member.times) == 2
    assert member.keeper.news == 2


async def test_many_changes_are_few_adverts(autojump_clock: Any, nursery: trio.Nursery) -> None:
    member = Member(AdvertSchedule(interval=1000, gap=5))
    nursery.start_soon(member.keeper.keep)
    for number in range(1000):
        await trio.sleep(0.1)
        member.manager.become(free(cores=1 + number % 12))
    assert len(member.times) <= 21


async def test_what_nobody_heard_is_said_again(autojump_clock: Any, nursery: trio.Nursery) -> None:
    member = Member(AdvertSchedule(interval=1000, gap=5), heard=False)
    nursery.start_soon(member.keeper.keep)
    await trio.sleep(28)
    assert len(member.times) == 5
    member.heard = True
    await trio.sleep(100)
    assert len(member.times) == 6


@pytest.mark.parametrize("peers", [100, 1000, 10_000])
async def test_the_load_of_a_large_network_is_that_of_a_small_one(
    autojump_clock: Any, nursery: trio.Nursery, peers: int
) -> None:
    """One peer of many: what it sends times their number is within the rate, even if its capacity always changes."""
    member = Member(AdvertSchedule(interval=60, rate=2, gap=5), peers=peers)
    nursery.start_soon(member.keeper.keep)

    async def hear_the_others() -> None:
        while True:
            await trio.sleep(peers / 2.5)
            for number in range(peers):
                member.count.heard(f"peer-{number}")

    nursery.start_soon(hear_the_others)
    # As long as forty of its adverts take.
    duration = 40 * max(60.0, peers / 2)
    for number in range(2000):
        await trio.sleep(duration / 2000)
        member.manager.become(free(cores=1 + number % 12))
    assert peers * (len(member.times) - 1) / duration <= 2 * 1.15
    assert len(member.times) >= 30


async def test_a_peer_that_comes_while_many_do_reconsiders(autojump_clock: Any, nursery: trio.Nursery) -> None:
    member = Member(AdvertSchedule(interval=60, rate=2), draw=lambda: 0.5)
    nursery.start_soon(member.keeper.keep)
    await trio.sleep(1)
    for number in range(200):
        member.count.heard(f"peer-{number}")
    await trio.sleep(220)
    # It was due after 5 s; with so many other peers it waits for 100 s.
    assert [round(time) for time in member.times] == [100, 200]


async def test_newcomers_do_not_speak_all_at_once(autojump_clock: Any, nursery: trio.Nursery) -> None:
    schedule = AdvertSchedule(interval=60, rate=2)
    members: list[Member] = []
    told: list[int] = []
    rng = random.Random(1)

    def joining(number: int) -> Member:
        member = Member(schedule, draw=rng.random)

        async def publish(raw: bytes) -> bool:
            await trio.lowlevel.checkpoint()
            told.append(number)
            for other in members:
                other.count.heard(f"peer-{number}")
            return True

        member.keeper._publish = publish
        return member

    for number in range(300):
        members.append(joining(number))
        nursery.start_soon(members[-1].keeper.keep)
        await trio.sleep(0.2)
    # Five peers join in each second, and two may publish.
    assert 40 < len(told) < 60 * schedule.rate * 1.5


async def test_the_number_of_an_advert_grows_also_when_the_clock_is_set_back(autojump_clock: Any) -> None:
    class Clock:
        now = 1000.0

        def __call__(self) -> float:
            return self.now

    clock: Any = Clock()
    own = OwnAdvert(Signer(), lambda: (), clock=clock)
    own.renew(free(), 60)
    first = own.sequence
    clock.now -= 500
    own.renew(free(), 60)
    assert own.sequence == first + 1
    assert own.raw is not None
    clock.now += 61
    assert own.raw is None


async def test_a_machine_with_too_many_devices_names_its_largest() -> None:
    gpus = tuple(GPU(uuid=f"GPU-{number}-" + "x" * 100, model="y" * 100, vram=number * GIB) for number in range(64))
    own = OwnAdvert(Signer(), lambda: (), clock=lambda: 1000.0)
    raw = own.renew(replace(free(), gpus=gpus), 60)
    named = [gpu["vram"] for gpu in decode_map(raw)["free"]["gpus"]]
    assert max(named) == 63 * GIB
    assert 10 < len(named) < 64
