"""Searches for capacity on a network of ten thousand peers, in virtual time: their cost and duration.

`python ten_thousand.py [--peers 10000] [--searches 1000] [--seed 1] [--json FILE] [--docs]`. The same arguments give
the same figures. `--no-idle` leaves out what idle peers send. `--docs` writes the tables into
docs/simulation-network.md.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / capacity) for capacity in ("peer", "protocols", "resources")]
sys.path.insert(0, str(Path(__file__).resolve().parent))

from rich.console import Console  # noqa: E402 - behind the path
from rich.table import Table  # noqa: E402 - behind the path

from dms_simulation.figures import Row, rows  # noqa: E402 - behind the path
from dms_simulation.idle import IdleCost, measure_idle  # noqa: E402 - behind the path
from dms_simulation.searches import VARIANTS, Plan, run_plan  # noqa: E402 - behind the path

PAGE = ROOT / "docs" / "simulation-network.md"
SEARCHES = (
    "sources", "request", "searches", "requests", "all messages", "to join", "seconds to 3 bids",
    "success, ≥ 10 able", "success, ≥ 3 able",
)  # fmt: skip
IDLE = ("peers", "DHT upkeep", "DHT announcing", "adverts per second, of all", "adverts passed on", "gossip heartbeat")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peers", type=int, default=10_000)
    parser.add_argument("--searches", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--docs", action="store_true")
    parser.add_argument("--no-idle", action="store_true")
    parser.add_argument("--short", action="store_true", help="settle for minutes, not hours: records are still few")
    arguments = parser.parse_args()
    started = time.perf_counter()
    plan = Plan(peers=arguments.peers, searches=arguments.searches, seed=arguments.seed)
    if arguments.short:
        plan = replace(plan, settle=900.0, warming=600.0, span=60.0)
    found = rows(run_plan(plan), VARIANTS)
    title = f"{plan.peers} peers, {plan.searches} searches of each kind, seed {plan.seed}"
    lines = [_cells(row) for row in found]
    _show(title, SEARCHES, lines)
    sizes = [] if arguments.no_idle else sorted({100, 1000, plan.peers})
    idle = [measure_idle(size, plan.seed) for size in sizes]
    idle_lines = [_idle_cells(cost) for cost in idle]
    _show("messages that one peer sends per minute while nobody asks", IDLE, idle_lines)
    print(f"{time.perf_counter() - started:.0f} s", file=sys.stderr)
    if arguments.json:
        figures = {"searches": [asdict(row) for row in found], "idle": [asdict(cost) for cost in idle]}
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")
    if arguments.docs:
        _write("searches", [f"{title}.", "", *_markdown(SEARCHES, lines)])
        if idle_lines:
            _write("idle", _markdown(IDLE, idle_lines))


def _cells(row: Row) -> tuple[str, ...]:
    return (
        row.variant,
        row.request,
        str(row.searches),
        f"{row.messages[0]:.0f} / {row.messages[1]:.0f}",
        f"{row.frames[0]:.0f} / {row.frames[1]:.0f}",
        f"{row.joining:.0f}",
        f"{row.seconds[0]:.2f} / {row.seconds[1]:.2f}" if row.enough[0] else "none",
        _share(row.many),
        _share(row.enough),
    )


def _share(counted: tuple[int, int]) -> str:
    successes, searches = counted
    return f"{successes} of {searches}" if searches else "none"


def _idle_cells(cost: IdleCost) -> tuple[str, ...]:
    return (
        str(cost.peers),
        f"{cost.upkeep:.1f}",
        f"{cost.announcing:.1f}",
        f"{cost.adverts:.2f}",
        f"{cost.gossip:.0f}",
        f"{cost.heartbeat:.0f}",
    )


def _show(title: str, columns: Sequence[str], lines: Sequence[Sequence[str]]) -> None:
    table = Table(title=title)
    for place, column in enumerate(columns):
        table.add_column(column, justify="left" if place < 2 else "right")
    for line in lines:
        table.add_row(*line)
    Console(width=160).print(table)


def _markdown(columns: Sequence[str], lines: Sequence[Sequence[str]]) -> list[str]:
    rule = ["---" if place < 2 else "---:" for place in range(len(columns))]
    return [f"| {' | '.join(cells)} |" for cells in (columns, rule, *lines)]


def _write(name: str, lines: Sequence[str]) -> None:
    """Replace the text between the two marks of this name."""
    begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->\n"
    before, _, rest = PAGE.read_text().partition(begin)
    PAGE.write_text(before + begin + "\n".join(lines) + "\n" + end + rest.partition(end)[2])


if __name__ == "__main__":
    main()
