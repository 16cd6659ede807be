"""Plays rounds of random sequences over live connections until the time is up; see `dms_fuzzing/sequences.py`.

    python tests/fuzzing/sequences.py --seconds 900 [--seed 1] [--round 5]

Each round has the seed after that of the round before it, and is checked for itself. Ends with 1 at the first finding.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / package) for package in ("peer", "protocols", "resources")]
sys.path.insert(0, str(Path(__file__).resolve().parent))

import psutil  # noqa: E402 - behind the path
import trio  # noqa: E402 - behind the path

from dms_fuzzing.sequences import Finding, findings, open_world  # noqa: E402 - behind the path

# Bytes that the process may grow by after its first rounds: caches fill up, arenas are not given back.
GROWTH = 64 * 1024 * 1024
WARM_UP = 5


def main() -> int:
    """Plays the rounds; 0 when nothing was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60, help="play for this long (default: 60)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first round (default: 0)")
    parser.add_argument("--round", type=float, default=5, help="seconds of one round (default: 5)")
    options = parser.parse_args()
    return trio.run(_play, options.seconds, options.seed, options.round)


async def _play(seconds: float, seed: int, length: float) -> int:
    began, first, rounds = time.monotonic(), 0, 0
    async with open_world() as world:
        while time.monotonic() - began < seconds:
            try:
                await world.play(seed + rounds, length)
            except (Finding, ExceptionGroup) as found:
                print(f"seed {seed + rounds}: {'; '.join(findings(found))}", flush=True)
                return 1
            rounds += 1
            memory = psutil.Process().memory_info().rss
            if rounds == WARM_UP:
                first = memory
            if first and memory - first > GROWTH:
                print(f"seed {seed + rounds}: grown by {(memory - first) / 2**20:.0f} MiB since round {WARM_UP}")
                return 1
            if rounds % 10 == 0:
                print(f"{rounds} rounds, {time.monotonic() - began:.0f} s, {memory / 2**20:.0f} MiB", flush=True)
        _report(rounds, world.done, memory - first if first else 0)
    return 0


def _report(rounds: int, done: Counter[str], grown: int) -> None:
    print(f"{rounds} rounds, grown by {grown / 2**20:.1f} MiB")
    for what, number in done.most_common():
        print(f"  {number:>9,} {what}")


if __name__ == "__main__":
    raise SystemExit(main())
