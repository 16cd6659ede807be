"""Which bids are taken where several suffice. Own strategies are found by the entry point group `dms_peer.strategies`.

A strategy gives every bid a cost, lower is better, and may make each further node on the same peer cost more.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from typing import Final, Protocol, TypeAlias

from dms_resources.components import FreeResources
from dms_resources.demands import Demand

from .bids import ReceivedBid
from .errors import StrategyError

__all__ = [
    "STRATEGY_GROUP",
    "Strategy",
    "StrategyFactory",
    "StrategyOptions",
    "strategy_named",
    "strategy_names",
]

STRATEGY_GROUP: Final = "dms_peer.strategies"
"""The entry point group of strategies; an entry point leads to a StrategyFactory."""


class Strategy(Protocol):
    """Prefers some bids over others."""

    @property
    def needs_free(self) -> bool:
        """Whether each peer is asked what it has free, besides its bids."""
        ...

    def costs(self, bids: Sequence[ReceivedBid]) -> Sequence[float]:
        """What each of these bids, which are all there are, costs. One that is not finite is taken last."""
        ...

    def crowding(self, nth: int) -> float:
        """What the nth further node on the same peer (n from 1) costs more; must not fall as n grows."""
        ...


@dataclass(frozen=True, slots=True)
class StrategyOptions:
    """What a strategy may be made with: a source of chance, and the currency that prices are wanted in."""

    rng: random.Random = field(default_factory=random.SystemRandom)
    currency: str = ""


StrategyFactory: TypeAlias = Callable[[StrategyOptions], Strategy]


class _Even:
    """Needs only the bids; many nodes on one peer are as good as on many peers."""

    needs_free = False

    def crowding(self, nth: int) -> float:
        return 0.0


class _Cheapest(_Even):
    """The lowest price per hour; what has no price is free.

    Prices in different currencies cannot be compared: those in the currency asked for come first, or, where none was
    asked for, those in the currency of most bids; all others come after them.
    """

    def __init__(self, options: StrategyOptions) -> None:
        self._currency = options.currency

    def costs(self, bids: Sequence[ReceivedBid]) -> Sequence[float]:
        prices = [received.bid.price for received in bids]
        currency = self._currency or _most_used([price.currency for price in prices if price is not None])
        known = [price.micros_per_hour for price in prices if price is not None and price.currency == currency]
        foreign = sum(known) + 1
        return [
            0 if price is None else price.micros_per_hour + (0 if price.currency == currency else foreign)
            for price in prices
        ]


class _Tightest(_Even):
    """The least left over of what the peer has free, on average of what was asked; a peer that keeps that to itself
    comes last."""

    needs_free = True

    def __init__(self, options: StrategyOptions) -> None:
        pass

    def costs(self, bids: Sequence[ReceivedBid]) -> Sequence[float]:
        return [
            float("inf") if received.free is None else _left_over(received.free, received.bid.demand)
            for received in bids
        ]


class _Spread:
    """As many different peers as possible, and on each as few nodes as possible."""

    needs_free = False

    def __init__(self, options: StrategyOptions) -> None:
        pass

    def costs(self, bids: Sequence[ReceivedBid]) -> Sequence[float]:
        return [0] * len(bids)

    def crowding(self, nth: int) -> float:
        # One peer more is worth any evenness among the others: an ensemble has 64 nodes at most.
        return 10_000 + nth


class _Nearest(_Even):
    """The lowest round trip; what came without one, by broadcast, comes last."""

    def __init__(self, options: StrategyOptions) -> None:
        pass

    def costs(self, bids: Sequence[ReceivedBid]) -> Sequence[float]:
        return [float("inf") if received.round_trip is None else received.round_trip for received in bids]


class _Random(_Even):
    """Any of them."""

    def __init__(self, options: StrategyOptions) -> None:
        self._rng = options.rng

    def costs(self, bids: Sequence[ReceivedBid]) -> Sequence[float]:
        return [self._rng.random() for _ in bids]


_BUILT_IN: Final[dict[str, StrategyFactory]] = {
    "cheapest": _Cheapest,
    "nearest": _Nearest,
    "random": _Random,
    "spread": _Spread,
    "tightest": _Tightest,
}


def strategy_names() -> list[str]:
    """The strategies that are there, built in and installed."""
    return sorted({*_BUILT_IN, *(point.name for point in entry_points(group=STRATEGY_GROUP))})


def strategy_named(name: str, options: StrategyOptions | None = None) -> Strategy:
    """The strategy of this name; a built-in one is not replaced by an installed one.

    Raises StrategyError `unknown_strategy` with the names that are there, or `bad_strategy` for an entry point that
    cannot be loaded.
    """
    factory = _BUILT_IN.get(name) or _installed(name)
    if factory is None:
        raise StrategyError(
            f"there is no strategy {name[:64]!r}",
            code="unknown_strategy",
            name=name,
            hint=f"there are {', '.join(strategy_names())}",
        )
    return factory(options or StrategyOptions())


def _installed(name: str) -> StrategyFactory | None:
    for point in entry_points(group=STRATEGY_GROUP, name=name):
        try:
            factory: StrategyFactory = point.load()
        except Exception as error:
            raise StrategyError(
                f"the strategy {name!r} cannot be loaded: {error}",
                code="bad_strategy",
                name=name,
                hint=f"see {point.value}",
            ) from error
        return factory
    return None


def _most_used(currencies: Sequence[str]) -> str:
    counts = Counter(currencies)
    return min(counts, key=lambda currency: (-counts[currency], currency), default="")


def _left_over(free: FreeResources, demand: Demand) -> float:
    """The share of what is free that stays free (0 to 1), on average over what is asked for."""
    amounts = (
        (demand.cpu.cores.millicores, free.cpu.cores.millicores),
        (demand.ram.size, free.ram.size),
        (demand.disk.size, free.disk.size),
        (sum(gpu.vram for gpu in demand.gpus), sum(gpu.vram for gpu in free.gpus)),
    )
    shares = [max(0, have - asked) / have for asked, have in amounts if asked and have]
    return sum(shares) / len(shares) if shares else 1.0
