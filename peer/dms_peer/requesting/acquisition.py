"""Takes every node of an ensemble, or says why not.

Rules:

1. Bids are collected until they allow an assignment of all nodes, and either enough bids have arrived or the wait for
   better ones is over.
2. All peers of an assignment commit at the same time, each for all its nodes at once.
3. If some peers fail, their bids are dropped and the next best assignment is tried at once. A commitment stays in place
   if the new assignment uses it; otherwise it is released before anything else is taken.
4. If a provider is silent for `hedge_delay`, the next best assignment is tried at the same time. The provider's
   commitment is used if it arrives in time to be needed, and is released otherwise.
5. When no assignment is left, fresh bids are requested: first for the missing nodes, while the rest is kept for a few
   seconds; then, after a random pause, for all nodes with nothing kept. Otherwise two requesters that each hold half of
   what both want would wait for each other.
6. If all peers refused a node, and no commitment failed, the requester gives up at once, unless the caller asked it to
   wait.
7. A peer that did not keep a bid may have lost a race, or may never keep its bids. Its next bids rank last, and others
   are queried in its place. After the second time the search no longer counts on it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from itertools import count
from typing import Final, TypeAlias

import trio
from msgspec.structs import replace

from dms_protocols.messages.bid import EnsembleRequest
from dms_resources.tasks import open_background

from .assignment import Assignment, AssignmentRules, Option, assign, assign_in_turns
from .bids import PeerAnswer, ReceivedBid
from .collecting import BidSearch
from .context import RequesterContext
from .errors import ReservationError
from .holdings import Holding, Holdings, HoldingState
from .peers import CallError
from .progress import ProgressLog
from .reasons import ReasonLog, summarize_reasons
from .strategies import Strategy

__all__ = ["Acquisition"]


# Errors in the request itself. A repetition gets the same answer.
_HOPELESS: Final = frozenset({"bad_amount", "bad_message", "frame_too_large", "unknown_operation"})
# While bids arrive, only a quick check is made. Assignments that take longer are found when the search ends.
_GLANCE_STEPS: Final = 8
# After this many broken bids, a peer's bids no longer end a search.
_FORGIVEN: Final = 2

_Option: TypeAlias = Option[ReceivedBid | Holding]


class Acquisition:
    """One attempt at an ensemble until its deadline. Renewals and releases run in `nursery`, beyond the attempt."""

    def __init__(
        self,
        context: RequesterContext,
        ensemble: EnsembleRequest,
        holdings: Holdings,
        nursery: trio.Nursery,
        *,
        strategy: Strategy,
        rules: AssignmentRules,
        want: int,
        ttl: float,
        wait: bool,
        progress: ProgressLog,
    ) -> None:
        self._context = context
        self._ensemble = ensemble
        self._node_ids = [node.node_id for node in ensemble.request]
        self._holdings = holdings
        self._nursery = nursery
        self._strategy = strategy
        self._rules = rules
        self._want = want
        self._ttl = ttl
        self._wait = wait
        self._progress = progress
        self._deadline = context.moment(ensemble.deadline)
        self._numbers = count()
        self._bids: list[ReceivedBid] = []
        self._kept: dict[str, Holding] = {}
        self._stood_in: dict[Holding, set[int]] = {}
        self._avoided: set[str] = set()
        self._broken: Counter[str] = Counter()
        self._reasons = ReasonLog()
        self._contended = False
        self._late = 0
        self._late_settled = trio.Event()
        self._finished = False
        self._on_lost: Callable[[Holding], None] = lambda holding: None

    async def run(self) -> dict[str, Holding]:
        """The holding of each node, all committed. Raises ReservationError; may be cancelled."""
        pause = self._context.limits.retry_delay
        while True:
            # Some time has to be left for the commitments.
            await self._collect(self._node_ids, max(self._left - self._context.limits.commit_budget, self._left / 2))
            if await self._take() or await self._take_the_rest():
                self._finished = True
                return dict(self._kept)
            assignment = await self._assign()
            await self._give_back(list(self._kept.values()))
            if not (self._wait or self._contended) or self._left <= pause:
                raise self._error(assignment)
            self._bids.clear()
            self._avoided.clear()
            await trio.sleep(pause * (0.5 + self._context.rng.random()))
            pause = min(2 * pause, self._context.limits.retry_delay_most)

    def tell_losses(self, on_lost: Callable[[Holding], None]) -> None:
        """Set the callback that gets each lost commitment."""
        self._on_lost = on_lost
        for holding in self._kept.values():
            if not holding.live:
                on_lost(holding)

    # Collecting

    @property
    def _left(self) -> float:
        return max(0.0, self._deadline - trio.current_time())

    async def _collect(self, node_ids: Sequence[str], seconds: float) -> None:
        """Request fresh bids on these nodes, in addition to what is kept."""
        wanted = [node for node in self._ensemble.request if node.node_id in node_ids]
        enough_at = trio.Event()

        def arrived(answer: PeerAnswer) -> None:
            self._bids += answer.bids
            for holding in self._kept.values():
                # This peer made its new bid in addition to its existing commitment.
                if holding.bid.peer_id == answer.peer_id:
                    self._stood_in[holding].add(answer.number)

        def missing() -> int:
            short = search.missing()
            if enough_at.is_set():
                return short
            if not search.covered():
                return max(1, short)
            if self._rules.different_peers and (peers_short := len(self._node_ids) - self._peers()) > 0:
                return max(short, peers_short)
            uncovered = self._glance()
            if uncovered:
                return max(short, uncovered)
            enough_at.set()
            return short

        search = BidSearch(
            self._context,
            replace(self._ensemble, request=tuple(wanted), deadline=self._context.clock() + seconds),
            rules=self._rules,
            want=self._want + len(self._broken),
            ttl=self._ttl,
            with_free=self._strategy.needs_free,
            progress=self._progress,
            reasons=self._reasons,
            numbers=self._numbers,
            enough=missing,
            on_answer=arrived,
            skip=self._avoided,
        )

        async def settle(scope: trio.CancelScope) -> None:
            await enough_at.wait()
            await trio.sleep(self._context.limits.settle)
            scope.cancel()

        self._progress.at_stage("searching")
        with trio.move_on_after(seconds) as scope:
            async with open_background(partial(settle, scope)):
                await search.run()

    # Choosing

    def _peers(self) -> int:
        return len({one.peer_id for one in self._bids} | {one.bid.peer_id for one in self._kept.values()})

    async def _assign(self) -> Assignment[ReceivedBid | Holding]:
        """The best assignment that leaves in place what is kept, or otherwise the best of all."""
        self._drop_lapsed()
        usable = list(self._bids)
        costs = self._strategy.costs(usable)
        # Unreliable peers are chosen only if there is no other, at any price.
        costs = [math.inf if bid.peer_id in self._broken else cost for bid, cost in zip(usable, costs, strict=True)]
        fresh = _options(usable, costs)
        kept = [self._kept_option(holding) for holding in self._kept.values()]

        async def solve(options: list[_Option]) -> Assignment[ReceivedBid | Holding]:
            return await assign_in_turns(
                self._node_ids, options, self._rules,
                crowding=self._strategy.crowding, steps=self._context.limits.assignment_steps,
            )  # fmt: skip

        staying = await solve([*kept, *(one for one in fresh if one.node_id not in self._kept)])
        return staying if staying.complete or not kept else await solve([*kept, *fresh])

    def _glance(self) -> int:
        """The number of nodes that no assignment covers, by a quick check after each answer."""
        # A bid that expires during the wait for better ones does not end the search.
        until = self._context.clock() + self._context.limits.settle
        usable = [one for one in self._bids if one.bid.valid_until > until and self._broken[one.peer_id] < _FORGIVEN]
        options = [self._kept_option(one) for one in self._kept.values()] + _options(usable, [0] * len(usable))
        return len(assign(self._node_ids, options, self._rules, steps=_GLANCE_STEPS, complete=True).uncovered)

    def _drop_lapsed(self) -> None:
        now = self._context.clock()
        # Written this way round because every comparison with NaN is false, so that NaN is never valid.
        lapsed = [one for one in self._bids if not one.bid.valid_until > now]
        if lapsed:
            self._bids = [one for one in self._bids if one.bid.valid_until > now]
            self._contended = True
            self._broken.update({one.peer_id for one in lapsed})
            for one in lapsed:
                self._reasons.failed([one.node_id], "bid_expired", "its bid was no longer valid when it was needed")

    def _kept_option(self, holding: Holding) -> _Option:
        return Option(holding.node_id, holding.bid.peer_id, 0, frozenset(self._stood_in[holding]), holding)

    # Taking

    async def _take(self) -> bool:
        """Commit the best assignment of the bids. If that fails, try the next best, until none is left."""
        while True:
            self._forget_lost()
            assignment = await self._assign()
            if not assignment.complete:
                if not self._late:
                    return False
                # No other provider is left, but a slow one may still answer.
                await self._late_settled.wait()
                continue
            chosen = assignment.chosen.values()
            stays = {option.item for option in chosen if isinstance(option.item, Holding)}
            await self._give_back([holding for holding in self._kept.values() if holding not in stays])
            bids = [option.item for option in chosen if isinstance(option.item, ReceivedBid)]
            if bids:
                if not self._left:
                    return False
                await self._commit_all(bids)
            if self._complete():
                return True

    def _complete(self) -> bool:
        """Whether every node is held according to the rules, which a late commitment of a slow provider may break."""
        if not all(node_id in self._kept and self._kept[node_id].live for node_id in self._node_ids):
            return False
        kept = [self._kept_option(holding) for holding in self._kept.values()]
        steps = self._context.limits.assignment_steps
        return not assign(self._node_ids, kept, self._rules, steps=steps, complete=True).uncovered

    async def _take_the_rest(self) -> bool:
        """Request bids for the missing nodes again, while the rest is kept for a while."""
        if not self._kept or not self._left:
            return False
        left = [node_id for node_id in self._node_ids if node_id not in self._kept]
        await self._collect(left, min(self._left, self._context.limits.keep))
        return await self._take()

    async def _commit_all(self, bids: Sequence[ReceivedBid]) -> None:
        by_peer: dict[str, list[ReceivedBid]] = {}
        for bid in bids:
            by_peer.setdefault(bid.peer_id, []).append(bid)
        self._progress.at_stage("committing", attempt=True)
        answered = [trio.Event() for _ in by_peer]
        for own, done in zip(by_peer.values(), answered, strict=True):
            self._nursery.start_soon(self._commit_in_background, own, done)
        # A provider that is silent for longer is not waited for; others are tried at the same time.
        with trio.move_on_after(self._context.limits.hedge_delay):
            for done in answered:
                await done.wait()
        for own, done in zip(by_peer.values(), answered, strict=True):
            if not done.is_set():
                self._pass_over(own[0].peer_id)

    async def _commit_in_background(self, bids: Sequence[ReceivedBid], done: trio.Event) -> None:
        self._late += 1
        try:
            await self._commit(bids)
        finally:
            self._late -= 1
            done.set()
            self._late_settled.set()
            self._late_settled = trio.Event()

    async def _commit(self, bids: Sequence[ReceivedBid]) -> None:
        # A bid can be committed only once, even if the commitment fails.
        taken = set(map(id, bids))
        self._bids = [bid for bid in self._bids if id(bid) not in taken]
        try:
            budget = min(self._context.limits.commit_budget, self._left)
            holdings = await self._holdings.commit(bids, budget=budget)
        except CallError as error:
            self._failed(bids, error)
            return
        for holding in holdings:
            standing = self._kept.get(holding.node_id)
            if self._finished or (standing is not None and standing.live):
                # Another provider was faster.
                self._nursery.start_soon(self._holdings.release, holding)
                continue
            self._kept[holding.node_id] = holding
            self._stood_in[holding] = {holding.bid.answer}
            self._nursery.start_soon(self._holdings.keep, holding, self._lost)

    def _pass_over(self, peer_id: str) -> None:
        self._avoided.add(peer_id)
        self._bids = [bid for bid in self._bids if bid.peer_id != peer_id]

    def _failed(self, bids: Sequence[ReceivedBid], error: CallError) -> None:
        self._contended = self._contended or error.code not in _HOPELESS
        self._progress.failed(error.code)
        self._reasons.failed([bid.node_id for bid in bids], error.code, error.message)
        peer_id = bids[0].peer_id
        self._broken[peer_id] += 1
        if error.remote is None:
            # A provider that does not answer, or lies, is not queried again soon.
            self._pass_over(peer_id)
        else:
            # The capacity behind this answer has been taken.
            answers = {bid.answer for bid in bids}
            self._bids = [bid for bid in self._bids if bid.answer not in answers]
        if error.uncertain:
            for holding in self._holdings.standing:
                if any(holding.bid is bid for bid in bids):
                    self._nursery.start_soon(self._holdings.release, holding)

    async def _give_back(self, holdings: Sequence[Holding]) -> None:
        """Release these leases and wait at most `call_budget` for it, because the next attempt may need
        their capacity.
        """
        for holding in holdings:
            del self._kept[holding.node_id]
        with trio.move_on_after(self._context.limits.call_budget):
            async with trio.open_nursery() as nursery:
                for holding in holdings:
                    nursery.start_soon(self._holdings.release, holding)
        for holding in holdings:
            if holding.state is not HoldingState.GONE:
                self._nursery.start_soon(self._holdings.release, holding)

    def _lost(self, holding: Holding) -> None:
        self._on_lost(holding)

    def _forget_lost(self) -> None:
        for node_id, holding in list(self._kept.items()):
            if not holding.live:
                del self._kept[node_id]
                self._reasons.failed([node_id], "lost", holding.lost)

    # Errors

    def _error(self, assignment: Assignment[ReceivedBid | Holding]) -> ReservationError:
        progress = self._progress.snapshot()
        uncovered = assignment.uncovered or dict.fromkeys(self._node_ids, "peers did not keep their bids on it")
        reasons = tuple(self._reasons.about(node_id, why) for node_id, why in uncovered.items())
        if not (progress.asked or progress.answered or progress.skipped):
            code, hint = "no_peers", "name a peer to begin with (--bootstrap), or switch more sources on"
        elif self._contended:
            code, hint = "not_taken", "try again: others are taking the same capacity"
        elif any(why == "no peer bids on it" or "pinned" in why for why in uncovered.values()):
            code, hint = "no_bids", "ask for less, or wait"
        else:
            code, hint = "no_assignment", "allow nodes to share a peer, or ask for less"
        why = "there is nobody to ask" if code == "no_peers" else summarize_reasons(reasons)
        return ReservationError(f"the ensemble cannot be had: {why}", code=code, hint=hint, reasons=reasons)


def _options(bids: Sequence[ReceivedBid], costs: Sequence[float]) -> list[_Option]:
    return [
        Option(bid.node_id, bid.peer_id, cost, frozenset({bid.answer}), bid)
        for bid, cost in zip(bids, costs, strict=True)
    ]
