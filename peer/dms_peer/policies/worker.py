"""The process in which an entry point runs. It reads one question a line, and writes the decisions of the policy.

The output of the policy itself is discarded, because standard input and output carry questions and answers.
"""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable
from importlib.metadata import entry_points
from typing import Any, Final

import msgspec

from dms_protocols.bidding.policies import Decisions, PolicyRequest

from .documents import answer_document, read_question

__all__ = ["GROUP", "load_entry_point", "main"]

GROUP: Final = "dms_peer.policies"
"""The entry-point group of policies."""


def load_entry_point(name: str) -> Callable[[PolicyRequest], Any]:
    """Returns the function that decides: the entry point itself, or the `decide` of an object or a class.

    Raises LookupError for an unknown name, TypeError for something that cannot be called, and what the import raises.
    """
    found = tuple(entry_points(group=GROUP, name=name))
    if not found:
        there = ", ".join(sorted(entry_points(group=GROUP).names)) or "none"
        raise LookupError(f"unknown entry point {name!r} in the group {GROUP}; known: {there}")
    policy = found[0].load()
    if inspect.isclass(policy):
        policy = policy()
    decide = getattr(policy, "decide", policy)
    if not callable(decide):
        raise TypeError(f"the entry point {name!r} is neither a function nor an object with `decide`")
    return decide  # type: ignore[no-any-return]


def main() -> None:
    """Runs the entry point that the first argument names, until standard input ends."""
    questions, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb", buffering=0)
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1):
        os.dup2(nothing, descriptor)

    def put(document: bytes) -> None:
        answers.write(document + b"\n")

    try:
        decide = load_entry_point(sys.argv[1])
    except Exception as error:
        put(_failure(error))
        return
    put(msgspec.json.encode({"ready": True}))
    for line in questions:
        try:
            put(b'{"answer":' + _answer(decide, read_question(line)) + b"}")
        except Exception as error:
            put(_failure(error))


def _answer(decide: Callable[[PolicyRequest], Any], request: PolicyRequest) -> bytes:
    decided = decide(request)
    if inspect.isawaitable(decided):
        decided = _awaited(decided)
    if not isinstance(decided, Decisions):
        decided = Decisions(decisions=tuple(decided))
    return answer_document(request, decided)


def _awaited(decided: Any) -> Any:
    # A policy that is not async does not need trio.
    import trio

    async def wait() -> Any:
        return await decided

    return trio.run(wait)


def _failure(error: Exception) -> bytes:
    return msgspec.json.encode({"error": f"{type(error).__name__}: {error}"[:1000]})


if __name__ == "__main__":
    main()
