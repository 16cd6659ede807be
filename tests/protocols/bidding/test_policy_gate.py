"""The gate before a slow policy, in virtual time."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import trio
import trio.testing
from msgspec.structs import replace

from dms_protocols.bidding import policy_gate
from dms_protocols.bidding.policies import Decision, Decisions, NodeOffer, PolicyRequest, no_answer
from dms_protocols.bidding.policy_gate import PolicyGate
from dms_protocols.logs import LimitedLog
from dms_protocols.messages.bid import NodeRequest
from dms_resources.components import CPU, RAM, Disk, Resources
from dms_resources.units import Cores

GIVEN = Resources(cpu=CPU(cores=Cores(1000)), ram=RAM(size=1), disk=Disk(size=0), gpus=())
NODE = NodeOffer(node=NodeRequest(node_id="a"), resources=GIVEN)
QUESTION = PolicyRequest(requester="one", ensemble_id="e", nonce=1, hold=0.0, ttl=0.0, nodes=(NODE,))
ACCEPTED = Decisions(decisions=(Decision(accept=True),))
REFUSED = Decisions(decisions=no_answer(1))


class Waiting:
    """Answers after some seconds, and counts the questions."""

    def __init__(self, seconds: float, answer: Any = ACCEPTED) -> None:
        self.asked = 0
        self.under_way = 0
        self._seconds = seconds
        self._answer = answer

    async def decide(self, request: PolicyRequest) -> Decisions:
        self.asked += 1
        self.under_way += 1
        try:
            await trio.sleep(self._seconds)
        finally:
            self.under_way -= 1
        if isinstance(self._answer, Exception):
            raise self._answer
        return self._answer  # type: ignore[no-any-return]


async def test_its_budget_is_the_longest_that_anybody_waits(autojump_clock: trio.testing.MockClock) -> None:
    policy = Waiting(2.0)
    began = trio.current_time()
    assert await PolicyGate(policy, "p", budget=2.5).decide(QUESTION) == ACCEPTED
    assert await PolicyGate(policy, "p", budget=1.5).decide(QUESTION) == REFUSED
    assert trio.current_time() - began == pytest.approx(3.5)
    assert policy.under_way == 0


@pytest.mark.parametrize(
    "answer",
    [ValueError("x" * 10_000), ExceptionGroup("two", [ValueError(), OSError()]), Decisions(decisions=())],
)
async def test_whatever_it_does_is_a_refusal_and_one_bounded_line(
    autojump_clock: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, answer: Any
) -> None:
    monkeypatch.setattr(policy_gate, "_log", LimitedLog(logging.getLogger("dms_protocols.bidding.policy_gate")))
    with caplog.at_level(logging.ERROR):
        assert await PolicyGate(Waiting(0.0, answer), "the owner's", budget=1.0).decide(QUESTION) == REFUSED
    (record,) = caplog.records
    assert "the owner's" in record.getMessage()
    assert len(record.getMessage()) < 700


async def test_beyond_its_bound_nobody_waits_and_nobody_gets_more_than_half(autojump_clock: Any) -> None:
    policy = Waiting(0.9)
    gate = PolicyGate(policy, "p", budget=1.0, max_concurrent=4)
    answers: dict[str, list[Decisions]] = {}

    async def ask(requester: str) -> None:
        answers.setdefault(requester, []).append(await gate.decide(replace(QUESTION, requester=requester)))

    async with trio.open_nursery() as nursery:
        for requester in ("one", "one", "two", "two"):
            nursery.start_soon(ask, requester)
        await trio.testing.wait_all_tasks_blocked()
        assert policy.under_way == 4
        began = trio.current_time()
        for requester in ("one", "three"):
            (decision,) = (await gate.decide(replace(QUESTION, requester=requester))).decisions
            assert (decision.accept, decision.code, decision.retry_after) == (False, "busy", 1.0)
        assert trio.current_time() == began
    assert answers == {"one": [ACCEPTED] * 2, "two": [ACCEPTED] * 2}
    # There is a free slot again, also after a cancelled question.
    with trio.move_on_after(0.1):
        await gate.decide(QUESTION)
    assert policy.under_way == 0
    assert await gate.decide(QUESTION) == ACCEPTED


async def test_one_requester_alone_gets_half(autojump_clock: Any) -> None:
    policy = Waiting(0.9)
    gate = PolicyGate(policy, "p", budget=1.0, max_concurrent=4)
    codes: list[str] = []

    async def ask() -> None:
        codes.append((await gate.decide(QUESTION)).decisions[0].code)

    async with trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(ask)
    assert sorted(codes) == ["busy", "busy", "policy", "policy"]
    assert policy.asked == 2


async def test_a_decision_is_used_again_only_for_as_long_as_the_policy_said(autojump_clock: Any) -> None:
    once = Waiting(0.0)
    gate = PolicyGate(once, "p")
    for _ in range(2):
        await gate.decide(QUESTION)
    assert once.asked == 2, "nothing was said"
    assert not gate._known
    kept = Waiting(0.0, replace(ACCEPTED, max_age=10.0))
    gate = PolicyGate(kept, "p")
    for seconds, asked in ((0, 1), (9, 1), (2, 2), (11, 3)):
        await trio.sleep(seconds)
        assert (await gate.decide(QUESTION)).decisions == ACCEPTED.decisions
        assert kept.asked == asked


@pytest.mark.parametrize(
    ("change", "same"),
    [
        (lambda question: replace(question, nonce=2), True),
        (lambda question: replace(question, ensemble_id="f"), True),
        (lambda question: replace(question, requester="two"), False),
        (lambda question: replace(question, hold=1.0), False),
        (lambda question: replace(question, ttl=1.0), False),
        (lambda question: replace(question, nodes=(replace(NODE, node=NodeRequest(node_id="b")),)), False),
        (lambda question: replace(question, nodes=(replace(NODE, resources=replace(GIVEN, ram=RAM(size=2))),)), False),
    ],
)
async def test_only_the_same_question_is_answered_as_before(
    autojump_clock: Any, change: Callable[[PolicyRequest], PolicyRequest], same: bool
) -> None:
    policy = Waiting(0.0, replace(ACCEPTED, max_age=10.0))
    gate = PolicyGate(policy, "p")
    await gate.decide(QUESTION)
    await gate.decide(change(QUESTION))
    assert policy.asked == (1 if same else 2)


async def test_what_is_remembered_is_bounded_in_number_and_in_time(autojump_clock: Any) -> None:
    policy = Waiting(0.0, replace(ACCEPTED, max_age=1e7))
    gate = PolicyGate(policy, "p")
    for number in range(1030):
        await gate.decide(replace(QUESTION, ttl=float(number)))
    assert len(gate._known) == 1024
    await trio.sleep(3601)
    await gate.decide(replace(QUESTION, ttl=1029.0))
    assert policy.asked == 1031
