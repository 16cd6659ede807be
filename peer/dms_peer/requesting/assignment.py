"""Assigns nodes to peers: the cheapest complete assignment if there is one.

Rules:

1. If the bids allow an assignment of all nodes, one is found, and none is cheaper.
2. Bids of one answer can be used together. Bids of two answers of one peer cannot, because each answer counts on the
   same capacity.
3. With `different_peers` each peer takes at most one node. A pinned node goes to its peer. Excluded pairs are never
used.
4. If not all nodes can be covered, as many as possible are, and there is a reason for each of the others.

Nodes, peers and the places at a peer form a flow network, and the assignment is its cheapest largest flow. Flows cannot
express rule 2. If the flow violates it at a peer, that peer is limited to each of its answers in turn, and the most
promising branch is followed first. Only this search is bounded (`steps`); beyond the bound there is still an answer,
but perhaps not the cheapest one. If many peers bid on many nodes, a step takes up to a tenth of a second;
`assign_in_turns` lets other tasks run meanwhile.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Generic, TypeVar

import trio

from .flows import cheapest_places

__all__ = ["Assignment", "AssignmentRules", "Option", "assign", "assign_in_turns"]

_T = TypeVar("_T")

# Costs are converted to integers, which flows need, with this many steps between zero and the greatest cost.
_STEPS: Final = 10**9


@dataclass(frozen=True, slots=True)
class AssignmentRules:
    """The rules of an assignment: `pins` are peers by node, `exclusions` are pairs (peer, node)."""

    different_peers: bool = False
    pins: Mapping[str, str] = field(default_factory=dict)
    exclusions: frozenset[tuple[str, str]] = frozenset()

    def allows(self, peer_id: str, node_id: str) -> bool:
        """Whether this peer may take this node."""
        return self.pins.get(node_id, peer_id) == peer_id and (peer_id, node_id) not in self.exclusions


@dataclass(frozen=True, slots=True)
class Option(Generic[_T]):
    """A peer that would take a node at a cost. `answers` are those of its answers that contain the bid."""

    node_id: str
    peer_id: str
    cost: float
    answers: frozenset[int]
    item: _T


@dataclass(frozen=True, slots=True)
class Assignment(Generic[_T]):
    """The option that was chosen for each node, and the reasons for the nodes without one."""

    chosen: dict[str, Option[_T]]
    uncovered: dict[str, str]
    cost: float

    @property
    def complete(self) -> bool:
        """Whether every node is covered."""
        return not self.uncovered


def assign(
    node_ids: Sequence[str],
    options: Iterable[Option[_T]],
    rules: AssignmentRules | None = None,
    *,
    crowding: Callable[[int], float] = lambda nth: 0.0,
    steps: int = 200,
    complete: bool = False,
) -> Assignment[_T]:
    """The cheapest assignment of the nodes, or of as many of them as can be covered.

    `crowding` is the additional cost of the nth further node on one peer (n from 1); it must not fall as n grows. With
    `complete`, the search stops when no complete assignment is possible; the result may then not be the largest.
    """
    solving = _solve(node_ids, options, rules or AssignmentRules(), crowding, steps, complete)
    while True:
        try:
            next(solving)
        except StopIteration as solved:
            assignment: Assignment[_T] = solved.value
            return assignment


async def assign_in_turns(
    node_ids: Sequence[str],
    options: Iterable[Option[_T]],
    rules: AssignmentRules | None = None,
    *,
    crowding: Callable[[int], float] = lambda nth: 0.0,
    steps: int = 200,
) -> Assignment[_T]:
    """What `assign` returns; other tasks run meanwhile. May be cancelled."""
    solving = _solve(node_ids, options, rules or AssignmentRules(), crowding, steps, False)
    while True:
        await trio.lowlevel.checkpoint()
        try:
            next(solving)
        except StopIteration as solved:
            assignment: Assignment[_T] = solved.value
            return assignment


def _solve(
    node_ids: Sequence[str],
    options: Iterable[Option[_T]],
    rules: AssignmentRules,
    crowding: Callable[[int], float],
    steps: int,
    complete: bool,
) -> Generator[None, None, Assignment[_T]]:
    extra = (0.0, *(crowding(nth) for nth in range(1, len(node_ids))))
    usable = [one for one in options if rules.allows(one.peer_id, one.node_id)]
    problem = _Problem(node_ids, _cheapest(node_ids, usable), rules, extra)
    chosen = yield from problem.solve(steps, complete)
    return Assignment(chosen, _why_uncovered(node_ids, chosen, usable, rules), problem.real_cost(chosen))


def _cheapest(node_ids: Sequence[str], options: Sequence[Option[_T]]) -> list[Option[_T]]:
    """For each node the options of the cheapest peers, as many as there are nodes. More are never needed.

    At least one of these peers is not used for the other nodes, and it costs no more than any peer that is left out.
    """
    kept: list[Option[_T]] = []
    by_node: dict[str, list[Option[_T]]] = {node_id: [] for node_id in node_ids}
    for option in options:
        if option.node_id in by_node:
            by_node[option.node_id].append(option)
    for own in by_node.values():
        peers: set[str] = set()
        for option in sorted(own, key=lambda one: one.cost if math.isfinite(one.cost) else math.inf):
            if option.peer_id in peers or len(peers) < len(node_ids):
                peers.add(option.peer_id)
                kept.append(option)
    return kept


def _why_uncovered(
    node_ids: Sequence[str], chosen: Mapping[str, Option[_T]], options: Sequence[Option[_T]], rules: AssignmentRules
) -> dict[str, str]:
    reasons: dict[str, str] = {}
    for node_id in node_ids:
        if node_id in chosen:
            continue
        peers = sorted({one.peer_id for one in options if one.node_id == node_id})
        if peers:
            named = ", ".join(peers[:3]) + (f" and {len(peers) - 3} more" if len(peers) > 3 else "")
            reasons[node_id] = f"the peers that bid on it are needed for other nodes: {named}"
        elif node_id in rules.pins:
            reasons[node_id] = f"the peer that it is pinned to does not bid on it: {rules.pins[node_id]}"
        else:
            reasons[node_id] = "no peer bids on it"
    return reasons


class _Problem(Generic[_T]):
    """One assignment to make. Its costs are integers."""

    def __init__(
        self, node_ids: Sequence[str], options: Sequence[Option[_T]], rules: AssignmentRules, crowding: Sequence[float]
    ) -> None:
        self._node_ids = node_ids
        self._options = options
        self._rules = rules
        self._crowding = crowding
        self._costs, self._extra = _whole_numbers([one.cost for one in options], crowding)

    def real_cost(self, chosen: Mapping[str, Option[_T]]) -> float:
        counts: dict[str, int] = {}
        cost = 0.0
        for option in chosen.values():
            cost += option.cost + self._crowding[counts.get(option.peer_id, 0)]
            counts[option.peer_id] = counts.get(option.peer_id, 0) + 1
        return cost

    def solve(self, steps: int, complete: bool) -> Generator[None, None, dict[str, Option[_T]]]:
        """The choice. Yields repeatedly, so that other tasks can run."""
        everything = list(range(len(self._options)))
        simple = self._each_cheapest()
        if simple is not None:
            return self._named(simple)
        number = 0
        first = yield from self._flow(everything)
        branches = [(self._rank(first), number, first, everything)]
        while branches:
            _, _, chosen, left = heapq.heappop(branches)
            peer_id = self._torn(chosen)
            if peer_id is None:
                return self._named(chosen)
            answers = self._answers_of(peer_id, left)
            if complete and len(chosen) < len(self._node_ids):
                return self._named(self._mended(chosen))
            if number >= steps:
                # The bound is reached: the remaining answer is the one that keeps most of what was chosen.
                branches.clear()
                mine = [option for option in chosen.values() if self._options[option].peer_id == peer_id]
                answers = [max(answers, key=lambda one: sum(one in self._options[option].answers for option in mine))]
            for answer in answers:
                bound = [
                    one for one in left if self._options[one].peer_id != peer_id or answer in self._options[one].answers
                ]
                number += 1
                flow = yield from self._flow(bound)
                heapq.heappush(branches, (self._rank(flow), number, flow, bound))
        raise AssertionError("a branch always leaves another or an answer")

    def _named(self, chosen: Mapping[str, int]) -> dict[str, Option[_T]]:
        return {node_id: self._options[chosen[node_id]] for node_id in self._node_ids if node_id in chosen}

    def _rank(self, chosen: Mapping[str, int]) -> tuple[int, int]:
        counts: dict[str, int] = {}
        cost = 0
        for number in chosen.values():
            peer_id = self._options[number].peer_id
            cost += self._costs[number] + self._extra[counts.get(peer_id, 0)]
            counts[peer_id] = counts.get(peer_id, 0) + 1
        return (-len(chosen), cost)

    def _each_cheapest(self) -> dict[str, int] | None:
        """The cheapest option of each node if these can be used together; otherwise None."""
        chosen: dict[str, int] = {}
        for number, option in enumerate(self._options):
            best = chosen.get(option.node_id)
            if best is None or self._costs[number] < self._costs[best]:
                chosen[option.node_id] = number
        peers = {self._options[number].peer_id for number in chosen.values()}
        apart = len(peers) == len(chosen)
        if not apart and (self._rules.different_peers or any(self._extra)):
            return None
        return chosen if self._torn(chosen) is None else None

    def _torn(self, chosen: Mapping[str, int]) -> str | None:
        """A peer whose chosen options are in no single answer; None if there is none."""
        together: dict[str, frozenset[int]] = {}
        for number in chosen.values():
            option = self._options[number]
            together[option.peer_id] = together.get(option.peer_id, option.answers) & option.answers
        return next((peer_id for peer_id, answers in together.items() if not answers), None)

    def _mended(self, chosen: Mapping[str, int]) -> dict[str, int]:
        """The part of a choice that remains if each peer keeps the options of only one answer, as many as possible."""
        by_peer: dict[str, list[str]] = {}
        for node_id, number in chosen.items():
            by_peer.setdefault(self._options[number].peer_id, []).append(node_id)
        left: dict[str, int] = {}
        for peer_id, node_ids in by_peer.items():
            together: list[list[str]] = [
                [node_id for node_id in node_ids if answer in self._options[chosen[node_id]].answers]
                for answer in self._answers_of(peer_id, chosen.values())
            ]
            left |= {node_id: chosen[node_id] for node_id in max(together, key=len)}
        return left

    def _answers_of(self, peer_id: str, left: Iterable[int]) -> list[int]:
        return sorted({a for one in left if self._options[one].peer_id == peer_id for a in self._options[one].answers})

    def _flow(self, left: Sequence[int]) -> Generator[None, None, dict[str, int]]:
        """The cheapest largest choice among these options, whether or not the bids of each peer can be used
        together.
        """
        peers: dict[str, int] = {}
        best: dict[str, dict[int, int]] = {node_id: {} for node_id in self._node_ids}
        for number in left:
            option = self._options[number]
            own, peer = best[option.node_id], peers.setdefault(option.peer_id, len(peers))
            if peer not in own or self._costs[number] < self._costs[own[peer]]:
                own[peer] = number
        costs = [{peer: self._costs[number] for peer, number in own.items()} for own in best.values()]
        places = [1 if self._rules.different_peers else len(self._node_ids)] * len(peers)
        at = yield from cheapest_places(costs, places, self._extra)
        return {node_id: own[peer] for (node_id, own), peer in zip(best.items(), at, strict=True) if peer is not None}


def _whole_numbers(costs: Sequence[float], crowding: Sequence[float]) -> tuple[list[int], list[int]]:
    """The costs as integers, in proportion. Integers are not changed. Infinite costs and NaN rank above the rest."""
    finite = [cost for cost in (*costs, *crowding) if math.isfinite(cost)]
    greatest = max(map(abs, finite), default=0.0)
    whole_already = all(float(cost).is_integer() for cost in finite)

    def whole(cost: float) -> int:
        return int(cost) if whole_already else round(cost / greatest * _STEPS)

    beyond = 1 + 2 * sum(abs(whole(cost)) for cost in finite)
    return (
        [whole(cost) if math.isfinite(cost) else beyond for cost in costs],
        [whole(cost) if math.isfinite(cost) else beyond for cost in crowding],
    )
