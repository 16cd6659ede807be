"""Whatever fails and whichever peers lie: what is promised is available, is kept, and is never promised twice.

Seeded worlds, each of which can be repeated by its number: `python tests/simulation/seeds.py SEED --trace`.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

PROGRAM = Path(__file__).with_name("seeds.py")
# Runs a program on a processor of unpredictable speed.
UNSTEADY = """
import random, runpy, sys, time
time.perf_counter = time.process_time = time.thread_time = lambda: random.SystemRandom().uniform(0.0, 10.0)
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
LONG = os.environ.get("DMS_TEST_PROFILE") == "long"
WORLDS = 100_000 if LONG else 400

# What has to happen in a thousand worlds for them to be useful, and how often at least.
FAULTS = (
    "killed", "killed in a write", "rebooted", "clock set", "disk failed", "link may stall", "link may cut",
    "link may late", "connection cut", "repeated",
)  # fmt: skip
ACTS = (
    "replays", "steals", "meddles", "repeats", "floods", "floods with bids", "crowds", "multiplies", "babbles",
    "hoards", "forges", "overstays",
)  # fmt: skip
LIES = ("overbids", "swaps", "poses", "forgets", "mute", "babbles")
JOBS = ("job started", "job ending", "job found", "job gone")
OUTCOMES = (
    "reserved", "used", "allocated", "cancelled", "failed", "lost", "given back", "answered renew", "answered allocate",
    "answered release", "refused busy", "refused not_holder", "refused not_your_bid", "refused not_my_bid",
    "refused bad_signature", "refused bad_bid", "refused ended", "refused expired", "refused storage",
)  # fmt: skip


def run(*arguments: object, unsteady: bool = False, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, *(["-c", UNSTEADY] if unsteady else []), PROGRAM, *map(str, arguments)],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=None if LONG else 1200,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.mark.computes(all_cores=True)
def test_nothing_is_oversold_lost_or_left_behind_whatever_happens() -> None:
    told = run("--range", 1, WORLDS)
    counts = Counter({what: int(count) for count, what in re.findall(r"^ *(\d+) ([a-z_ ]+)$", told, re.MULTILINE)})
    needed = [*FAULTS, *(f"attack {act}" for act in ACTS), *(f"lie {lie}" for lie in LIES), *JOBS, *OUTCOMES]
    rare = {what: counts[what] for what in needed if counts[what] < WORLDS / 50}
    assert not rare, told


def test_the_same_seed_is_the_same_world() -> None:
    seeds = range(3, 13)
    story = run(*seeds, "--trace", PYTHONHASHSEED="1")
    assert story == run(*seeds, "--trace", unsteady=True, PYTHONHASHSEED="2")
    assert story.count(" reserving ") >= len(seeds)
