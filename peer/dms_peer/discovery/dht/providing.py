"""Keeps the provider records of this peer in the DHT: one for each class that its free capacity reaches.

A newly reached class is announced soon. A class that is no longer reached is not announced again, and its records
expire (Kademlia cannot withdraw one). So one lease more or less costs nothing, unless free capacity rises across a
power of two. All classes are announced again at intervals, and when so many peers have joined that other peers may have
to keep the records.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from typing import Final

import trio

from dms_protocols.adverts.classes import CapabilityClass, classes_reached
from dms_protocols.logs import LimitedLog
from dms_protocols.rpc.access import CurrentRules
from dms_resources.components import FreeResources
from dms_resources.manager import ResourceManager

from .kademlia import Kademlia

__all__ = ["keep_providing"]

_log = logging.getLogger(__name__)
_limited_log: Final = LimitedLog(_log)

# Seconds. Changes of capacity that last for less than the first of them are ignored.
_SETTLING: Final = 5.0
_RETRY: Final = 30.0
_DEADLINE: Final = 300.0


async def keep_providing(
    dht: Kademlia,
    manager: ResourceManager,
    *,
    interval: float = 1500.0,
    settling: float = _SETTLING,
    rng: Callable[[], float] = random.random,
    access: CurrentRules | None = None,
) -> None:
    """Announce the reached classes, every `interval` seconds (plus or minus a tenth) and when one is new.

    Runs until cancelled. It waits until there is a peer that accepts announcements. Two announcements are at least
    `settling` seconds apart. Nothing is announced while `access` does not let everybody know what is free.
    """
    access = access or CurrentRules()
    announced: frozenset[CapabilityClass] = frozenset()
    all_due, told = trio.current_time(), 0
    while True:
        await dht.wait_joined()
        reached = _reached(manager.get_free_resources(), access)
        everything = trio.current_time() >= all_due or dht.peers >= 2 * told
        due = reached if everything else reached - announced
        if due and not await _announce(dht, due):
            await trio.sleep(_RETRY)
            continue
        announced = reached
        if everything:
            all_due, told = trio.current_time() + interval * (0.9 + 0.2 * rng()), max(dht.peers, 1)
        await trio.sleep(settling)
        with trio.move_on_at(all_due):
            announced = await _wait_until_due(dht, manager, access, announced, 2 * told)


async def _wait_until_due(
    dht: Kademlia, manager: ResourceManager, access: CurrentRules, announced: frozenset[CapabilityClass], peers: int
) -> frozenset[CapabilityClass]:
    """Return when a class is reached that is not announced, or when there are this many peers."""
    async with trio.open_nursery() as nursery:

        async def wait_for_peers() -> None:
            await dht.wait_peers(peers)
            nursery.cancel_scope.cancel()

        nursery.start_soon(wait_for_peers)
        announced = await _wait_for_more(manager, access, announced)
        nursery.cancel_scope.cancel()
    return announced


async def _announce(dht: Kademlia, classes: frozenset[CapabilityClass]) -> bool:
    with trio.move_on_after(_DEADLINE):
        try:
            return await dht.announce(classes) > 0
        except* Exception as group:
            # An error here must not end the peer. The announcement is tried again.
            _limited_log.error("announcing in the DHT failed: %r", group.exceptions[0])
    return False


def _reached(free: FreeResources, access: CurrentRules) -> frozenset[CapabilityClass]:
    return frozenset(classes_reached(free)) if access.rules.is_public("free") else frozenset()


async def _wait_for_more(
    manager: ResourceManager, access: CurrentRules, announced: frozenset[CapabilityClass]
) -> frozenset[CapabilityClass]:
    """Return when a class is reached that is not announced, with the classes that were reached all the time."""
    kept = announced
    async with manager.watch() as changes:
        async for free in changes:
            reached = _reached(free, access)
            kept &= reached
            if reached - kept:
                return kept
    return kept
