"""Sends connected peers the list of served protocols: one message to each peer for all changes made at about the same
time.

What breaks: protocols that are attached or removed after a connection was made are not announced to it. The library's
own push has ten slots for all hosts of a program, takes two round trips, makes and signs the same message for each
peer, and loses its stream, or breaks the connection, when it is cancelled.
Measure: `announcing` owns a task that waits until changes have settled, and then pushes once to each peer.
Upstream: no upstream report found (November 2026).
Source: https://github.com/libp2p/specs/blob/master/identify/README.md ("identify/push").
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final
from weakref import WeakKeyDictionary

import trio
from libp2p.abc import IHost
from libp2p.identity.identify_push.identify_push import ID_PUSH
from libp2p.peer.id import ID
from libp2p.utils.varint import encode_uvarint

from ..errors import DialError
from ..streams.outbound import open_stream
from ..tasks import open_background, shielded
from .identify import identify_message

__all__ = ["Announcements", "announcing"]

logger = logging.getLogger(__name__)

# Seconds.
_SETTLING: Final = 0.05
_PUSH_DEADLINE: Final = 2.0
# Seconds. The longest time for the last push, which is optional.
_GOODBYE_TIMEOUT: Final = 1.0
_AT_ONCE: Final = 16


class Announcements:
    """What was announced to the peers of one host. `announcing` makes it."""

    def __init__(self, host: IHost) -> None:
        self._host = host
        self._changes = self._told = 0
        self._changed = trio.Event()
        self.over = False
        """Whether the task that announces changes has ended."""

    def changed(self) -> None:
        """Schedule an announcement of the protocols that the host serves now. Never blocks."""
        self._changes += 1
        self._changed.set()

    async def keep(self) -> None:
        """Announce changes until cancelled. `announcing` runs it."""
        while True:
            await self._changed.wait()
            # Protocols that are attached together are announced together.
            await trio.sleep(_SETTLING)
            self._changed = trio.Event()
            await self.tell()

    async def tell(self) -> None:
        """Announce what has changed since the last time. Each peer has two seconds; with a plain host it may take
        longer.
        """
        changes = self._changes
        if changes != self._told:
            await _push(self._host)
            self._told = changes

    async def goodbye(self) -> None:
        """Announce the last changes, within a second. Not cancellable."""
        with shielded(_GOODBYE_TIMEOUT):
            await self.tell()


# The open announcements, by host.
_open: WeakKeyDictionary[IHost, Announcements] = WeakKeyDictionary()


@asynccontextmanager
async def announcing(host: IHost, *, goodbye: bool = True) -> AsyncIterator[Announcements]:
    """Announce changes to connected peers while the block runs and, with `goodbye`, the last ones at its end.

    Inside another such block for the same host, the outer block announces, so that protocols that are removed together
    are announced once. An exception of the block is raised as it is.
    """
    current = _open.get(host)
    if current is not None:
        yield current
        return
    own = _open[host] = Announcements(host)
    try:
        async with open_background(own.keep):
            yield own
    finally:
        del _open[host]
        own.over = True
        if goodbye:
            await own.goodbye()


async def _push(host: IHost) -> None:
    peers = host.get_connected_peers()
    if not peers:
        return
    try:
        message = identify_message(host, None).SerializeToString()
        frame = encode_uvarint(len(message)) + message
    except Exception as error:
        # A plain host that is being closed has no addresses.
        logger.debug("there is nothing to announce: %r", error)
        return
    slots = trio.CapacityLimiter(_AT_ONCE)
    async with trio.open_nursery() as nursery:
        for peer_id in peers:
            nursery.start_soon(_push_to, host, peer_id, frame, slots)


async def _push_to(host: IHost, peer_id: ID, frame: bytes, slots: trio.CapacityLimiter) -> None:
    async with slots:
        try:
            with trio.move_on_after(_PUSH_DEADLINE) as scope:
                # Cancelling a write or read of the library's streams breaks their connection. Cancelling ours does not.
                scope.shield = not hasattr(host, "limits")
                async with await open_stream(host, peer_id.to_base58(), [ID_PUSH], _PUSH_DEADLINE) as stream:
                    await stream.send_all(frame)
        except (DialError, trio.BrokenResourceError, trio.ClosedResourceError) as error:
            logger.debug("%s is not told what this peer serves: %r", peer_id, error)
