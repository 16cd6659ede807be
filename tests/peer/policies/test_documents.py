"""The questions to policies and their answers, with any bytes."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dms_peer.errors import PolicyError
from dms_peer.policies.documents import answer_document, question_document, read_answer, read_question
from dms_peer.policies.open import open_policies
from dms_peer.policies.settings import EntryPointSettings
from dms_protocols.bidding.policies import Decision, Decisions, NodeOffer, PolicyRequest
from dms_protocols.messages.bid import NodeRequest
from dms_resources.components import CPU, RAM, Disk, Resources
from dms_resources.ledger.leases import Price
from dms_resources.units import Cores

GIVEN = Resources(cpu=CPU(cores=Cores(1500)), ram=RAM(size=1), disk=Disk(size=0), gpus=())
NODES = tuple(NodeOffer(node=NodeRequest(node_id=name), resources=GIVEN) for name in "ab")
QUESTION = PolicyRequest(requester="p", ensemble_id="e", nonce=1, hold=0.0, ttl=0.0, nodes=NODES)


def test_a_question_reads_back_and_is_one_line() -> None:
    document = question_document(QUESTION)
    assert read_question(document) == QUESTION
    assert b"\n" not in document


def test_an_answer_reads_back() -> None:
    answer = Decisions(
        decisions=(
            Decision(accept=True, price=Price(micros_per_hour=3, currency="EUR")),
            Decision(accept=False, message="no", retry_after=2.5),
        ),
        max_age=9.0,
    )
    assert read_answer(answer_document(QUESTION, answer), QUESTION) == answer


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(["a", "b"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["decisions", "node_id", "accept", "price", "micros_per_hour", "currency", "message", "retry_after",
                 "max_age", "other"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)  # fmt: skip
NEARLY = st.lists(
    st.fixed_dictionaries(
        {"node_id": st.sampled_from(["a", "b", "c"]), "accept": st.booleans()},
        optional={"price": VALUES, "message": st.text(max_size=3), "retry_after": st.floats() | st.integers()},
    ),
    max_size=3,
).map(lambda decisions: {"decisions": decisions})


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=60) | (VALUES | NEARLY).map(lambda value: json.dumps(value).encode()))
def test_any_bytes_are_a_decision_about_each_node_or_none(document: bytes) -> None:
    try:
        answer = read_answer(document, QUESTION)
    except PolicyError:
        return
    assert len(answer.decisions) == 2
    for decision in answer.decisions:
        assert decision.code == "policy"
        assert decision.message.isprintable()
        assert decision.retry_after is None or 0 <= decision.retry_after <= 31_536_000
        assert decision.price is None or 0 <= decision.price.micros_per_hour < 2**63


def test_half_a_character_is_no_answer() -> None:
    text = '{"decisions":[{"node_id":"a","accept":false,"message":"\\ud800"},{"node_id":"b","accept":true}]}'
    with pytest.raises(PolicyError):
        read_answer(text.encode(), QUESTION)


DOCS = (Path(__file__).parents[3] / "docs" / "policies.md").read_text()
EXAMPLES = re.findall(r"```json\n(.*?)```", DOCS, re.DOTALL)


def test_the_question_and_the_answer_in_the_docs() -> None:
    question, answer = EXAMPLES
    request = read_question(question.encode())
    assert json.loads(question).keys() == json.loads(question_document(request)).keys()
    decided = read_answer(answer.encode(), request)
    assert (decided.decisions[0].accept, decided.max_age) == (True, 60.0)


async def test_the_entry_point_in_the_docs(entry_point: Callable[[str], str]) -> None:
    (body,) = re.findall(r"```python\n(.*?)```", DOCS, re.DOTALL)
    bounds = EntryPointSettings(name=entry_point(body), budget=20.0, max_concurrent=1)
    async with open_policies([bounds]) as (policy,):
        assert [decision.accept for decision in (await policy.decide(QUESTION)).decisions] == [True, True]
