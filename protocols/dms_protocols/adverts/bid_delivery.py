"""Both sides of `/dms/bid-delivery/1.0.0`, which carries the bids on a broadcast request to the requester.

A peer may deliver once for each request, only its own bids, and only while the requester waits. Other deliveries are
refused.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

import trio

from ..bidding.checks import BidChecker, Bids
from ..bidding.signing import EnvelopeOpener
from ..errors import BroadcastError
from ..messages.bid import Refusal
from ..messages.broadcast import DeliverBidsAnswer, DeliverBidsRequest
from ..rpc.client import Client
from ..rpc.operations import Caller, Operations
from .broadcasts import BROADCAST_BIDS, OpenedBroadcast

__all__ = ["BidDeliveryClient", "DeliveredBids", "Deliveries"]

_TIMEOUT: Final = 10.0


@dataclass(frozen=True, slots=True)
class DeliveredBids:
    """The delivery of one provider: the checked bids, and the refusals of other nodes."""

    peer_id: str
    bids: Bids


@dataclass(frozen=True, slots=True)
class _Waiting:
    broadcast: OpenedBroadcast
    arrived: trio.MemorySendChannel[DeliveredBids]
    most: int
    delivered: set[str] = field(default_factory=set)


class Deliveries:
    """Receives the deliveries for one requester. `operations` serves the protocol for all searches of the requester."""

    def __init__(self, opener: EnvelopeOpener, *, requester: str, clock: Callable[[], float] = time.time) -> None:
        self._checker = BidChecker(opener, requester, clock)
        self._waiting: dict[tuple[str, int], _Waiting] = {}
        self.operations = Operations()
        """The operations of the protocol."""
        self.operations.slow(DeliverBidsRequest, self._deliver, rate="bids")

    @contextmanager
    def expected(self, broadcast: OpenedBroadcast, *, most: int) -> Iterator[trio.MemoryReceiveChannel[DeliveredBids]]:
        """The deliveries for a request, of at most `most` peers, while the block runs.

        Raises BroadcastError `bad_broadcast` if another search already waits for the same request.
        """
        key = (broadcast.ensemble.id, broadcast.ensemble.nonce)
        if key in self._waiting:
            raise BroadcastError("the same request is waited for already")
        sender, receiver = trio.open_memory_channel[DeliveredBids](most)
        self._waiting[key] = _Waiting(broadcast, sender, most)
        try:
            with sender, receiver:
                yield receiver
        finally:
            del self._waiting[key]

    def _deliver(self, request: DeliverBidsRequest, caller: Caller) -> DeliverBidsAnswer:
        waiting = self._waiting.get((request.ensemble_id, request.nonce))
        if waiting is None or len(waiting.delivered) >= waiting.most:
            raise BroadcastError("nobody waits for bids on this request", code="not_waiting")
        if caller.peer_id in waiting.delivered:
            raise BroadcastError("this peer has delivered its bids", code="delivered_already")
        ensemble, asked = waiting.broadcast.ensemble, waiting.broadcast.request.ensemble
        bids = tuple(
            self._checker.open(raw, ensemble, asked, provider=caller.peer_id, version=BROADCAST_BIDS)
            for raw in request.bids
        )
        waiting.delivered.add(caller.peer_id)
        # The channel has a slot for each peer that may deliver.
        waiting.arrived.send_nowait(DeliveredBids(caller.peer_id, Bids(bids, request.refusals)))
        return DeliverBidsAnswer()


class BidDeliveryClient:
    """A client of `/dms/bid-delivery/1.0.0` at one requester."""

    def __init__(self, client: Client, *, timeout: float = _TIMEOUT) -> None:
        self._client = client
        self._timeout = timeout

    async def deliver(self, ensemble_id: str, nonce: int, bids: Sequence[bytes], refusals: Sequence[Refusal]) -> None:
        """Deliver the caller's own bids. Raises what `Client.call` raises."""
        request = DeliverBidsRequest(ensemble_id=ensemble_id, nonce=nonce, bids=tuple(bids), refusals=tuple(refusals))
        await self._client.call(request, DeliverBidsAnswer, timeout=self._timeout)
