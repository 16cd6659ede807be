"""When a peer publishes its advert.

Rules:

1. All peers together send at most `rate` adverts per second, however many they are: with N peers each leaves N / rate
   seconds between two of its own, and at least `gap`. This is the idea of RTCP (RFC 3550, section 6.2): a group spends
   a fixed rate on announcing its members, independent of its size.
2. If nothing changes, an advert is repeated every `interval` seconds, or N / rate if that is more.
3. Peers are not synchronous: an interval is random between half and one and a half of its length. When it is over, it
   is computed again with the number of peers known then, and continues if there are many more (RFC 3550, section 6.3.3,
   "timer reconsideration"; there it is drawn again each time, which needs a correction).
4. An advert is valid for several intervals, so that no peer disappears because one is lost.
5. A new peer listens first, and then follows the same rules: in a large network more peers may start in a second than
   may publish in it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from dms_protocols.adverts.classes import classes_reached
from dms_protocols.messages.adverts import LONGEST_ADVERT_TTL
from dms_resources.components import FreeResources

__all__ = ["AdvertSchedule", "changed_much"]

# A time to live is at least this many intervals.
_REPEATS: Final = 3.0
# The part of an amount that has to change before a message is worthwhile.
_MUCH: Final = 0.1


@dataclass(frozen=True, slots=True)
class AdvertSchedule:
    """Times are in seconds. `ttl` is how long an advert is valid in a small network; `rate` is adverts per second.

    `listening` is how long a new peer listens, and how long a peer without listeners waits before it publishes again.
    """

    interval: float = 60.0
    ttl: float = 600.0
    rate: float = 2.0
    gap: float = 1.0
    listening: float = 5.0

    @property
    def longest(self) -> float:
        """The longest interval at which one advert may be lost before its peer counts as gone."""
        return LONGEST_ADVERT_TTL / _REPEATS

    def interval_for(self, peers: float) -> float:
        """The average time between repetitions, in a network of this many peers."""
        return min(self.longest, max(self.interval, peers / self.rate))

    def gap_for(self, peers: float) -> float:
        """The least time (seconds) between two adverts."""
        return min(self.interval_for(peers), max(self.gap, peers / self.rate))

    def listening_for(self, peers: float) -> float:
        """The average time (seconds) for which a new peer listens, and for which a peer without listeners waits."""
        return min(self.interval_for(peers), max(self.listening, self.gap_for(peers)))

    def ttl_for(self, peers: float) -> float:
        """How long an advert is valid."""
        return min(LONGEST_ADVERT_TTL, max(self.ttl, _REPEATS * self.interval_for(peers)))

    def wait(self, peers: float, draw: float, *, news: bool) -> float:
        """The time between an advert and the next one. `draw` is a random number from 0 to 1."""
        gap = self.gap_for(peers)
        return gap if news else max(gap, self.interval_for(peers) * (0.5 + draw))


def changed_much(told: FreeResources, now: FreeResources) -> bool:
    """Whether the change is worth publishing: a tenth of an amount, or a capability class gained or lost."""
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
