"""Requests bids of all peers, by gossip: the last resort of a requester.

The request is signed and published. Providers that can bid connect to this peer (`adverts.bid_delivery`). If this peer
listens nowhere, only connected providers can answer.
"""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import ExitStack, aclosing, asynccontextmanager
from functools import partial
from typing import Final

import trio

from dms_protocols.adverts.bid_delivery import DeliveredBids, Deliveries
from dms_protocols.adverts.broadcasts import OpenedBroadcast, seal_broadcast
from dms_protocols.bidding.signing import Signer
from dms_protocols.errors import BroadcastError, ProtocolError
from dms_protocols.messages.adverts import MAX_ADDRS
from dms_protocols.messages.bid import EnsembleRequest
from dms_protocols.messages.broadcast import LONGEST_BROADCAST, BroadcastRequest
from dms_protocols.wire.conversion import to_map
from dms_resources.tasks import open_background

from ...requesting.network import BroadcastBids

__all__ = ["BROADCASTS_TOPIC", "GossipBroadcast"]

_log = logging.getLogger(__name__)

BROADCASTS_TOPIC: Final = "/dms/broadcasts/1.0.0"

# Answers that are accepted for each wanted bid.
_MOST_ANSWERS: Final = 8
# Seconds between attempts while no subscriber is connected.
_RETRY: Final = 0.5


class GossipBroadcast:
    """Publishes requests and collects the answers: the `Broadcast` of a requester.

    `publish` sends a message to all peers and returns whether any peer can have received it. `addrs` returns the
    addresses of this peer. `want` is how many answers are enough. `clock` returns the Unix time in seconds.
    """

    def __init__(
        self,
        publish: Callable[[bytes], Awaitable[bool]],
        deliveries: Deliveries,
        signer: Signer,
        addrs: Callable[[], Sequence[str]],
        *,
        want: int = 16,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._publish = publish
        self._deliveries = deliveries
        self._signer = signer
        self._addrs = addrs
        self._want = want
        self._clock = clock

    @asynccontextmanager
    async def ask(
        self, request: EnsembleRequest, *, hold: float = 0.0, ttl: float = 0.0
    ) -> AsyncIterator[AsyncIterator[BroadcastBids]]:
        """Implements `Broadcast.ask`. A request that cannot be broadcast (too large, a deadline too far away, or
        broadcast already) has no answers, and is logged.
        """
        with ExitStack() as stack:
            try:
                raw, broadcast = self._sealed(request, hold, ttl)
                arriving = stack.enter_context(self._deliveries.expected(broadcast, most=_MOST_ANSWERS * self._want))
            except ProtocolError as error:
                _log.warning("the request is not broadcast: %s", error.message)
                raw, arriving = b"", None
            deadline = trio.current_time() + request.deadline - self._clock()
            async with open_background(partial(self._tell, raw)), aclosing(_answers(arriving, deadline)) as answers:
                yield answers

    def _sealed(self, ensemble: EnsembleRequest, hold: float, ttl: float) -> tuple[bytes, OpenedBroadcast]:
        request = BroadcastRequest(
            requester=self._signer.peer_id,
            addrs=tuple(self._addrs())[:MAX_ADDRS],
            ensemble=to_map(ensemble),
            issued_at=self._clock(),
            hold=hold,
            ttl=ttl,
            want=self._want,
        )
        if ensemble.deadline > request.issued_at + LONGEST_BROADCAST:
            raise BroadcastError(f"its deadline is more than {LONGEST_BROADCAST:g} s away")
        return seal_broadcast(request, self._signer), OpenedBroadcast(request, ensemble)

    async def _tell(self, raw: bytes) -> None:
        while raw and not await self._publish(raw):  # noqa: ASYNC110  # no event announces a subscriber
            await trio.sleep(_RETRY)


async def _answers(
    arriving: trio.MemoryReceiveChannel[DeliveredBids] | None, deadline: float
) -> AsyncGenerator[BroadcastBids, None]:
    await trio.lowlevel.checkpoint()
    while arriving is not None:
        delivered: DeliveredBids | None = None
        with trio.move_on_at(deadline):
            delivered = await arriving.receive()
        if delivered is None:
            return
        # The peer is connected, so no address is needed.
        yield BroadcastBids(delivered.peer_id, (), delivered.bids)
