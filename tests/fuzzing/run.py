"""Fuzzing for any length of time, by seeded mutations of the test vectors. `guided.py` searches for new paths instead.

    python tests/fuzzing/run.py --inputs 1000000 [--target cbor]

A target fails if anything but its own coded error leaves the reader, or if memory grows. The failed input is written
beside this file as `crash-TARGET.bin`; `--input FILE` repeats it.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import psutil
import trio
import trio.testing

from dms_fuzzing.conversations import fuzz_client, fuzz_service, provider
from dms_fuzzing.corpus import corpus
from dms_fuzzing.mutation import mutated
from dms_fuzzing.parsers import PARSERS

CONVERSATIONS = ("service", "client")
TARGETS = (*PARSERS, *CONVERSATIONS)
# Bytes by which a process may grow while it is fed: caches fill up, and arenas are not returned.
GROWTH = 64 * 1024 * 1024
WARM_UP = 2000


def main() -> int:
    """Feed the chosen targets. Returns 0 if nothing was found."""
    options = _options()
    targets = [options.target] if options.target else list(TARGETS)
    failed = [target for target in targets if not _run(target, options)]
    return 1 if failed else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", choices=TARGETS, help="one target instead of all")
    parser.add_argument("--inputs", type=int, default=100_000, help="so many for each target")
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same inputs")
    parser.add_argument("--input", type=Path, help="feed this file once, instead")
    return parser.parse_args()


def _run(target: str, options: argparse.Namespace) -> bool:
    if options.input:
        return _feed(target, iter([options.input.read_bytes()]))
    return _feed(target, islice(mutated(corpus(target), random.Random(options.seed)), options.inputs))


def _feed(target: str, inputs: Iterator[bytes]) -> bool:
    started, count, growth = time.monotonic(), 0, _Growth()
    last = b""

    def watched() -> Iterator[bytes]:
        nonlocal count, last
        for last in inputs:
            yield last
            count += 1
            growth.look(count)

    try:
        if target in CONVERSATIONS:
            trio.run(_converse, target, watched(), clock=trio.testing.MockClock(autojump_threshold=0))
        else:
            for data in watched():
                PARSERS[target](data)
        growth.check()
    except Exception as error:
        crash = Path(__file__).with_name(f"crash-{target}.bin")
        crash.write_bytes(last)
        print(f"{target}: input {count} failed with {error!r}; it is in {crash.name}", flush=True)
        return False
    seconds = time.monotonic() - started
    print(f"{target}: {count:,} inputs in {seconds:.0f} s, grown by {growth.grown / 2**20:.1f} MiB", flush=True)
    return True


async def _converse(target: str, inputs: Iterator[bytes]) -> None:
    async with provider() as (services, check):
        for data in inputs:
            if target == "service":
                await fuzz_service(data, services)
                check()
            else:
                await fuzz_client(data)


class _Growth:
    """Watches the memory of this process."""

    def __init__(self) -> None:
        self._process = psutil.Process()
        self._first = 0
        self.grown = 0

    def look(self, count: int) -> None:
        if count == WARM_UP:
            self._first = self._process.memory_info().rss
        elif self._first and count % 10_000 == 0:
            self.grown = self._process.memory_info().rss - self._first

    def check(self) -> None:
        if self.grown > GROWTH:
            raise MemoryError(f"grown by {self.grown} bytes")


if __name__ == "__main__":
    raise SystemExit(main())
