"""Which peer takes which node, compared with an exhaustive search."""

from __future__ import annotations

from itertools import product

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from dms_peer.requesting.assignment import AssignmentRules, Option, assign, assign_in_turns


def option(node_id, peer_id, cost=0.0, answers=(0,)):
    return Option(node_id, peer_id, cost, frozenset(answers), f"{node_id}@{peer_id}")


def where(assignment):
    return {node_id: chosen.peer_id for node_id, chosen in assignment.chosen.items()}


# The exhaustive search


def allowed(chosen, rules):
    by_peer = {}
    for one in chosen:
        if not rules.allows(one.peer_id, one.node_id):
            return False
        by_peer.setdefault(one.peer_id, []).append(one)
    for own in by_peer.values():
        if rules.different_peers and len(own) > 1:
            return False
        if not frozenset.intersection(*(one.answers for one in own)):
            return False
    return True


def cost_of(chosen, crowding):
    by_peer = {}
    total = 0.0
    for one in chosen:
        nth = by_peer.get(one.peer_id, 0)
        total += one.cost + (crowding(nth) if nth else 0.0)
        by_peer[one.peer_id] = nth + 1
    return total


def try_everything(node_ids, options, rules, crowding):
    """The most nodes that can be covered, and the lowest cost of that."""
    choices = [[None, *(one for one in options if one.node_id == node_id)] for node_id in node_ids]
    results = []
    for picked in product(*choices):
        chosen = [one for one in picked if one is not None]
        if allowed(chosen, rules):
            results.append((-len(chosen), cost_of(chosen, crowding)))
    return min(results)


NODES = ("a", "b", "c", "d")
PEERS = ("p", "q", "r")


@st.composite
def problems(draw):
    node_ids = NODES[: draw(st.integers(1, 4))]
    pairs = draw(st.lists(st.tuples(st.sampled_from(node_ids), st.sampled_from(PEERS)), max_size=10))
    costs = st.one_of(st.integers(0, 5), st.floats(0, 5, allow_nan=False))
    options = [
        option(node_id, peer_id, draw(costs), draw(st.sets(st.integers(0, 2), min_size=1, max_size=2)))
        for node_id, peer_id in pairs
    ]
    rules = AssignmentRules(
        different_peers=draw(st.booleans()),
        pins=draw(st.dictionaries(st.sampled_from(node_ids), st.sampled_from(PEERS), max_size=1)),
        exclusions=frozenset(draw(st.sets(st.tuples(st.sampled_from(PEERS), st.sampled_from(node_ids)), max_size=2))),
    )
    step = draw(st.sampled_from((0.0, 0.5, 3.0)))
    return node_ids, options, rules, lambda nth: step * nth


@given(problems())
@settings(max_examples=400, deadline=None)
def test_an_assignment_that_exists_is_found_and_none_is_cheaper(problem):
    node_ids, options, rules, crowding = problem
    assignment = assign(node_ids, options, rules, crowding=crowding)
    chosen = list(assignment.chosen.values())
    assert allowed(chosen, rules)
    covered, cost = try_everything(node_ids, options, rules, crowding)
    assert len(chosen) == -covered
    assert set(assignment.chosen) | set(assignment.uncovered) == set(node_ids)
    assert assignment.cost == pytest.approx(cost_of(chosen, crowding))
    assert assignment.cost == pytest.approx(cost, abs=1e-6)


@given(problems())
@settings(max_examples=100, deadline=None)
def test_what_is_found_within_few_steps_is_no_less_valid(problem):
    node_ids, options, rules, crowding = problem
    assignment = assign(node_ids, options, rules, crowding=crowding, steps=0)
    assert allowed(list(assignment.chosen.values()), rules)


@given(problems())
@settings(max_examples=200, deadline=None)
def test_what_cannot_be_complete_is_known_and_what_is_left_of_it_is_valid(problem):
    node_ids, options, rules, crowding = problem
    whole = assign(node_ids, options, rules, crowding=crowding)
    glance = assign(node_ids, options, rules, crowding=crowding, complete=True)
    assert glance.complete == whole.complete
    assert allowed(list(glance.chosen.values()), rules)
    assert len(glance.uncovered) >= len(whole.uncovered)


@pytest.mark.parametrize("different_peers", [True, False])
async def test_other_tasks_run_while_many_nodes_go_to_many_peers(different_peers):
    node_ids = [f"n{number}" for number in range(24)]
    options = [
        option(node_id, f"p{peer}", (index + 1) * (peer + 1), {peer})
        for index, node_id in enumerate(node_ids)
        for peer in range(24)
    ]
    rules = AssignmentRules(different_peers=different_peers)
    turns = 0

    async def others():
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(others)
        assignment = await assign_in_turns(node_ids, options, rules, crowding=lambda nth: 1.0 * nth)
        nursery.cancel_scope.cancel()
    # Each node by itself, so that no turn is long.
    assert turns >= len(node_ids) - 1
    assert assignment.cost == assign(node_ids, options, rules, crowding=lambda nth: 1.0 * nth).cost


@st.composite
def larger_problems(draw):
    """As large as can be checked without an exhaustive search: each peer's bids can be used together."""
    nodes, peers = draw(st.integers(1, 9)), draw(st.integers(1, 4))
    costs = st.one_of(st.none(), st.integers(-20, 20))
    matrix = [[draw(costs) for _ in range(peers)] for _ in range(nodes)]
    return matrix, draw(st.sampled_from((0, 1, 5))), draw(st.booleans())


def relaxed(matrix, step, places):
    """The most nodes and their lowest cost, by going through the nodes with every load of the peers."""
    best = {(0,) * len(matrix[0]): (0, 0)}
    for row in matrix:
        following = dict(best)
        for load, (covered, cost) in best.items():
            for peer, own in enumerate(row):
                if own is None or load[peer] == places:
                    continue
                fuller = (*load[:peer], load[peer] + 1, *load[peer + 1 :])
                found = (covered - 1, cost + own + step * load[peer])
                following[fuller] = min(following.get(fuller, found), found)
        best = following
    return min(best.values())


@given(larger_problems())
@settings(max_examples=60, deadline=None)
def test_larger_ensembles_cost_no_more_than_they_have_to(problem):
    matrix, step, different_peers = problem
    node_ids = [f"n{number}" for number in range(len(matrix))]
    options = [
        option(node_id, f"p{peer}", cost, {peer})
        for node_id, row in zip(node_ids, matrix, strict=True)
        for peer, cost in enumerate(row)
        if cost is not None
    ]
    assignment = assign(
        node_ids, options, AssignmentRules(different_peers=different_peers), crowding=lambda nth: float(step * nth)
    )
    covered, cost = relaxed(matrix, step, 1 if different_peers else len(matrix))
    assert (-len(assignment.chosen), assignment.cost) == (covered, cost)


def test_the_cheap_peer_is_left_to_the_node_that_has_no_other():
    options = [option("a", "p", 1), option("a", "q", 5), option("b", "p", 1)]
    rules = AssignmentRules(different_peers=True)
    assert where(assign(("a", "b"), options, rules)) == {"a": "q", "b": "p"}


def test_bids_of_two_answers_of_one_peer_are_not_taken_together():
    options = [option("a", "p", 1, {1}), option("b", "p", 1, {2}), option("b", "q", 9, {3})]
    assert where(assign(("a", "b"), options)) == {"a": "p", "b": "q"}
    assert assign(("a", "b"), options[:2]).complete is False


@pytest.mark.parametrize("bound", [{"steps": 0}, {"complete": True}])
def test_of_answers_that_exclude_each_other_the_one_that_has_most_nodes_is_kept(bound):
    options = [option("a", "p", 1, {1}), option("b", "p", 1, {1}), option("c", "p", 1, {2}), option("d", "p", 1, {3})]
    assert where(assign(("a", "b", "c", "d"), options, **bound)) == {"a": "p", "b": "p"}
    # The order in which the answers came does not matter.
    turned = [option(one.node_id, "p", 1, {4 - next(iter(one.answers))}) for one in options]
    assert where(assign(("a", "b", "c", "d"), turned, **bound)) == {"a": "p", "b": "p"}


def test_it_says_of_each_uncovered_node_why():
    rules = AssignmentRules(different_peers=True, pins={"c": "r"})
    assignment = assign(("a", "b", "c", "d"), [option("a", "p"), option("b", "p"), option("c", "q")], rules)
    assert not assignment.complete
    reasons = assignment.uncovered
    assert len(reasons) == 3
    assert reasons["c"] == "the peer that it is pinned to does not bid on it: r"
    assert reasons["d"] == "no peer bids on it"
    assert reasons["a" if "a" in reasons else "b"] == "the peers that bid on it are needed for other nodes: p"


def test_many_nodes_go_to_many_peers():
    node_ids = [f"n{number}" for number in range(64)]
    options = [
        option(node_id, f"p{(index + step) % 80}", step, {(index + step) % 80})
        for index, node_id in enumerate(node_ids)
        for step in range(5)
    ]
    assignment = assign(node_ids, options, AssignmentRules(different_peers=True))
    assert assignment.complete
    assert assignment.cost == 0


def test_a_cost_that_is_no_number_comes_last():
    options = [option("a", "p", float("inf")), option("a", "q", 1e12)]
    assert where(assign(("a",), options)) == {"a": "q"}
    assert where(assign(("a",), options[:1])) == {"a": "p"}
