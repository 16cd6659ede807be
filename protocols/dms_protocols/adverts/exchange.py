"""Both sides of `/dms/peers/1.0.0`: the signed adverts that peers hold, given to whoever asks.

A peer brings its own advert and nobody else's, so that what a table holds of strangers came from those whom its owner
asked. One page looks at a bounded part of the table, whatever is asked for.
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

# Adverts that one page looks at: less than a millisecond.
_EXAMINED: Final = 256
# Bytes of adverts in one answer.
_PAGE_BYTES: Final = 256 * 1024
_TIMEOUT: Final = 10.0


def advert_exchange_operations(
    table: AdvertTable, own: Callable[[], bytes | None], again_after: Callable[[], float]
) -> Operations:
    """The operations that take in and give out the adverts of this table.

    `own` is this peer's own advert, where it has one; `again_after` says after how many seconds a peer is to bring its
    advert again. Both are called for every request and must not wait.
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
        verdict = self._table.accept(request.advert, sender=caller.peer_id)
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
    """Asks `/dms/peers/1.0.0` of one peer. Every call raises what `Client.call` raises."""

    def __init__(self, client: Client, *, timeout: float = _TIMEOUT) -> None:
        self._client = client
        self._timeout = timeout

    async def advertise(self, advert: bytes) -> float:
        """Bring one's own advert; the seconds after which the peer wants it again."""
        answer = await self._client.call(AdvertiseRequest(advert=advert), AdvertiseAnswer, timeout=self._timeout)
        return answer.again_after

    async def adverts(self, *, limit: int = 16, after: str = "", demand: Demand | None = None) -> AdvertsAnswer:
        """One page of adverts, which are to be opened before they are believed."""
        request = AdvertsRequest(limit=limit, after=after, demand=demand)
        return await self._client.call(request, AdvertsAnswer, timeout=self._timeout)
