"""Queries one peer after the other, and no more than necessary.

Rules:

1. At first, as many peers are queried as answers are missing, and `slack` more. A peer that answers but does not help,
   or fails, frees a slot for the next; so does a peer that has been silent for `hedge_delay`, whose answer is still
   used.
2. If few of the answers help, more peers are queried at the same time, in proportion; never more than `peers_in_flight`
   at once, nor than `peers_asked` in total.
3. The sources are used in their order, one after the other, and only as far as they are needed. A source that is silent
   for `source_patience` is abandoned. No peer is queried twice, except to repeat a query on purpose, or if it was not
   reached and another source names another address.
4. The last resort begins when the sources have ended and the queried peers do not suffice.
5. As soon as nothing is missing, everything that is pending is cancelled.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from typing import TypeAlias

import trio

from dms_protocols.messages.bid import EnsembleRequest

from .limits import RequesterLimits
from .network import Candidate, CandidateSource

__all__ = ["Inquiry", "Search"]

Inquiry: TypeAlias = Callable[[], Awaitable[bool]]
"""Queries one peer. Returns whether that helped."""


class Search:
    """One search. `missing` returns how many more helpful answers are worth requesting; 0 ends the search.

    `inquire` returns the inquiry for a candidate, or None if it need not be queried. `at_source` is called with the
    source that is used next. Everything that `inquire` makes runs in `run` and raises nothing but cancellation.
    """

    def __init__(
        self,
        limits: RequesterLimits,
        missing: Callable[[], int],
        inquire: Callable[[Candidate], Inquiry | None],
        *,
        at_source: Callable[[str], None] = lambda name: None,
        skip: Iterable[str] = (),
    ) -> None:
        self._limits = limits
        self._missing = missing
        self._inquire = inquire
        self._at_source = at_source
        self._skip = frozenset(skip)
        # The addresses at which each peer was queried, the peers not reached there, and their further addresses.
        self._asked_at: dict[str, set[str]] = {}
        self._unreached: set[str] = set()
        self._elsewhere: dict[str, Candidate] = {}
        self._again: deque[Inquiry] = deque()
        self._late_at: dict[int, float] = {}
        self._short = 0
        self._asked = 0
        self._answered = 0
        self._helpful = 0
        self._news = trio.lowlevel.ParkingLot()
        self._leftover: Callable[[], Iterable[Inquiry]] = tuple
        self._nursery: trio.Nursery

    async def run(
        self,
        sources: Sequence[CandidateSource],
        request: EnsembleRequest,
        *,
        first: Sequence[Candidate] = (),
        leftover: Callable[[], Iterable[Inquiry]] = tuple,
        last_resort: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """Search until nothing is missing or no peer is left. Raises nothing but cancellation, which ends all of it.

        `leftover` returns inquiries that are worth making when the sources have ended.
        """
        self._leftover = leftover
        self._short = self._missing()
        if not self._short:
            return
        async with trio.open_nursery() as self._nursery:
            for candidate in first:
                await self._turn()
                self._consider(candidate)
            for source in sources:
                if self._exhausted:
                    break
                await self._turn()
                self._at_source(source.name)
                async with source.candidates(request) as found:
                    await self._use(found)
            # A late peer may still answer, but the last resort does not wait for it.
            while self._on_time() or self._put_again():
                await self._wait_for_news()
                self._pump()
            if last_resort is not None:
                await last_resort()
            while self._late_at or self._put_again():
                await self._wait_for_news()
                self._pump()

    def again(self, inquiry: Inquiry) -> None:
        """Query a peer again, as soon as a slot is free."""
        self._again.append(inquiry)

    def unreached(self, peer_id: str) -> None:
        """Note that a peer was not reached: it is queried again at an address from another source."""
        self._unreached.add(peer_id)
        self._ask_elsewhere(peer_id)

    def check(self) -> None:
        """Check again whether anything is missing, because a change may end or widen the search."""
        self._short = self._missing()
        if not self._short:
            self._nursery.cancel_scope.cancel()
        self._news.unpark_all()

    @property
    def _exhausted(self) -> bool:
        return self._asked >= self._limits.peers_asked

    async def _use(self, found: AsyncIterator[Candidate]) -> None:
        while not self._exhausted:
            await self._turn()
            candidate: Candidate | None = None
            with trio.move_on_after(self._limits.source_patience):
                candidate = await anext(found, None)
            if candidate is None:
                return
            self._consider(candidate)

    def _consider(self, candidate: Candidate) -> None:
        peer_id = candidate.peer_id
        if peer_id in self._skip or self._exhausted:
            return
        known = self._asked_at.get(peer_id)
        if known is not None:
            if not known.issuperset(candidate.addrs):
                self._elsewhere[peer_id] = candidate
                self._ask_elsewhere(peer_id)
            return
        self._asked_at[peer_id] = set(candidate.addrs)
        inquiry = self._inquire(candidate)
        if inquiry is not None:
            self._start(inquiry)

    def _ask_elsewhere(self, peer_id: str) -> None:
        if peer_id not in self._unreached or peer_id not in self._elsewhere:
            return
        candidate = self._elsewhere.pop(peer_id)
        self._unreached.remove(peer_id)
        self._asked_at[peer_id].update(candidate.addrs)
        inquiry = self._inquire(candidate)
        if inquiry is not None:
            self.again(inquiry)

    def _put_again(self) -> bool:
        """If no other peer is left, repeat all queries that may help. Returns whether there are any."""
        self._again.extend(self._leftover())
        self._pump()
        return bool(self._again or self._on_time())

    def _start(self, inquiry: Inquiry) -> None:
        self._asked += 1
        self._late_at[self._asked] = trio.current_time() + self._limits.hedge_delay
        self._nursery.start_soon(self._run, self._asked, inquiry)

    async def _run(self, number: int, inquiry: Inquiry) -> None:
        helped = await inquiry()
        del self._late_at[number]
        self._answered += 1
        self._helpful += helped
        self.check()
        self._pump()

    def _pump(self) -> None:
        while self._again and self._room() and not self._exhausted:
            self._start(self._again.popleft())
        if self._exhausted:
            self._again.clear()

    async def _turn(self) -> None:
        """Wait until one more peer should be asked."""
        self._pump()
        while not self._room():
            await self._wait_for_news()
            self._pump()

    def _room(self) -> bool:
        return len(self._late_at) < self._limits.peers_in_flight and len(self._on_time()) < self._wanted()

    def _wanted(self) -> int:
        """How many queries should be pending: what is missing, divided by the share of answers that helped so far."""
        wanted = self._short + self._limits.slack
        return math.ceil(wanted * (self._answered + 1) / (self._helpful + 1))

    def _on_time(self) -> list[float]:
        now = trio.current_time()
        return [late_at for late_at in self._late_at.values() if late_at > now]

    async def _wait_for_news(self) -> None:
        with trio.CancelScope(deadline=min(self._on_time(), default=math.inf)):
            await self._news.park()
