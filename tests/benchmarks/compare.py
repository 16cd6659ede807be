"""Compares two runs of the benchmark: every figure, and what changed by more than the noise.

    python tests/benchmarks/compare.py tests/benchmarks/history/0.2.0.json new.json [--json] [--changed]

A figure has changed if the values of all rounds of one run lie on the same side of all values of the other. With five
rounds each, chance alone does that once in 126 times. Figures of two machines cannot be compared; there the ratios to
what was measured in the same run are compared (go-libp2p, bare Ed25519, and so on).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, Literal

import msgspec
from figures import OURS_TO_OURS, Figure, Run, distinct, read_run
from rich.console import Console
from rich.table import Table

# With three rounds each, chance alone puts all on one side once in ten times; with two, once in three.
FEWEST: Final = 3
Verdict = Literal["better", "worse", ""]


@dataclass(frozen=True)
class Change:
    """The change of one figure, or of one ratio of a run. `ratio` is the new value divided by the old one."""

    part: str
    what: str
    series: str
    before: float
    after: float
    ratio: float
    verdict: Verdict


def changes(before: Run, after: Run) -> list[Change]:
    """Every figure that both runs have. For two machines, every ratio instead."""
    figures, others = before.figures, after.figures
    if before.machine != after.machine:
        figures, others = tuple(_ratios(before)), tuple(_ratios(after))
    earlier = {one.key: one for one in figures}
    return [_change(earlier[one.key], one) for one in others if one.key in earlier]


def _ratios(run: Run) -> Iterator[Figure]:
    """The first series of each row against the others, round by round."""
    for part, what in distinct((figure.part, figure.what) for figure in run.figures):
        ours, *others = [one for one in run.of_part(part) if one.what == what and one.series != OURS_TO_OURS]
        for other in (one for one in others if all(one.values)):
            key = f"{ours.series} / {other.series}"
            yield msgspec.structs.replace(ours, series=key, unit="", values=ours.through(other))


def _change(before: Figure, after: Figure) -> Change:
    return Change(
        part=after.part,
        what=after.what,
        series=after.series,
        before=before.median,
        after=after.median,
        ratio=after.median / before.median,
        verdict=verdict(before, after),
    )


def verdict(before: Figure, after: Figure) -> Verdict:
    """Whether the rounds of both are separate, and in which direction. With fewer than FEWEST rounds there is no
    verdict.
    """
    if min(len(before.values), len(after.values)) < FEWEST:
        return ""
    rose = min(after.values) > max(before.values)
    fell = max(after.values) < min(before.values)
    if not (rose or fell):
        return ""
    return "better" if rose == (after.better == "higher") else "worse"


def show(before: Run, after: Run, found: list[Change]) -> None:
    """Print a table."""
    console = Console()
    console.print(f"{before.version} ({before.date}) and {after.version} ({after.date})")
    if before.machine != after.machine:
        console.print(f"on two machines ({before.machine}; {after.machine}): ratios within each run are compared")
    table = Table("", "", "of", "before", "after", "after / before", "")
    for one in found:
        cells = one.part, one.what, one.series, f"{one.before:.4g}", f"{one.after:.4g}", f"{one.ratio:.2f}"
        table.add_row(*cells, one.verdict, style={"better": "green", "worse": "red", "": None}[one.verdict])
    console.print(table)
    console.print("Marked is what changed by more than the rounds of each run differ.")


def main() -> None:
    """Compare the two files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path, help="the earlier run")
    parser.add_argument("after", type=Path, help="the later one")
    parser.add_argument("--changed", action="store_true", help="show only what changed by more than the noise")
    parser.add_argument("--json", action="store_true", help="print a JSON list")
    chosen = parser.parse_args()
    try:
        before, after = read_run(chosen.before), read_run(chosen.after)
    except (OSError, msgspec.MsgspecError) as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    found = [one for one in changes(before, after) if one.verdict or not chosen.changed]
    if chosen.json:
        print(json.dumps([asdict(one) for one in found], indent=1))
    else:
        show(before, after, found)


if __name__ == "__main__":
    main()
