"""Refusals that name all reasons at once, each with what the requester can do about it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from dms_resources.demands import PortShortage, Shortage, describe_shortage
from dms_resources.refusals import (
    AccountError,
    DrainingError,
    InsufficientError,
    NotOnboardedError,
    RequestError,
    ShareError,
    WindowError,
)

from ..messages.bid import Reason, Refusal

__all__ = ["ELSEWHERE", "ledger_reasons", "refusal"]

ELSEWHERE: Final = "choose another provider"
"""The hint if the requester cannot change anything."""

_LONGEST_MESSAGE: Final = 500
_LESS: Final = "ask for no more than what is free, or choose another provider"
_HIDDEN: Final = "less is free than was asked for"


def refusal(node_id: str, reasons: Sequence[Reason]) -> Refusal:
    """The refusal of a node for these reasons. There is at least one reason; the first one gives the code."""
    first = reasons[0]
    shortages = [one for reason in reasons for one in reason.shortages] if first.shortages else []
    return Refusal(
        node_id=node_id,
        code=first.code,
        message="; ".join(reason.message for reason in reasons)[:_LONGEST_MESSAGE],
        shortages=tuple(shortages),
        retry_after=first.retry_after,
        reasons=tuple(reasons),
    )


def ledger_reasons(errors: Iterable[RequestError], *, detailed: bool = True) -> list[Reason]:
    """The reasons in the errors of the ledger, one for each code.

    Without `detailed` the reasons do not say how much is free, because the caller may not know it.
    """
    reasons: dict[str, Reason] = {}
    for error in errors:
        for reason in _reasons(error, detailed):
            reasons.setdefault(reason.code, reason)
    return list(reasons.values())


def _reasons(error: RequestError, detailed: bool) -> Iterator[Reason]:
    wait = error.retry_after
    if isinstance(error, InsufficientError) and error.shortages:
        ports = tuple(one for one in error.shortages if isinstance(one, PortShortage))
        others = tuple(one for one in error.shortages if not isinstance(one, PortShortage))
        if others:
            yield _short("resources", others, _LESS, wait, detailed)
        if ports:
            yield _short("ports", ports, "ask for other ports, or for any (dynamic)", wait, detailed)
        return
    code, hint = _code_and_hint(error)
    yield Reason(code=code, message=error.message[:_LONGEST_MESSAGE], hint=hint, retry_after=wait)


def _short(code: str, shortages: tuple[Shortage, ...], hint: str, wait: float | None, detailed: bool) -> Reason:
    if not detailed:
        return Reason(code=code, message=_HIDDEN, hint=hint, retry_after=wait)
    message = "; ".join(map(describe_shortage, shortages))[:_LONGEST_MESSAGE]
    return Reason(code=code, message=message, hint=hint, shortages=shortages, retry_after=wait)


def _code_and_hint(error: RequestError) -> tuple[str, str]:
    match error:
        case NotOnboardedError():
            return "not_onboarded", ELSEWHERE
        case DrainingError():
            return "draining", ELSEWHERE
        case WindowError():
            return "window", "ask for a shorter time (ttl), or again when the owner's window opens"
        case InsufficientError():
            return "resources", _LESS
        case AccountError() | ShareError(retry_after=None):
            # No later change is known that would make it possible.
            return "policy", error.hint or "ask for less"
        case _:
            return "busy", "ask again later"
