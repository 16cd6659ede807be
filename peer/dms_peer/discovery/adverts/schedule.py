"""When a peer tells everybody what it has free.

Rules:

1. All peers together send no more than `rate` adverts per second, however many they are: with N peers each leaves
   N / rate seconds between two of its own, and at least `gap`. That is RTCP's idea (RFC 3550, section 6.2): what a
   group spends on announcing its members has a fixed rate, independent of its size.
2. Where nothing changes, an advert is repeated every `interval` seconds, or N / rate where that is more.
3. Nobody is in step with others: an interval is drawn from half to one and a half of itself. When it is over, it is
   looked at again by the number of peers that are known then, and goes on if they have become many (RFC 3550, section
   6.3.3, "timer reconsideration"; there it is drawn anew each time, which has to be made up for).
4. An advert holds for several intervals, so that a lost one makes no peer disappear.
5. Who has just come listens first, and speaks by the same rules: in a large network more peers come in a second than
   may speak in it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from dms_protocols.adverts.classes import classes_reached
from dms_protocols.messages.adverts import LONGEST_ADVERT_TTL
from dms_resources.components import FreeResources

__all__ = ["AdvertSchedule", "changed_much"]

# A time to live is at least so many intervals.
_REPEATS: Final = 3.0
# The part of an amount that has to change to be worth a message.
_MUCH: Final = 0.1


@dataclass(frozen=True, slots=True)
class AdvertSchedule:
    """Times in seconds. `ttl` is how long an advert holds while the network is small; `rate` is adverts per second.

    `listening` is how long a newcomer listens, and how long a peer without listeners waits before it speaks again.
    """

    interval: float = 60.0
    ttl: float = 600.0
    rate: float = 2.0
    gap: float = 1.0
    listening: float = 5.0

    @property
    def longest(self) -> float:
        """The longest interval, so that an advert may still be lost without its peer being taken for gone."""
        return LONGEST_ADVERT_TTL / _REPEATS

    def interval_for(self, peers: float) -> float:
        """How often an advert is repeated, on average, in a network of so many peers."""
        return min(self.longest, max(self.interval, peers / self.rate))

    def gap_for(self, peers: float) -> float:
        """Return the least time (seconds) between two adverts."""
        return min(self.interval_for(peers), max(self.gap, peers / self.rate))

    def listening_for(self, peers: float) -> float:
        """Return how long (seconds) a newcomer listens on average, and a peer without listeners waits."""
        return min(self.interval_for(peers), max(self.listening, self.gap_for(peers)))

    def ttl_for(self, peers: float) -> float:
        """How long an advert holds."""
        return min(LONGEST_ADVERT_TTL, max(self.ttl, _REPEATS * self.interval_for(peers)))

    def wait(self, peers: float, draw: float, *, news: bool) -> float:
        """How long after an advert the next one comes; `draw` is a random number from 0 to 1."""
        gap = self.gap_for(peers)
        return gap if news else max(gap, self.interval_for(peers) * (0.5 + draw))


def changed_much(told: FreeResources, now: FreeResources) -> bool:
    """Whether others should hear of what is free now: a tenth of some amount, or a capability class, came or went."""
    if _named(told) != _named(now) or set(classes_reached(told)) != set(classes_reached(now)):
        return True
    return any(abs(before - after) >= _MUCH * max(before, after, 1) for before, after in _amounts(told, now))


def _named(free: FreeResources) -> tuple[object, ...]:
    devices = {(gpu.uuid, gpu.exclusive) for gpu in free.gpus}
    return free.onboarded, free.draining, free.simulated, devices


def _amounts(told: FreeResources, now: FreeResources) -> list[tuple[int, int]]:
    vram = {gpu.uuid: gpu.vram for gpu in now.gpus}
    return [
        (told.cpu.cores.millicores, now.cpu.cores.millicores),
        (told.ram.size, now.ram.size),
        (told.disk.size, now.disk.size),
        *((gpu.vram, vram[gpu.uuid]) for gpu in told.gpus),
    ]
