"""Runs worlds by their seeds: `python tests/simulation/seeds.py SEED [--trace]` or `--range FIRST LAST [--long]`.

If an invariant is violated, the seed, the invariant and the last 50 events are printed; `--trace` prints all events.
With `--range` the seeds are distributed among processes (`--processes`), and the events of all of them are counted;
`--long` runs 100,000 from FIRST on.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[2] / capacity) for capacity in ("peer", "protocols", "resources")]
sys.path.insert(0, str(Path(__file__).resolve().parent))

from dms_simulation.providers import ledger_directory  # noqa: E402 - behind the path
from dms_simulation.world.runs import run_world  # noqa: E402 - behind the path

LONG = 100_000
# Seeds that a process gets at a time.
SHARE = 25


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("seeds", nargs="*", type=int)
    parser.add_argument("--trace", action="store_true")
    parser.add_argument("--range", nargs=2, type=int, metavar=("FIRST", "LAST"))
    parser.add_argument("--long", action="store_true")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    arguments = parser.parse_args()
    failed = 0
    for seed in arguments.seeds:
        failed += _tell(seed, arguments.trace)
    if arguments.range:
        first, last = arguments.range
        failed += _run_many(range(first, first + LONG if arguments.long else last + 1), arguments.processes)
    sys.exit(1 if failed else 0)


def _tell(seed: int, trace: bool) -> int:
    with ledger_directory() as directory:
        try:
            story = run_world(seed, directory)
        except AssertionError as error:
            print(error)
            return 1
    print("\n".join(story.events) if trace else f"seed {seed} holds")
    return 0


def _run_many(seeds: range, processes: int) -> int:
    counts: Counter[str] = Counter()
    broken: list[str] = []
    started = time.perf_counter()
    shares = [seeds[at : at + SHARE] for at in range(0, len(seeds), SHARE)]
    # The worlds may take their time: other users of the machine go first.
    with ProcessPoolExecutor(processes, initializer=os.nice, initargs=(5,)) as pool:
        for own, failed in pool.map(_run_share, shares):
            counts += own
            for what in failed:
                print(what, flush=True)
            broken += failed
    took = time.perf_counter() - started
    print(f"{len(seeds)} worlds, {len(broken)} broken, {took:.1f} s, {len(seeds) / took:.1f} worlds/s")
    for what, count in sorted(counts.items(), key=lambda one: (-one[1], one[0])):
        print(f"{count:8d} {what}")
    return len(broken)


def _run_share(seeds: range) -> tuple[Counter[str], list[str]]:
    counts: Counter[str] = Counter()
    broken = []
    with ledger_directory() as directory:
        for seed in seeds:
            with tempfile.TemporaryDirectory(dir=directory) as own:
                try:
                    counts += run_world(seed, Path(own)).counts
                except AssertionError as error:
                    broken.append(str(error))
    return counts, broken


if __name__ == "__main__":
    main()
