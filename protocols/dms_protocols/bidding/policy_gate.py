"""Limits a policy that takes time: its duration, its concurrency, and how long its decisions are used again.

Rules:

1. If the policy fails, or makes no decision within `budget` seconds, all nodes are refused. The reason is logged; the
   requester does not learn it.
2. At most `max_concurrent` requests are decided at the same time, and at most half of them (at least one) for the same
   requester. A request above that does not wait: it is refused with `busy` and a time to retry.
3. A decision is used again only if the policy gave it a `max_age`, and only for a request that differs in nothing but
   the id and the nonce of the ensemble.
"""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from typing import Final

import trio
from msgspec.structs import replace

from dms_resources.bounded_dict import BoundedDict

from ..logs import LimitedLog
from ..wire.conversion import sealed_bytes
from .policies import AsyncPolicy, Decision, Decisions, PolicyRequest, no_answer

__all__ = ["PolicyGate"]

_log = LimitedLog(logging.getLogger(__name__))

_MOST_DECISIONS: Final = 1024
_LONGEST_AGE: Final = 3600.0


class PolicyGate:
    """An AsyncPolicy around another one. `name` is its name in the log; `budget` is in seconds."""

    def __init__(self, policy: AsyncPolicy, name: str, *, budget: float = 1.0, max_concurrent: int = 4) -> None:
        self._policy = policy
        self._name = name
        self._budget = budget
        self._most = max_concurrent
        self._under_way: Counter[str] = Counter()
        self._known: BoundedDict[bytes, tuple[float, Decisions]] = BoundedDict(_MOST_DECISIONS)

    async def decide(self, request: PolicyRequest) -> Decisions:
        """The decision of the policy, new or remembered, or a refusal in its place. Raises nothing but cancellation."""
        key = _question(request)
        known = self._known.get(key)
        if known is not None and trio.current_time() < known[0]:
            return known[1]
        if self._is_busy(request.requester):
            busy = Decision(
                accept=False,
                code="busy",
                message="the owner's policy decides about others now",
                retry_after=self._budget,
            )
            return Decisions(decisions=(busy,) * len(request.nodes))
        self._under_way[request.requester] += 1
        try:
            return self._remember(key, await self._decide(request))
        finally:
            self._under_way -= Counter((request.requester,))

    def _is_busy(self, requester: str) -> bool:
        return self._under_way.total() >= self._most or self._under_way[requester] >= max(1, self._most // 2)

    async def _decide(self, request: PolicyRequest) -> Decisions:
        why: object = f"no answer within {self._budget:g} s"
        try:
            with trio.move_on_after(self._budget):
                answer = await self._policy.decide(request)
                if len(answer.decisions) == len(request.nodes):
                    return answer
                why = f"{len(answer.decisions)} decisions about {len(request.nodes)} nodes"
        except Exception as error:
            why = error
        _log.error("policy %s has not decided, so nothing is bid: %.500s", self._name, _reason(why))
        return Decisions(decisions=no_answer(len(request.nodes)))

    def _remember(self, key: bytes, answer: Decisions) -> Decisions:
        self._known.pop(key, None)
        if answer.max_age > 0:
            self._known[key] = (trio.current_time() + min(answer.max_age, _LONGEST_AGE), answer)
        return answer


def _question(request: PolicyRequest) -> bytes:
    return hashlib.sha256(sealed_bytes(replace(request, ensemble_id="", nonce=0))).digest()


def _reason(why: object) -> str:
    text = str(why)
    return f"{type(why).__name__}: {text}" if isinstance(why, Exception) else text
