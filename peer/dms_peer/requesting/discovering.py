"""Finds peers and what they have free. Takes nothing."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial

import trio
from msgspec.structs import replace

from dms_protocols.messages.bid import Bid, EnsembleRequest, Refusal
from dms_resources.components import FreeResources
from dms_resources.estimates import would_fit
from dms_resources.tasks import open_background

from .context import RequesterContext
from .network import Candidate
from .peers import CallError, PeerRef
from .progress import ProgressLog, SearchProgress
from .searching import Inquiry, Search

__all__ = ["FoundPeer", "FoundPeers", "find_peers"]


@dataclass(frozen=True, slots=True)
class FoundPeer:
    """A peer that answered: what it would bid, what it refuses and why, and what it has free.

    `age` is the age of the `free` figures in seconds when this was made: 0 if the peer has just answered. `free` and
    `age` are None if nothing is known. `round_trip` (seconds) is None if the peer was not queried directly.
    """

    peer_id: str
    addrs: tuple[str, ...]
    source: str
    offers: tuple[Bid, ...]
    refusals: tuple[Refusal, ...]
    free: FreeResources | None = None
    age: float | None = None
    round_trip: float | None = None

    @property
    def able(self) -> bool:
        """Whether it would take a node."""
        return bool(self.offers)


class FoundPeers:
    """Peers as they answer, able and unable ones. Iteration ends when enough are able, or no peer is left to query."""

    def __init__(self, peers: trio.MemoryReceiveChannel[FoundPeer], progress: ProgressLog) -> None:
        self._peers = peers
        self._progress = progress

    @property
    def progress(self) -> SearchProgress:
        """The progress of the search."""
        return self._progress.snapshot()

    def __aiter__(self) -> AsyncIterator[FoundPeer]:
        return self

    async def __anext__(self) -> FoundPeer:
        try:
            return await self._peers.receive()
        except trio.EndOfChannel:
            raise StopAsyncIteration from None


@asynccontextmanager
async def find_peers(
    context: RequesterContext, request: EnsembleRequest, *, count: int | None, ttl: float, progress: ProgressLog
) -> AsyncIterator[FoundPeers]:
    """Queries peers until `count` would take a node of the request (None: all peers), or until its deadline."""
    send, receive = trio.open_memory_channel[FoundPeer](math.inf)
    finding = _Finding(context, request, count, ttl, progress, send)

    async def find() -> None:
        with send, trio.CancelScope(deadline=context.moment(request.deadline)):
            await finding.run()

    with receive:
        async with open_background(find):
            yield FoundPeers(receive, progress)


class _Finding:
    def __init__(
        self,
        context: RequesterContext,
        request: EnsembleRequest,
        count: int | None,
        ttl: float,
        progress: ProgressLog,
        found: trio.MemorySendChannel[FoundPeer],
    ) -> None:
        self._context = context
        self._request = request
        self._count = count
        self._ttl = ttl
        self._progress = progress
        self._found = found
        self._able: set[str] = set()
        self._skip = {*context.skipped, *request.peer_exclusion}
        self._search = Search(
            context.limits, self._missing, self._inquiry, at_source=progress.at_source, skip=self._skip
        )

    async def run(self) -> None:
        last_resort = self._ask_everybody if self._context.broadcast else None
        await self._search.run(self._context.sources, self._request, last_resort=last_resort)

    def _missing(self) -> int:
        # A search for all peers always continues: it needs as many answers as can be pending at once.
        return self._context.limits.peers_in_flight if self._count is None else max(0, self._count - len(self._able))

    def _inquiry(self, candidate: Candidate) -> Inquiry | None:
        age = candidate.age(self._context.clock())
        fresh = age is not None and age < self._context.limits.hint_age
        # A search for all peers shows full ones too.
        if self._count is not None and fresh and candidate.free is not None:
            free = candidate.free
            if not any(would_fit(free, node.resources) for node in self._request.request):
                self._progress.skipped()
                return None
        return partial(self._ask, candidate)

    async def _ask(self, candidate: Candidate) -> bool:
        try:
            with self._progress.asking():
                found = await self._question(candidate)
        except CallError as error:
            self._progress.failed(error.code)
            if not error.reached:
                self._search.unreached(candidate.peer_id)
            return False
        self._progress.answered(len(found.offers), found.refusals)
        self._take(found)
        return found.able

    async def _question(self, candidate: Candidate) -> FoundPeer:
        peer = PeerRef(candidate.peer_id, candidate.addrs)
        calls, budget, clock = self._context.calls, self._context.limits.peer_budget, self._context.clock
        answer, round_trip = await calls.dry_run(peer, self._asked(), ttl=self._ttl, budget=budget)
        free, age = candidate.free, candidate.age(clock())
        # If the peer does not answer, the cached value is shown with its age.
        with suppress(CallError):
            free, age = await calls.free(peer, budget=budget), 0.0
        return FoundPeer(
            peer_id=peer.peer_id,
            addrs=peer.addrs,
            source=candidate.source,
            offers=answer.offers,
            refusals=answer.refusals,
            free=free,
            age=age,
            round_trip=round_trip,
        )

    async def _ask_everybody(self) -> None:
        broadcast = self._context.broadcast
        if broadcast is None:
            return
        self._progress.at_source("broadcast")
        async with broadcast.ask(self._asked(), ttl=self._ttl) as answers:
            async for answer in answers:
                self._progress.answered(len(answer.bids.bids), answer.bids.refusals)
                if answer.peer_id not in self._skip:
                    offers = tuple(signed.bid for signed in answer.bids.bids)
                    self._take(FoundPeer(answer.peer_id, answer.addrs, "broadcast", offers, answer.bids.refusals))
                    self._search.check()

    def _asked(self) -> EnsembleRequest:
        return replace(self._request, nonce=self._context.nonce())

    def _take(self, found: FoundPeer) -> None:
        if found.able:
            self._able.add(found.peer_id)
        self._found.send_nowait(found)
