"""Adverts of other peers' free capacity: kept, passed on, and used as a source of candidates."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from typing import Final

import trio

from dms_protocols.adverts.adverts import AdvertTable, HeldAdvert
from dms_protocols.messages.bid import EnsembleRequest

from ...requesting.network import Candidate
from ..gossip.gossip import GossipVerdict

__all__ = ["ADVERTS_TOPIC", "AdvertSource", "AdvertValidator", "advert_candidate"]

ADVERTS_TOPIC: Final = "/dms/adverts/1.0.0"

# The advert was valid when it was sent. The peer that forwarded it has another clock, or was slow.
_NOT_ITS_FAULT: Final = frozenset({"advert_expired", "advert_ahead"})


def advert_candidate(held: HeldAdvert, source: str) -> Candidate:
    """The candidate for the peer of an advert. The age of its figures is the age of the advert."""
    advert = held.advert
    return Candidate(advert.peer_id, advert.addrs, source, advert.free, advert.issued_at)


class AdvertValidator:
    """Decides about each message on the topic: adverts that are new to the table are passed on, known ones are not."""

    def __init__(self, table: AdvertTable, network_of: Callable[[str], str] = lambda peer_id: "") -> None:
        """`network_of` returns the network of a connected peer."""
        self._table = table
        self._network_of = network_of

    async def __call__(self, bringer: str, data: bytes) -> GossipVerdict:
        """Judge one message: a validator for `Gossip.subscribe`."""
        await trio.lowlevel.checkpoint()
        verdict = self._table.accept(data, network=self._network_of(bringer))
        if verdict.outcome == "new":
            return GossipVerdict.ACCEPT
        if verdict.outcome == "old" or verdict.code in _NOT_ITS_FAULT:
            return GossipVerdict.IGNORE
        return GossipVerdict.REJECT


class AdvertSource:
    """A CandidateSource of the peers whose adverts report enough free capacity. It queries no peer."""

    name = "adverts"

    def __init__(self, table: AdvertTable) -> None:
        self._table = table

    @asynccontextmanager
    async def candidates(self, request: EnsembleRequest) -> AsyncIterator[AsyncIterator[Candidate]]:
        """Yield peers whose adverts fit, the tightest fit first."""
        async with aclosing(self._candidates(request)) as found:
            yield found

    async def _candidates(self, request: EnsembleRequest) -> AsyncGenerator[Candidate, None]:
        await trio.lowlevel.checkpoint()
        for held in self._table.matching(request):
            yield advert_candidate(held, self.name)
