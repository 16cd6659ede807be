"""Queries connected peers for the adverts that they hold. Even with no other source, one known address leads to all
peers.

The adverts are proved by their signatures, and are kept like those from gossip. Few peers are queried, and each for a
bounded number of pages. Each requester begins at another peer id, so that not all of them query the same peers first.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Final

import trio

from dms_host.errors import DialError
from dms_protocols.adverts.adverts import AdvertTable, could_hold
from dms_protocols.adverts.exchange import PeersClient
from dms_protocols.errors import ProtocolError
from dms_protocols.messages.adverts import CapacityAdvert
from dms_protocols.messages.bid import EnsembleRequest
from dms_protocols.messages.peers import MAX_ADVERTS
from dms_protocols.protocol_ids import PEERS_PROTOCOL
from dms_resources.demands import Demand
from dms_resources.tasks import open_background

from ...requesting.network import Candidate, PeerNetwork
from .source import advert_candidate

__all__ = ["ExchangeSource"]

_log = logging.getLogger(__name__)

_WAITING: Final = 16


class ExchangeSource:
    """A CandidateSource of peers that others know to have free capacity.

    `partners` returns the peers to query, with their addresses.
    """

    name = "exchange"

    def __init__(
        self,
        network: PeerNetwork,
        table: AdvertTable,
        partners: Callable[[], Mapping[str, Sequence[str]]],
        *,
        most: int = 4,
        pages: int = 32,
        page_deadline: float = 5.0,
        network_of: Callable[[str], str] = lambda peer_id: "",
    ) -> None:
        self._network_of = network_of
        self._network = network
        self._table = table
        self._partners = partners
        self._most = most
        self._pages = pages
        self._page_deadline = page_deadline

    @asynccontextmanager
    async def candidates(self, request: EnsembleRequest) -> AsyncIterator[AsyncIterator[Candidate]]:
        """Yield candidates as the partners answer."""
        sender, receiver = trio.open_memory_channel[Candidate](_WAITING)
        asking = _Asking(request, self._table, sender, self.name, self._network.peer_id)
        async with receiver, open_background(partial(self._ask_all, asking, sender)):
            yield receiver

    async def _ask_all(self, asking: _Asking, sender: trio.MemorySendChannel[Candidate]) -> None:
        partners = [(peer_id, addrs) for peer_id, addrs in self._partners().items() if peer_id != self._network.peer_id]
        async with sender, trio.open_nursery() as nursery:
            for peer_id, addrs in partners[: self._most]:
                nursery.start_soon(self._ask, asking, peer_id, addrs)

    async def _ask(self, asking: _Asking, peer_id: str, addrs: Sequence[str]) -> None:
        try:
            async with self._network.client(peer_id, PEERS_PROTOCOL, addrs) as client:
                peers = PeersClient(client, timeout=self._page_deadline)
                await self._ask_for_pages(asking, peers, self._network_of(peer_id))
        except (DialError, ProtocolError) as error:
            _log.debug("%s gives no adverts: %s", peer_id, error)

    async def _ask_for_pages(self, asking: _Asking, peers: PeersClient, network: str) -> None:
        start = after = self._network.peer_id
        wrapped = False
        for _ in range(self._pages):
            answer = await peers.adverts(limit=MAX_ADVERTS, after=after, demand=asking.demand)
            # The peer's own advert and the page, however many it sends.
            for raw in answer.adverts[: 1 + MAX_ADVERTS]:
                await asking.take(raw, network)
            before, after = after, answer.next
            if not after and not wrapped:
                wrapped = True
            elif not after or after <= before or (wrapped and after >= start):
                return


class _Asking:
    """The finds of one search. Each peer is named once."""

    def __init__(
        self,
        request: EnsembleRequest,
        table: AdvertTable,
        sender: trio.MemorySendChannel[Candidate],
        source: str,
        own_id: str,
    ) -> None:
        self._request = request
        self._table = table
        self._sender = sender
        self._source = source
        self._named = {own_id, *request.peer_exclusion}

    @property
    def demand(self) -> Demand | None:
        """The demand for the query, if one demand covers the request."""
        demands = {node.resources for node in self._request.request}
        return demands.pop() if len(demands) == 1 else None

    async def take(self, raw: bytes, network: str) -> None:
        advert = self._table.accept(raw, network=network).advert
        if advert is None or advert.peer_id in self._named:
            return
        held = self._table.get(advert.peer_id)
        if held is not None and self._could_hold_some(held.advert):
            self._named.add(advert.peer_id)
            await self._sender.send(advert_candidate(held, self._source))

    def _could_hold_some(self, advert: CapacityAdvert) -> bool:
        return any(could_hold(advert, node) for node in self._request.request)
