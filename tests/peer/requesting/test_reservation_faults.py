"""All or nothing, whatever fails: seeded runs, each of which can be repeated by its number.

`python tests/simulation/reservation_faults.py SEED` prints what happens in one of them.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parents[2] / "simulation" / "reservation_faults.py"
RUNS = 1000


def run(*arguments: object, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, PROGRAM, *map(str, arguments)],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def outcome(process: subprocess.Popen[str]) -> str:
    output, _ = process.communicate(timeout=1200)
    assert process.returncode == 0, output
    return output


@pytest.mark.computes(all_cores=True)
def test_an_ensemble_is_taken_as_a_whole_or_not_at_all_and_nothing_is_left_behind() -> None:
    parts = min(os.cpu_count() or 1, 8)
    bounds = [1 + RUNS * part // parts for part in range(parts + 1)]
    processes = [run("--range", first, last - 1) for first, last in pairwise(bounds)]
    counts: Counter[str] = Counter()
    for process in processes:
        for count, what in re.findall(r"^ *(\d+) ([a-z_ ]+)$", outcome(process), re.MULTILINE):
            counts[what] += int(count)
    assert counts["reserving"] == RUNS
    # The runs are useful only if all of this happens in them.
    assert counts["used"] > RUNS / 4
    for what in ("died", "filled", "drained", "allocated", "cancelled", "killed", "error", "lost", "not_taken"):
        assert counts[what] >= 10, (what, counts)


def test_the_same_seed_is_the_same_run() -> None:
    seeds = range(7, 17)
    first = run(*seeds, PYTHONHASHSEED="1")
    again = run(*seeds, PYTHONHASHSEED="2")
    story = outcome(first)
    assert story == outcome(again)
    assert story.count("reserving") == len(seeds)
