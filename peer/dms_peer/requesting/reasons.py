"""Why a node is not covered: every refusal with its shortages, and every failure, counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from msgspec import Struct

from dms_protocols.messages.bid import Refusal
from dms_resources.demands import Shortage

__all__ = ["CountedReason", "NodeReasons", "ReasonLog", "summarize_reasons"]

# The number of different reasons that are kept for one node. Further reasons are counted by their codes.
_MOST_REASONS = 64
# The number of nodes that are named in a sentence.
_MOST_NODES = 4


class CountedReason(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A refusal that was given `count` times in the same words. `retry_after` (seconds) is the earliest time that was
    named.
    """

    code: str
    count: int
    message: str
    shortages: tuple[Shortage, ...] = ()
    retry_after: float | None = None

    def describe(self) -> str:
        """A short description for people: "2 times: ram: 8 GiB asked, 2 GiB free of 4 GiB (resources)"."""
        return f"{'once' if self.count == 1 else f'{self.count} times'}: {self.message} ({self.code})"


class NodeReasons(Struct, frozen=True, kw_only=True):
    """Why one node is not covered: a sentence, and the answers of the peers, the most frequent first."""

    node_id: str
    why: str
    peers: tuple[CountedReason, ...]

    def describe(self) -> str:
        """One line for people: "a: no peer bids on it: 2 times: ram: 8 GiB asked, 2 GiB free of 4 GiB (resources)"."""
        return f"{self.node_id}: {self.why}" + f": {'; '.join(self.said())}" * bool(self.peers)

    def said(self, most: int = 3) -> list[str]:
        """The answers of the peers: at most `most`, each in one line, the most frequent first, and how many more there
        are.
        """
        more = len(self.peers) - most
        return [reason.describe() for reason in self.peers[:most]] + [f"{more} other reasons"] * (more > 0)


def summarize_reasons(reasons: Sequence[NodeReasons]) -> str:
    """Why nodes are not covered, without the answers of the peers: "a, b: no peer bids on it"."""
    by_why: dict[str, list[str]] = {}
    for reason in reasons:
        by_why.setdefault(reason.why, []).append(reason.node_id)
    return "; ".join(f"{_named(node_ids)}: {why}" for why, node_ids in by_why.items())


def _named(node_ids: Sequence[str]) -> str:
    more = len(node_ids) - _MOST_NODES
    return ", ".join(node_ids[:_MOST_NODES]) + (f" and {more} more" if more > 0 else "")


class ReasonLog:
    """Collects a bounded number of reasons."""

    def __init__(self) -> None:
        self._by_node: dict[str, dict[tuple[str, str], CountedReason]] = {}

    def refused(self, refusal: Refusal) -> None:
        """Note that a peer refused a node."""
        for one in refusal.all_reasons:
            self._add(refusal.node_id, one.code, one.message, one.shortages, one.retry_after)

    def failed(self, node_ids: Iterable[str], code: str, message: str) -> None:
        """Note that a peer could not be queried about these nodes, or did not keep its bids on them."""
        for node_id in node_ids:
            self._add(node_id, code, message, (), None)

    def about(self, node_id: str, why: str) -> NodeReasons:
        """The reasons for one node."""
        peers = sorted(self._by_node.get(node_id, {}).values(), key=lambda one: (-one.count, one.code, one.message))
        return NodeReasons(node_id=node_id, why=why, peers=tuple(peers))

    def codes(self, node_ids: Sequence[str]) -> Counter[str]:
        """How often each code was given for these nodes."""
        codes: Counter[str] = Counter()
        for node_id in node_ids:
            for reason in self._by_node.get(node_id, {}).values():
                codes[reason.code] += reason.count
        return codes

    def _add(
        self, node_id: str, code: str, message: str, shortages: tuple[Shortage, ...], retry_after: float | None
    ) -> None:
        reasons = self._by_node.setdefault(node_id, {})
        key = (code[:64], message[:300])
        if key not in reasons and len(reasons) >= _MOST_REASONS:
            key, shortages = ("others", "other reasons"), ()
        known = reasons.get(key)
        times = [one for one in (known.retry_after if known else None, retry_after) if one is not None]
        reasons[key] = CountedReason(
            code=key[0],
            message=key[1],
            count=known.count + 1 if known else 1,
            shortages=known.shortages if known else shortages,
            retry_after=min(times, default=None),
        )
