"""Answers broadcast requests: a provider that can bid delivers its bids to the requester.

Rules:

1. Each request is examined once. It is not passed on if it was seen before, has expired, has no valid signature, or
   exceeds the rate of its requester.
2. Only providers that can bid on at least one node answer. Refusals are not sent.
3. Providers do not all answer at once: each waits for a random time. The time is longer if more peers are expected to
   answer, but at most half of the remaining time.
4. Not all providers answer. If there are several times more capable providers than the requester wants, each answers
   with the probability that leaves the right number. The number of capable providers is estimated from the number of
   peers that are heard and the share of suitable adverts. A provider that knows no other always answers.
5. All of it runs in the background within limits. Broadcasts above them are not answered.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

import trio

from dms_host.errors import DialError
from dms_protocols.adverts.adverts import AdvertTable
from dms_protocols.adverts.bid_delivery import BidDeliveryClient
from dms_protocols.adverts.broadcasts import OpenedBroadcast, SeenBroadcasts, open_broadcast
from dms_protocols.bidding.signing import EnvelopeOpener
from dms_protocols.errors import BroadcastError, ProtocolError
from dms_protocols.logs import LimitedLog
from dms_protocols.messages.bid import BidAnswer, BidRequest
from dms_protocols.protocol_ids import BID_DELIVERY_PROTOCOL
from dms_protocols.rpc.operations import Caller, Operations
from dms_protocols.token_bucket import TokenBucket
from dms_resources.bounded_dict import BoundedDict
from dms_resources.errors import ResourcesError

from ...requesting.network import PeerNetwork
from ..gossip.gossip import GossipVerdict
from .peer_count import PeerCount

__all__ = ["AnswerLimits", "BroadcastAnswers", "BroadcastValidator"]

_log = logging.getLogger(__name__)
_limited_log: Final = LimitedLog(_log)

# Adverts that are examined to estimate how many peers are able.
_EXAMINED: Final = 128


@dataclass(frozen=True, slots=True)
class AnswerLimits:
    """Limits on answering broadcasts. Times are in seconds."""

    # Requests that wait for the time of their answer, or that are being answered.
    waiting: int = 256
    answering: int = 8
    # Requests of one requester, on average and at once, and the number of requesters whose use is remembered.
    per_second: float = 0.2
    burst: float = 8.0
    requesters: int = 1024
    # This multiple of the wanted bids may answer, because some peers are gone, refuse or are late.
    factor: float = 4.0
    # The answers per second that a requester should get at most.
    spread: float = 50.0
    # The time for computing the bids and for delivering them.
    deadline: float = 10.0


class BroadcastValidator:
    """Decides about each message on the topic. New valid requests go to `accepted`, which must not wait."""

    def __init__(
        self,
        opener: EnvelopeOpener,
        accepted: Callable[[OpenedBroadcast], None] = lambda broadcast: None,
        *,
        limits: AnswerLimits | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._opener = opener
        self._accepted = accepted
        self._limits = limits or AnswerLimits()
        self._clock = clock
        self._seen = SeenBroadcasts()
        self._requesters: BoundedDict[str, TokenBucket] = BoundedDict(self._limits.requesters)

    async def __call__(self, bringer: str, data: bytes) -> GossipVerdict:
        """Judge one message: a validator for `Gossip.subscribe`."""
        await trio.lowlevel.checkpoint()
        now = self._clock()
        try:
            broadcast = open_broadcast(data, self._opener, now=now)
        except BroadcastError as error:
            # The clock of the peer that forwarded it may differ.
            return GossipVerdict.IGNORE if error.code == "broadcast_expired" else GossipVerdict.REJECT
        except ProtocolError:
            return GossipVerdict.REJECT
        if not self._seen.add(broadcast, now=now) or not self._admits(broadcast.request.requester):
            return GossipVerdict.IGNORE
        self._accepted(broadcast)
        return GossipVerdict.ACCEPT

    def _admits(self, requester: str) -> bool:
        now = trio.current_time()
        bucket = self._requesters.recent(requester)
        if bucket is None:
            bucket = self._requesters[requester] = TokenBucket(self._limits.per_second, self._limits.burst, now)
        return bucket.take(now)


class BroadcastAnswers:
    """Answers for one provider. `bids` are its operations of `/dms/bid/1.1.0`, whose answers go to the requester.

    `may_ask` returns whether a requester is answered at all. `clock` returns the Unix time in seconds.
    """

    def __init__(
        self,
        bids: Operations,
        network: PeerNetwork,
        table: AdvertTable,
        count: PeerCount,
        *,
        limits: AnswerLimits | None = None,
        may_ask: Callable[[str], bool] = lambda requester: True,
        clock: Callable[[], float] = time.time,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self._bid: Callable[[BidRequest, Caller], Any] = bids["bid_request"].handler
        self._network = network
        self._table = table
        self._count = count
        self._limits = limits or AnswerLimits()
        self._may_ask = may_ask
        self._clock = clock
        self._draw = draw
        self._sender, self._requests = trio.open_memory_channel[OpenedBroadcast](self._limits.waiting)
        self._turns = trio.CapacityLimiter(self._limits.answering)
        self._waiting = 0
        self.answered = 0
        """The number of requests that were answered."""

    def put(self, broadcast: OpenedBroadcast) -> None:
        """Queue this request, to be answered at its time, if the queue has space. Never waits."""
        with suppress(trio.WouldBlock):
            self._sender.send_nowait(broadcast)

    async def run(self) -> None:
        """Answer until cancelled."""
        async with trio.open_nursery() as nursery:
            async for broadcast in self._requests:
                if self._waiting < self._limits.waiting and self._is_for_us(broadcast):
                    self._waiting += 1
                    nursery.start_soon(self._answer, broadcast)

    def _is_for_us(self, broadcast: OpenedBroadcast) -> bool:
        own, requester = self._network.peer_id, broadcast.request.requester
        return own not in (requester, *broadcast.ensemble.peer_exclusion) and self._may_ask(requester)

    async def _answer(self, broadcast: OpenedBroadcast) -> None:
        try:
            delay = self._delay(broadcast)
            if delay is None:
                return
            await trio.sleep(delay)
            async with self._turns:
                with trio.move_on_after(min(self._limits.deadline, broadcast.ensemble.deadline - self._clock())):
                    await self._bring_bids(broadcast)
        except (DialError, ProtocolError, ResourcesError) as error:
            _log.debug("a broadcast request is not answered: %s", error)
        except Exception as error:
            _limited_log.error("answering a broadcast request failed: %r", error)
        finally:
            self._waiting -= 1

    def _delay(self, broadcast: OpenedBroadcast) -> float | None:
        """The seconds until the answer; None for no answer."""
        left = broadcast.ensemble.deadline - self._clock()
        if left <= 0:
            return None
        able = max(1.0, self._count.estimate() * self._table.share_able(broadcast.ensemble, examine=_EXAMINED))
        answering = min(able, broadcast.request.want * self._limits.factor)
        if self._draw() * able >= answering:
            return None
        return self._draw() * min(left / 2, answering / self._limits.spread)

    async def _bring_bids(self, broadcast: OpenedBroadcast) -> None:
        request, ensemble = broadcast.request, broadcast.ensemble
        asked = BidRequest(ensemble=request.ensemble, hold=request.hold, ttl=request.ttl)
        answer = self._bid(asked, Caller(request.requester))
        if isinstance(answer, Coroutine):
            answer = await answer
        if not isinstance(answer, BidAnswer) or not answer.bids:
            return
        async with self._network.client(request.requester, BID_DELIVERY_PROTOCOL, request.addrs) as client:
            delivery = BidDeliveryClient(client, timeout=self._limits.deadline)
            await delivery.deliver(ensemble.id, ensemble.nonce, answer.bids, answer.refusals)
        self.answered += 1
