"""Chooses among bids if several suffice. Other packages add strategies by the entry point group `dms_peer.strategies`.

A strategy gives every bid a cost (lower is better), and may make each further node on the same peer cost more.
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
        """Whether each peer is also queried for its free capacity."""
        ...

    def costs(self, bids: Sequence[ReceivedBid]) -> Sequence[float]:
        """The cost of each of these bids, which are all the bids. A bid with an infinite cost or NaN is chosen last."""
        ...

    def crowding(self, nth: int) -> float:
        """The additional cost of the nth further node on the same peer (n from 1). It must not fall as n grows."""
        ...


@dataclass(frozen=True, slots=True)
class StrategyOptions:
    """The arguments of a strategy factory: a source of random numbers, and the preferred currency of prices."""

    rng: random.Random = field(default_factory=random.SystemRandom)
    currency: str = ""


StrategyFactory: TypeAlias = Callable[[StrategyOptions], Strategy]


class _Even:
    """Needs only the bids. It does not matter whether nodes share a peer."""

    needs_free = False

    def crowding(self, nth: int) -> float:
        return 0.0


class _Cheapest(_Even):
    """The lowest price per hour. A bid without a price is free of charge.

    Prices in different currencies cannot be compared. Bids in the preferred currency come first; without one, bids in
    the currency of most bids. All other bids come after them.
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
    """The smallest part of the free capacity left over, on average over the demanded dimensions. Peers that do not say
    what they have free come last.
    """

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
        # One more peer outweighs any evenness among the others: an ensemble has at most 64 nodes.
        return 10_000 + nth


class _Nearest(_Even):
    """The lowest round trip. Bids without one, from a broadcast, come last."""

    def __init__(self, options: StrategyOptions) -> None:
        pass

    def costs(self, bids: Sequence[ReceivedBid]) -> Sequence[float]:
        return [float("inf") if received.round_trip is None else received.round_trip for received in bids]


class _Random(_Even):
    """A random choice."""

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
    """The names of all strategies, built-in and installed."""
    return sorted({*_BUILT_IN, *(point.name for point in entry_points(group=STRATEGY_GROUP))})


def strategy_named(name: str, options: StrategyOptions | None = None) -> Strategy:
    """The strategy of this name. A built-in one cannot be replaced by an installed one.

    Raises StrategyError `unknown_strategy` with the known names, or `bad_strategy` if an entry point cannot be loaded.
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
    """The part of the free capacity that stays free (0 to 1), on average over the demanded dimensions."""
    amounts = (
        (demand.cpu.cores.millicores, free.cpu.cores.millicores),
        (demand.ram.size, free.ram.size),
        (demand.disk.size, free.disk.size),
        (sum(gpu.vram for gpu in demand.gpus), sum(gpu.vram for gpu in free.gpus)),
    )
    shares = [max(0, have - asked) / have for asked, have in amounts if asked and have]
    return sum(shares) / len(shares) if shares else 1.0
