"""The benchmark: our peer compared with plain ones on go-libp2p and js-libp2p, in one run, two processes on loopback.

    python tests/benchmarks/run.py [--only a,d] [--rounds 5] [--seconds 0.5] [--json FILE] [--history] [--docs]
    python tests/benchmarks/run.py --show FILE [--docs]

The parts are (a) queries on one stream, (b) signed bids, (c) durable commits, (d) queries on a stream each, (e) new
connections, (f) memory of idle connections, (g) start-up of a command. Every round measures everything once, so that a
busy moment of the machine affects all; the tables show medians, and ratios are medians of the ratios of the rounds. Go
and Node are used if they are installed; without Go only our own requester queries.
"""

from __future__ import annotations

import argparse
import tempfile
import tomllib
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from figures import Figure, Run, machine_description, python_software, read_run, rounded, write_run
from measurements import CONNECTIONS, PARTS, Bench, Measurement, measurements
from processes import find_programs, package_path
from rich.console import Console
from rich.progress import Progress
from tables import markdown, show_run, write_page

ROOT: Final = Path(__file__).parents[2]
HISTORY: Final = Path(__file__).parent / "history"
PAGE: Final = ROOT / "docs" / "benchmarks.md"


def measure(bench: Bench, parts: str, rounds: int, progress: Progress) -> list[Figure]:
    """All figures, round after round."""
    wanted = list(measurements(bench, parts))
    task = progress.add_task("", total=rounds * len(wanted))
    values: dict[tuple[int, str], list[float]] = {}
    for number in range(rounds):
        for index, one in enumerate(wanted):
            progress.update(task, description=f"round {number + 1} of {rounds}: {PARTS[one.part]} ({one.series})")
            for what, value in one.measure().items():
                values.setdefault((index, what), []).append(value)
            progress.advance(task)
    return list(figures(wanted, values))


def figures(wanted: list[Measurement], values: dict[tuple[int, str], list[float]]) -> Iterable[Figure]:
    """The figures of the measurements, in their order."""
    for (index, what), found in sorted(values.items(), key=lambda item: item[0][0]):
        one = wanted[index]
        yield Figure(
            part=one.part, what=what, series=one.series, unit=one.unit, better=one.better, values=rounded(found)
        )


def measured_version() -> str:
    """The version in pyproject.toml."""
    with open(ROOT / "pyproject.toml", "rb") as file:
        return str(tomllib.load(file)["project"]["version"])


def parts_of(text: str) -> str:
    """The letters of the requested parts: `a,d` or `ad`."""
    letters = text.replace(",", "")
    if not letters or set(letters) - set(PARTS):
        raise argparse.ArgumentTypeError(f"the parts are {', '.join(PARTS)}")
    return letters


def options() -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", type=parts_of, default="".join(PARTS), metavar="PARTS", help="such as a,d")
    parser.add_argument("--rounds", type=int, default=5, help="how often everything is measured (default: 5)")
    parser.add_argument("--seconds", type=float, default=0.5, help="how long a rate is counted (default: 0.5)")
    parser.add_argument(
        "--connections", type=int, nargs="+", default=CONNECTIONS, help="idle connections of (f) (default: 1 100 1000)"
    )
    parser.add_argument("--folder", type=Path, help="where the ledgers are made (a disk of your choice)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    parser.add_argument("--show", type=Path, metavar="FILE", help="measure nothing, take the figures of this file")
    parser.add_argument("--version", default=measured_version(), help="what is measured (default: pyproject.toml's)")
    parser.add_argument("--history", action="store_true", help="keep the figures as those of this version")
    parser.add_argument(
        "--docs", type=Path, nargs="?", const=PAGE, metavar="PAGE", help="write the tables into docs/benchmarks.md"
    )
    return parser.parse_args()


def measured_run(chosen: argparse.Namespace) -> Run:
    """Everything that was requested, measured now."""
    package_path()
    with (
        tempfile.TemporaryDirectory(dir=chosen.folder) as folder,
        Progress(console=Console(stderr=True), transient=True) as progress,
    ):
        scratch = Path(folder)
        with Bench(find_programs(scratch), scratch, chosen.seconds, chosen.connections) as bench:
            found = measure(bench, chosen.only, chosen.rounds, progress)
            software = {**python_software(), **bench.software}
    return Run(
        version=chosen.version,
        date=datetime.now(UTC).date().isoformat(),
        machine=machine_description(),
        software=software,
        rounds=chosen.rounds,
        figures=tuple(found),
    )


def main() -> None:
    """Measure or read, show, and write what was requested."""
    chosen = options()
    run = read_run(chosen.show) if chosen.show else measured_run(chosen)
    show_run(run)
    if chosen.json:
        write_run(run, chosen.json)
    if chosen.history:
        write_run(run, HISTORY / f"{run.version}.json")
    if chosen.docs:
        write_page(chosen.docs, "benchmarks", markdown(run))


if __name__ == "__main__":
    main()
