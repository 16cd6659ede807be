"""The summary of many searches: medians, 99th percentiles and rates."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from .population import REQUESTS
from .searches import WANTED, Outcome, Variant

__all__ = ["Row", "quantile", "rows"]

_MANY = 10


@dataclass(frozen=True, slots=True)
class Row:
    """Searches of one kind that started when at least three capable peers were there.

    Pairs are the median and the 99th percentile. `messages` are the requester's requests and failed dials, `frames` all
    messages of all peers because of the search, `joining` (median) what else the requester sent to join the network.
    `enough` and `many` are (successes, searches) with at least three and at least ten capable peers.
    """

    variant: str
    request: str
    searches: int
    messages: tuple[float, float]
    frames: tuple[float, float]
    joining: float
    seconds: tuple[float, float]
    enough: tuple[int, int]
    many: tuple[int, int]


def rows(outcomes: Sequence[Outcome], variants: Iterable[Variant]) -> list[Row]:
    """One row for each variant and request, in their order."""
    found = []
    for variant in variants:
        for number, request in enumerate(REQUESTS):
            those = [one for one in outcomes if one.variant == variant.name and one.request == number]
            # A search that cannot succeed says nothing about the cost of success.
            able = [one for one in those if one.able >= WANTED]
            if able:
                found.append(_row(variant.name, request.name, able))
    return found


def _row(variant: str, request: str, outcomes: Sequence[Outcome]) -> Row:
    many = [one for one in outcomes if one.able >= _MANY]
    return Row(
        variant=variant,
        request=request,
        searches=len(outcomes),
        messages=_pair(one.tally.requests for one in outcomes),
        frames=_pair(one.tally.frames + one.tally.dials + one.tally.others for one in outcomes),
        joining=quantile([one.upkeep.requests for one in outcomes], 0.5),
        seconds=_pair(one.seconds for one in outcomes if one.seconds is not None),
        enough=(sum(one.seconds is not None for one in outcomes), len(outcomes)),
        many=(sum(one.seconds is not None for one in many), len(many)),
    )


def _pair(values: Iterable[float]) -> tuple[float, float]:
    known = list(values)
    return quantile(known, 0.5), quantile(known, 0.99)


def quantile(values: Sequence[float], part: float) -> float:
    """The smallest value that this part of them does not exceed; NaN of none."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(part * len(ordered)) - 1)] if ordered else math.nan
