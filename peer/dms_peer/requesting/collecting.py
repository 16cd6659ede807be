"""Collects bids on the nodes of an ensemble.

A provider bids on as many nodes as it could hold together, in the order of the request. So the request to each peer
begins with the nodes that have the fewest bids. If a peer refused a node while it bid on others, that node is requested
of it alone: at once if no peer bids on the node and no pending request begins with it, otherwise when no other peer is
left to query.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from itertools import count

import trio
from msgspec.structs import replace

from dms_protocols.clients import Bids
from dms_protocols.messages.bid import EnsembleRequest, NodeRequest, Refusal
from dms_resources.components import FreeResources
from dms_resources.demands import CPUShortage, DiskShortage, RAMShortage
from dms_resources.estimates import would_fit
from dms_resources.tasks import open_background

from .assignment import AssignmentRules
from .bids import PeerAnswer, ReceivedBid
from .context import RequesterContext
from .network import Candidate
from .peers import CallError, PeerRef
from .progress import ProgressLog, SearchProgress
from .reasons import NodeReasons, ReasonLog
from .searching import Inquiry, Search

__all__ = ["BidCollection", "BidSearch", "collect_bids"]


class BidSearch:
    """One search for bids. `answers` are the answers so far; `reasons` and `progress` are updated as they arrive.

    `enough` replaces the rule that ends the search: it returns how many more bids are worth requesting. `numbers`
    numbers the answers, so that those of several searches differ.
    """

    def __init__(
        self,
        context: RequesterContext,
        ensemble: EnsembleRequest,
        *,
        rules: AssignmentRules,
        want: int,
        hold: float = 0.0,
        ttl: float = 0.0,
        with_free: bool = False,
        progress: ProgressLog,
        reasons: ReasonLog,
        numbers: Iterator[int],
        enough: Callable[[], int] | None = None,
        on_answer: Callable[[PeerAnswer], None] = lambda answer: None,
        skip: Iterable[str] = (),
    ) -> None:
        self.answers: list[PeerAnswer] = []
        self._context = context
        self._ensemble = ensemble
        self._numbers = numbers
        self._nodes = {node.node_id: node for node in ensemble.request}
        self._rules = rules
        self._want = want
        self._hold = hold
        self._ttl = ttl
        self._with_free = with_free
        self._progress = progress
        self._reasons = reasons
        self._on_answer = on_answer
        self._bidders: dict[str, set[str]] = {node_id: set() for node_id in self._nodes}
        # How many requests began with each node, and how many of them are pending.
        self._led = dict.fromkeys(self._nodes, 0)
        self._leads = dict.fromkeys(self._nodes, 0)
        self._done_with: set[str] = set()
        self._alone: list[Inquiry] = []
        self._skip = {*context.skipped, *ensemble.peer_exclusion, *skip}
        self._search = Search(
            context.limits, enough or self.missing, self._inquiry, at_source=progress.at_source, skip=self._skip
        )

    async def run(self) -> None:
        """Query peers until there are enough bids, no peer is left, or the caller ends it. Raises nothing but
        cancellation.
        """
        pinned = {self._rules.pins[node_id] for node_id in self._nodes if node_id in self._rules.pins}
        only_pinned = all(node_id in self._rules.pins for node_id in self._nodes)
        await self._search.run(
            () if only_pinned else self._context.sources,
            self._ensemble,
            first=[Candidate(peer_id, (), "pinned") for peer_id in sorted(pinned)],
            leftover=self._take_alone,
            last_resort=None if only_pinned or self._context.broadcast is None else self._ask_everybody,
        )

    def missing(self) -> int:
        """How many more peers have to bid until every node has the wanted number of bids."""
        return max((self._missing_on(node_id) for node_id in self._nodes), default=0)

    def covered(self) -> bool:
        """Whether every node has a bid."""
        return all(self._bidders.values())

    def _missing_on(self, node_id: str) -> int:
        pin = self._rules.pins.get(node_id)
        if pin is not None:
            return 0 if self._bidders[node_id] or pin in self._done_with | self._skip else 1
        return max(0, self._want - len(self._bidders[node_id]))

    # Requests

    def _inquiry(self, candidate: Candidate) -> Inquiry | None:
        nodes = [node for node in self._nodes.values() if self._rules.allows(candidate.peer_id, node.node_id)]
        age = candidate.age(self._context.clock())
        if candidate.free is not None and age is not None and age < self._context.limits.hint_age:
            # A recent figure is enough to skip a peer but not to count on it: another requester may have taken the
            # capacity since.
            fitting = [node for node in nodes if would_fit(candidate.free, node.resources)]
            short = [node.node_id for node in nodes if node not in fitting]
            self._reasons.failed(short, "known_full", "had less than that a moment ago, and is not asked again so soon")
            nodes = fitting
        if not nodes:
            self._progress.skipped()
            return None
        # A node that only this peer may take comes before all others.
        nodes.sort(
            key=lambda node: (
                node.node_id not in self._rules.pins,
                len(self._bidders[node.node_id]) + self._led[node.node_id],
            )
        )
        self._led[nodes[0].node_id] += 1
        return partial(self._ask, candidate, nodes)

    async def _ask(self, candidate: Candidate, nodes: Sequence[NodeRequest]) -> bool:
        peer, first = PeerRef(candidate.peer_id, candidate.addrs), nodes[0].node_id
        self._leads[first] += 1
        try:
            with self._progress.asking():
                (bids, round_trip), free = await self._bids_and_free(peer, nodes)
        except CallError as error:
            self._reasons.failed([node.node_id for node in nodes], error.code, error.message)
            self._progress.failed(error.code)
            if not error.reached:
                self._search.unreached(candidate.peer_id)
            return False
        finally:
            self._leads[first] -= 1
            self._done_with.add(candidate.peer_id)
        now = self._context.clock()
        if free is not None:
            candidate = Candidate(candidate.peer_id, candidate.addrs, candidate.source, free, now)
        self._progress.answered(len(bids.bids), bids.refusals)
        self._take(candidate, bids, now, round_trip)
        if bids.bids:
            self._note_alone(candidate, nodes, bids.refusals)
        return bool(bids.bids)

    async def _bids_and_free(
        self, peer: PeerRef, nodes: Sequence[NodeRequest]
    ) -> tuple[tuple[Bids, float], FreeResources | None]:
        budget, request = self._context.limits.peer_budget, self._request(nodes)
        free = None
        if self._with_free:
            free = await self._context.calls.free(peer, budget=budget)
        bids = await self._context.calls.bids(peer, request, hold=self._hold, ttl=self._ttl, budget=budget)
        return bids, free

    def _request(self, nodes: Sequence[NodeRequest]) -> EnsembleRequest:
        # A new nonce each time: the id of a lease follows from the request, and a released lease cannot be taken again.
        return replace(self._ensemble, nonce=self._context.nonce(), request=tuple(nodes))

    async def _ask_everybody(self) -> None:
        broadcast = self._context.broadcast
        nodes = [node for node in self._nodes.values() if node.node_id not in self._rules.pins]
        if broadcast is None or not nodes:
            return
        self._progress.at_source("broadcast")
        async with broadcast.ask(self._request(nodes), hold=self._hold, ttl=self._ttl) as answers:
            async for answer in answers:
                candidate = Candidate(answer.peer_id, answer.addrs, "broadcast")
                self._progress.answered(len(answer.bids.bids), answer.bids.refusals)
                if answer.peer_id not in self._skip:
                    self._take(candidate, answer.bids, self._context.clock(), None)
                    self._search.check()

    # Answers

    def _take(self, candidate: Candidate, bids: Bids, now: float, round_trip: float | None) -> None:
        number = next(self._numbers)
        # At most one bid or refusal for each existing node, however many the peer sends.
        bid_on = {signed.bid.node_id: signed for signed in bids.bids}
        refused = {refusal.node_id: refusal for refusal in bids.refusals if refusal.node_id in self._nodes}
        received = tuple(
            ReceivedBid(
                signed=signed,
                peer_id=candidate.peer_id,
                addrs=candidate.addrs,
                source=candidate.source,
                answer=number,
                received_at=now,
                round_trip=round_trip,
                free=candidate.free,
                free_at=candidate.free_at,
            )
            for signed in bid_on.values()
            if self._rules.allows(candidate.peer_id, signed.bid.node_id)
        )
        for bid in received:
            self._bidders[bid.node_id].add(candidate.peer_id)
        for refusal in refused.values():
            self._reasons.refused(refusal)
        answer = PeerAnswer(candidate.peer_id, number, received, tuple(refused.values()))
        self.answers.append(answer)
        self._on_answer(answer)

    def _note_alone(self, candidate: Candidate, nodes: Sequence[NodeRequest], refusals: Sequence[Refusal]) -> None:
        asked = {node.node_id: node for node in nodes}
        for refusal in refusals:
            if len(asked) > 1 and refusal.node_id in asked and _may_fit_alone(refusal):
                inquiry = partial(self._ask, candidate, [asked[refusal.node_id]])
                if self._bidders[refusal.node_id] or self._leads[refusal.node_id]:
                    self._alone.append(inquiry)
                else:
                    self._search.again(inquiry)

    def _take_alone(self) -> list[Inquiry]:
        alone, self._alone = self._alone, []
        return alone


def _may_fit_alone(refusal: Refusal) -> bool:
    """Whether the peer may have refused this node only because it bids on others."""
    if refusal.code not in ("resources", "ports"):
        return False
    for shortage in refusal.shortages:
        match shortage:
            case CPUShortage(asked=asked, total=total) if asked.cores > total.cores:
                return False
            case RAMShortage() | DiskShortage() if shortage.asked > shortage.total:
                return False
    return True


class BidCollection:
    """Bids as they arrive. Iteration ends when there are enough, no peer is left to query, or the deadline
    has passed.
    """

    def __init__(self, bids: trio.MemoryReceiveChannel[ReceivedBid], progress: ProgressLog, reasons: ReasonLog) -> None:
        self._bids = bids
        self._progress = progress
        self._reasons = reasons

    @property
    def progress(self) -> SearchProgress:
        """The progress of the search."""
        return self._progress.snapshot()

    def reasons(self, node_id: str) -> NodeReasons:
        """The reasons of peers that do not bid on this node."""
        return self._reasons.about(node_id, "refused or not answered")

    def __aiter__(self) -> AsyncIterator[ReceivedBid]:
        return self

    async def __anext__(self) -> ReceivedBid:
        try:
            return await self._bids.receive()
        except trio.EndOfChannel:
            raise StopAsyncIteration from None


@asynccontextmanager
async def collect_bids(
    context: RequesterContext,
    ensemble: EnsembleRequest,
    *,
    want: int,
    rules: AssignmentRules,
    hold: float,
    ttl: float,
    progress: ProgressLog,
) -> AsyncIterator[BidCollection]:
    """Collect `want` bids on every node until the ensemble's deadline. Leaving the block ends the search."""
    # Bounded by the number of queried peers, and by the limit of the broadcast.
    send, receive = trio.open_memory_channel[ReceivedBid](math.inf)
    reasons = ReasonLog()

    def arrived(answer: PeerAnswer) -> None:
        for bid in answer.bids:
            send.send_nowait(bid)

    search = BidSearch(
        context,
        ensemble,
        rules=rules,
        want=want,
        hold=hold,
        ttl=ttl,
        progress=progress,
        reasons=reasons,
        numbers=count(),
        on_answer=arrived,
    )

    async def collect() -> None:
        with send, trio.CancelScope(deadline=context.moment(ensemble.deadline)):
            await search.run()

    with receive:
        async with open_background(collect):
            yield BidCollection(receive, progress, reasons)
