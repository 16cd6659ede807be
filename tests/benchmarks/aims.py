"""The aims of the benchmark, as ratios to what was measured in the same run, so that they hold on any machine."""

from __future__ import annotations

from dataclasses import dataclass

from figures import BARE_KEY, GO, JS, NOTHING, OURS, STATUS, Run


@dataclass(frozen=True)
class Aim:
    """One aim: its part, the aim, the result, and whether it is met."""

    part: str
    aim: str
    reached: str
    met: bool


def aims(run: Run) -> list[Aim]:
    """The aims that this run has figures for."""
    found = [_queries(run), _bids(run), _one_shots(run), _start_up(run)]
    return [one for one in found if one is not None]


def _queries(run: Run) -> Aim | None:
    ours = "a", "64 in flight", OURS
    rate = run.figure(*ours)
    by_js, by_go = (run.ratio(ours, ("d", "1 at once", series)) for series in (JS, GO))
    if rate is None or by_js is None or by_go is None:
        return None
    return Aim(
        "a",
        "64 in flight: 20,000/s, or 10 times js-libp2p's one-shot queries and twice go-libp2p's",
        f"{rate.median:,.0f}/s, {by_js:.1f} times and {by_go:.1f} times",
        rate.median >= 20_000 or (by_js >= 10 and by_go >= 2),
    )


def _bids(run: Run) -> Aim | None:
    ratio = run.ratio(("b", "64 in flight", OURS), ("b", "64 in flight", BARE_KEY))
    return None if ratio is None else Aim("b", "half of bare Ed25519", f"{ratio:.2f}", ratio >= 0.5)


def _one_shots(run: Run) -> Aim | None:
    ratio = run.ratio(("d", "1 at once", OURS), ("d", "1 at once", JS))
    return None if ratio is None else Aim("d", "a third of js-libp2p", f"{ratio:.2f}", ratio >= 1 / 3)


def _start_up(run: Run) -> Aim | None:
    ratio = run.ratio(("g", "from start to end", STATUS), ("g", "from start to end", NOTHING))
    return None if ratio is None else Aim("g", "6 times python -c pass at most", f"{ratio:.1f} times", ratio <= 6)
