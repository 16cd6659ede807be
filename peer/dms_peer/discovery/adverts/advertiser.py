"""Publishes what this peer has free: to all peers by gossip, and to connected peers directly.

A new advert is made when its time has come or when much has changed, but no sooner than the network can bear
(`advert_schedule`). A change that is undone before the next advert is not published.
"""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import trio

from dms_host.errors import DialError
from dms_protocols.adverts.exchange import PeersClient
from dms_protocols.errors import ProtocolError
from dms_protocols.protocol_ids import PEERS_PROTOCOL
from dms_resources.components import FreeResources
from dms_resources.manager import ResourceManager

from ...requesting.network import PeerNetwork
from .own_advert import OwnAdvert
from .peer_count import PeerCount
from .schedule import AdvertSchedule, changed_much

__all__ = ["AdvertKeeper", "AdvertPusher"]

_log = logging.getLogger(__name__)

# The period in which a peer has to be heard, in intervals.
_PERIOD: Final = 2.0
# Seconds until a peer that failed, or that does not speak the protocol, is tried again.
_RETRY: Final = 30.0
_NOT_THERE: Final = 300.0
_PUSH_DEADLINE: Final = 10.0


class AdvertKeeper:
    """Keeps this peer's own advert up to date.

    `publish` sends it to all peers, and returns whether any peer can have received it; None if there is no way to
    publish.
    """

    def __init__(
        self,
        own: OwnAdvert,
        manager: ResourceManager,
        schedule: AdvertSchedule,
        count: PeerCount,
        publish: Callable[[bytes], Awaitable[bool]] | None,
        *,
        draw: Callable[[], float] = random.random,
        moved: Callable[[], Awaitable[None]] = trio.sleep_forever,
    ) -> None:
        self._moved = moved
        self._has_moved = False
        self._own = own
        self._manager = manager
        self._schedule = schedule
        self._count = count
        self._publish = publish
        self._draw = draw
        self._told: FreeResources | None = None
        self._heard = False
        self._silent = True
        self._changed = trio.Event()
        self._renewed = trio.Event()
        self.news = 0
        """It grows when an advert says something new, and not when it only repeats the one before."""

    async def wait_renewed(self) -> None:
        """Return when there is a new advert."""
        await self._renewed.wait()

    async def keep(self) -> None:
        """Run until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch)
            nursery.start_soon(self._watch_addresses)
            # Build the advert now for direct queries. Publish it after estimating the network size.
            raw = self._renew()
            if self._publish is not None:
                await self._wait_until_due()
                raw = self._renew()
            while True:
                await self._tell(raw)
                await self._wait_until_due()
                raw = self._renew()

    async def _watch(self) -> None:
        async with self._manager.watch() as changes:
            async for _ in changes:
                self._changed.set()

    async def _watch_addresses(self) -> None:
        while True:
            await self._moved()
            self._has_moved = True
            self._changed.set()

    @property
    def _has_news(self) -> bool:
        """Whether the next advert says something else than the last one."""
        told = self._told
        return told is None or self._has_moved or changed_much(told, self._manager.get_free_resources())

    def _renew(self) -> bytes:
        peers = self._count.estimate()
        self._count.period = _PERIOD * self._schedule.interval_for(peers)
        self.news += self._has_news
        free = self._told = self._manager.get_free_resources()
        self._has_moved = False
        raw = self._own.renew(free, self._schedule.ttl_for(peers))
        self._renewed.set()
        self._renewed = trio.Event()
        return raw

    async def _tell(self, raw: bytes) -> None:
        self._silent = False
        self._heard = self._publish is None or not self._own.is_public or await self._publish(raw)

    async def _wait_until_due(self) -> None:
        last, draw = trio.current_time(), self._draw()
        while True:
            self._changed = trio.Event()
            due = last + self._wait(draw)
            if due <= trio.current_time():
                return
            with trio.move_on_at(due):
                await self._changed.wait()

    def _wait(self, draw: float) -> float:
        """The seconds from the last advert to the next, by what is known now."""
        peers = self._count.estimate()
        if self._silent:
            # Random, so that it is not synchronous with other peers that started at the same time.
            return self._schedule.listening_for(peers) * (0.5 + draw)
        if not self._heard:
            return self._schedule.listening_for(peers)
        return self._schedule.wait(peers, draw, news=self._has_news)


@dataclass(slots=True)
class _Told:
    """The last advert that one peer got, and the latest and the earliest time of the next one."""

    sequence: int
    news: int
    due: float
    soonest: float


class AdvertPusher:
    """Sends the own advert to connected peers, each as often as it wants.

    `partners` returns them with their addresses; the first `most` of them get the advert. `partners_changed` returns
    when they may have changed. At least `pause` seconds lie between two checks.
    """

    def __init__(
        self,
        own: OwnAdvert,
        keeper: AdvertKeeper,
        network: PeerNetwork,
        partners: Callable[[], Mapping[str, Sequence[str]]],
        partners_changed: Callable[[], Awaitable[None]],
        schedule: AdvertSchedule,
        *,
        most: int = 8,
        pause: float = 0.2,
    ) -> None:
        self._own = own
        self._keeper = keeper
        self._network = network
        self._partners = partners
        self._partners_changed = partners_changed
        self._schedule = schedule
        self._most = most
        self._pause = pause
        self._told: dict[str, _Told] = {}
        self._bringing: set[str] = set()
        self._woken = trio.Event()

    async def keep(self) -> None:
        """Send the advert to new partners, and each new advert to all, as soon as allowed. Runs until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._wake_after, self._keeper.wait_renewed)
            nursery.start_soon(self._wake_after, self._partners_changed)
            while True:
                self._woken = trio.Event()
                next_due = self._look(nursery)
                # Partners that connect at the same time get the advert together.
                await trio.sleep(self._pause)
                with trio.move_on_at(next_due):
                    await self._woken.wait()

    async def _wake_after(self, event: Callable[[], Awaitable[None]]) -> None:
        while True:
            # Set before the first wait too, because an event may have passed already.
            self._woken.set()
            await event()

    def _look(self, nursery: trio.Nursery) -> float:
        """Start to send the advert to every partner that is due. Returns when the next one is due."""
        partners = dict(list(self._partners().items())[: self._most])
        self._told = {peer_id: told for peer_id, told in self._told.items() if peer_id in partners}
        raw, next_due = self._own.raw, math.inf
        if raw is None:
            return next_due
        for peer_id, addrs in partners.items():
            if peer_id == self._own.peer_id or peer_id in self._bringing:
                continue
            due = self._due(peer_id)
            if due > trio.current_time():
                next_due = min(next_due, due)
                continue
            self._bringing.add(peer_id)
            # A partner that does not answer delays no other.
            nursery.start_soon(self._bring, peer_id, addrs, raw, self._own.sequence)
        return next_due

    def _due(self, peer_id: str) -> float:
        told = self._told.get(peer_id)
        if told is None:
            return -math.inf
        if told.sequence >= self._own.sequence:
            return math.inf
        return told.soonest if told.news < self._keeper.news else told.due

    async def _bring(self, peer_id: str, addrs: Sequence[str], raw: bytes, sequence: int) -> None:
        # Until the peer has accepted it, the advert is still to be sent.
        news, taken, wait, pause = self._keeper.news, -1, _RETRY, _RETRY
        with trio.move_on_after(_PUSH_DEADLINE):
            try:
                async with self._network.client(peer_id, PEERS_PROTOCOL, addrs) as client:
                    asked = await PeersClient(client, timeout=_PUSH_DEADLINE).advertise(raw)
                # Not so late that the peer would have dropped the advert, whatever time it asks for.
                taken, pause = sequence, self._schedule.gap
                wait = min(max(asked, pause), self._schedule.ttl / 2)
            except DialError as error:
                wait = pause = _NOT_THERE if error.code == "protocol_not_supported" else _RETRY
            except ProtocolError as error:
                _log.debug("%s does not take the advert: %s", peer_id, error)
        now = trio.current_time()
        self._told[peer_id] = _Told(taken, news, now + wait, now + pause)
        self._bringing.discard(peer_id)
        self._woken.set()
