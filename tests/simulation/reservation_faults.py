"""Runs reservations under fault by their seeds, and prints what happened: `python reservation_faults.py SEED [SEED …]`.

With `--range FIRST LAST` it runs many and prints only a summary.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[2] / capacity) for capacity in ("peer", "protocols", "resources")]
sys.path.insert(0, str(Path(__file__).resolve().parent))

from dms_simulation.providers import ledger_directory  # noqa: E402 - behind the path
from dms_simulation.reservation_runs import run_reservations  # noqa: E402 - behind the path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("seeds", nargs="*", type=int)
    parser.add_argument("--range", nargs=2, type=int, metavar=("FIRST", "LAST"))
    arguments = parser.parse_args()
    with ledger_directory() as directory:
        for seed in arguments.seeds:
            own = directory / str(seed)
            own.mkdir()
            print("\n".join(run_reservations(seed, own).events))
        if arguments.range:
            sys.exit(_run_many(range(arguments.range[0], arguments.range[1] + 1), directory))


def _run_many(seeds: range, directory: Path) -> int:
    # The runs may take their time: other users of the machine go first.
    os.nice(5)
    counts: Counter[str] = Counter()
    failed = 0
    started = time.perf_counter()
    for seed in seeds:
        with tempfile.TemporaryDirectory(dir=directory) as own:
            try:
                counts += run_reservations(seed, Path(own)).counts
            except AssertionError as error:
                failed += 1
                print(error)
    print(f"{len(seeds)} runs, {failed} failed, {time.perf_counter() - started:.1f} s")
    for what, count in counts.most_common():
        print(f"{count:7d} {what}")
    return 1 if failed else 0


if __name__ == "__main__":
    main()
