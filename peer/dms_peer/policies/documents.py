"""The JSON of questions to policies and of their answers, the same for every kind of policy.

A question is a PolicyRequest with a `version`. An answer has exactly one decision for each node, by `node_id`; any
other document is refused.
"""

from __future__ import annotations

from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta, Struct

from dms_protocols.bidding.policies import Decision, Decisions, PolicyRequest, Seconds
from dms_resources.ledger.leases import Price
from dms_resources.units import decode_value, encode_value

from ..errors import PolicyError

__all__ = ["LARGEST_ANSWER", "VERSION", "answer_document", "question_document", "read_answer", "read_question"]

VERSION: Final = 1
LARGEST_ANSWER: Final = 64 * 1024
"""The largest answer of a policy, in bytes."""


class _NodeDecision(Struct, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    node_id: str
    accept: bool
    price: Price | None = None
    message: Annotated[str, Meta(max_length=500)] = ""
    retry_after: Seconds | None = None


class _Answer(Struct, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    decisions: Annotated[tuple[_NodeDecision, ...], Meta(max_length=64)]
    max_age: Seconds = 0.0


_answers = msgspec.json.Decoder(_Answer)
_questions = msgspec.json.Decoder(PolicyRequest, dec_hook=decode_value)


def question_document(request: PolicyRequest) -> bytes:
    """Returns the question as one line of JSON."""
    fields: dict[str, Any] = msgspec.to_builtins(request, enc_hook=encode_value)
    return msgspec.json.encode({"version": VERSION, **fields})


def read_question(document: bytes) -> PolicyRequest:
    """Reads a question. Raises msgspec.DecodeError."""
    return _questions.decode(document)


def answer_document(request: PolicyRequest, answer: Decisions) -> bytes:
    """Returns the answer to a question as one line of JSON."""
    decisions = tuple(
        _NodeDecision(
            node_id=offer.node.node_id,
            accept=decision.accept,
            price=decision.price,
            message=decision.message,
            retry_after=decision.retry_after,
        )
        for offer, decision in zip(request.nodes, answer.decisions, strict=True)
    )
    return msgspec.json.encode(_Answer(decisions=decisions, max_age=answer.max_age))


def read_answer(document: bytes, request: PolicyRequest) -> Decisions:
    """Reads the decisions, in the order of the request's nodes. Raises PolicyError `policy_failed`."""
    try:
        answer = _answers.decode(document)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise PolicyError(f"its answer cannot be read: {str(error)[:200]}", code="policy_failed") from None
    found = {decision.node_id: decision for decision in answer.decisions}
    wanted = [offer.node.node_id for offer in request.nodes]
    if len(answer.decisions) != len(wanted) or found.keys() != set(wanted):
        raise PolicyError("its answer does not have exactly one decision for each node", code="policy_failed")
    return Decisions(decisions=tuple(_decision(found[node_id]) for node_id in wanted), max_age=answer.max_age)


def _decision(found: _NodeDecision) -> Decision:
    texts = (found.message, found.price.currency if found.price else "")
    if not all(text.isprintable() for text in texts):
        raise PolicyError("its answer has unprintable characters", code="policy_failed")
    return Decision(accept=found.accept, price=found.price, message=found.message, retry_after=found.retry_after)
