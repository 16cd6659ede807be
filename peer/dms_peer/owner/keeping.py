"""Renews the leases of detached deployments: the command that took them has ended, and their keep-alive would run out.

A lease is renewed at a third of its keep-alive. One that its provider does not know any more is removed from the
journal. A provider that cannot be reached is asked again.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from functools import partial
from typing import Final

import trio

from dms_resources.ledger.leases import LeaseState

from ..home.lease_journal import HeldLease, LeaseJournal
from ..requesting.peers import CallError, PeerCalls, PeerRef

__all__ = ["keep_deployments"]

_log = logging.getLogger(__name__)

_INTERVAL: Final = 30.0
_BUDGET: Final = 10.0
_AT_ONCE: Final = 8
# What a provider answers about a lease that is no longer this requester's.
_LOST: Final = frozenset({"ended", "evicted", "expired", "not_allocated", "not_committed", "not_holder", "stale_fence"})


async def keep_deployments(journal: LeaseJournal, calls: PeerCalls, *, clock: Callable[[], float] = time.time) -> None:
    """Renews what the journal says is to be kept, until cancelled. Raises nothing else. Reads the journal in a thread.

    `clock` returns the Unix time in seconds.
    """
    turns = trio.CapacityLimiter(_AT_ONCE)
    while True:
        try:
            held = await trio.to_thread.run_sync(journal.leases)
            addrs = {one.peer_id: one.addrs for one in await trio.to_thread.run_sync(journal.providers)}
        except OSError as error:
            _log.error("the journal of leases cannot be read: %s", error)
        else:
            async with trio.open_nursery() as nursery:
                for one in held:
                    if _is_due(one, clock()):
                        peer = PeerRef(one.peer_id, addrs.get(one.peer_id, ()))
                        nursery.start_soon(_renew, journal, calls, one, peer, turns)
        await trio.sleep(_INTERVAL)


def _is_due(held: HeldLease, now: float) -> bool:
    lease = held.lease
    return held.kept and lease.state is LeaseState.ALLOCATED and lease.ttl > 0 and now - held.seen >= lease.ttl / 3


async def _renew(
    journal: LeaseJournal, calls: PeerCalls, held: HeldLease, peer: PeerRef, turns: trio.CapacityLimiter
) -> None:
    lease = held.lease
    try:
        async with turns:
            renewed = await calls.renew(
                peer, lease.lease_id, ttl=lease.ttl, fence=lease.fence, budget=_BUDGET, before=lease
            )
        await trio.to_thread.run_sync(partial(journal.note, held.peer_id, [renewed], kept=True))
    except CallError as error:
        if error.remote is None or error.code not in _LOST:
            _log.warning("not renewed: lease=%s peer=%s error=%s", lease.lease_id, held.peer_id, error.code)
            return
        _log.warning("a lease has ended: lease=%s peer=%s code=%s", lease.lease_id, held.peer_id, error.code)
        try:
            await trio.to_thread.run_sync(journal.forget, held.peer_id, [lease.lease_id])
        except OSError as problem:
            _log.error("the journal of leases cannot be written: %s", problem)
    except OSError as problem:
        _log.error("the journal of leases cannot be written: %s", problem)
