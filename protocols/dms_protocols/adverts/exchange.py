"""Both sides of `/dms/peers/1.0.0`: peers send their own signed adverts, and read those that others hold.

A peer may send only its own advert. All other adverts in the table came from peers that this peer queried. One page
examines a bounded part of the table, whatever the request is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from dms_resources.demands import Demand

from ..errors import AdvertError
from ..messages.peers import AdvertiseAnswer, AdvertiseRequest, AdvertsAnswer, AdvertsRequest
from ..rpc.client import Client
from ..rpc.operations import Answer, Caller, Operations
from .adverts import AdvertTable

__all__ = ["PeersClient", "advert_exchange_operations"]

# Adverts that are examined for one page. This takes less than a millisecond.
_EXAMINED: Final = 256
# Bytes of adverts in one answer.
_PAGE_BYTES: Final = 256 * 1024
_TIMEOUT: Final = 10.0


def advert_exchange_operations(
    table: AdvertTable, own: Callable[[], bytes | None], again_after: Callable[[], float]
) -> Operations:
    """The operations that receive and return the adverts of a table.

    `own` returns this peer's own advert, or None. `again_after` returns the seconds after which a peer should send its
    advert again. Both are called for every request and must not block.
    """
    exchange = _Exchange(table, own, again_after)
    operations = Operations()
    operations.slow(AdvertiseRequest, exchange.advertise, rate="bids")
    operations.slow(AdvertsRequest, exchange.adverts, rate="bids")
    return operations


class _Exchange:
    def __init__(self, table: AdvertTable, own: Callable[[], bytes | None], again_after: Callable[[], float]) -> None:
        self._table = table
        self._own = own
        self._again_after = again_after

    def advertise(self, request: AdvertiseRequest, caller: Caller) -> Answer:
        verdict = self._table.accept(request.advert, sender=caller.peer_id, network=caller.group)
        if verdict.code:
            raise AdvertError("the advert is not taken", code=verdict.code)
        return AdvertiseAnswer(again_after=self._again_after())

    def adverts(self, request: AdvertsRequest, caller: Caller) -> Answer:
        own = self._own()
        first = [] if own is None else [own]
        held, after = self._table.page(request.after, limit=request.limit, examine=_EXAMINED, demand=request.demand)
        raws = first + [one.raw for one in held]
        left, size = 0, 0
        while left < len(raws) and size + len(raws[left]) <= _PAGE_BYTES:
            size += len(raws[left])
            left += 1
        if left < len(raws):
            after = held[left - len(first) - 1].advert.peer_id
        return AdvertsAnswer(adverts=tuple(raws[:left]), next=after)


class PeersClient:
    """A client of `/dms/peers/1.0.0` at one peer. Every call raises what `Client.call` raises."""

    def __init__(self, client: Client, *, timeout: float = _TIMEOUT) -> None:
        self._client = client
        self._timeout = timeout

    async def advertise(self, advert: bytes) -> float:
        """Send the own advert. Returns the seconds after which the peer wants it again."""
        answer = await self._client.call(AdvertiseRequest(advert=advert), AdvertiseAnswer, timeout=self._timeout)
        return answer.again_after

    async def adverts(self, *, limit: int = 16, after: str = "", demand: Demand | None = None) -> AdvertsAnswer:
        """One page of adverts. They are not checked yet: open each one."""
        request = AdvertsRequest(limit=limit, after=after, demand=demand)
        return await self._client.call(request, AdvertsAnswer, timeout=self._timeout)
