"""The parts of the benchmark: what each measures, and how.

Every provider is a separate process, and so is the load generator. The load generator is the same for all providers:
our own requester is slower than our provider and would hide it, so it is written in Go, the fastest of the three. Our
requester also queries our provider ("ours to ours"), because this is what two of our peers get.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, Literal

import psutil
import trio
from bare_sqlite import Rows, bare_commits, sample_rows
from figures import BARE_KEY, BARE_SQLITE, GO, JS, NOTHING, OURS, OURS_TO_OURS, STATUS
from libp2p.crypto.ed25519 import create_new_key_pair
from processes import Conversation, Programs, Provider, conversation, running_peer

PARTS: Final = {
    "a": "queries on one stream",
    "b": "signed bids",
    "c": "durable commits",
    "d": "queries on a stream each",
    "e": "a new connection, to the first answer",
    "f": "memory of idle connections",
    "g": "start-up of a command",
}
SERIES: Final = {"ours": OURS, "go": GO, "js": JS}
RUNTIMES: Final = {"go": "Go", "js": "Node"}
DEPTHS: Final = (1, 8, 64, 256)
STREAMS: Final = (1, 16)
CONNECTIONS: Final = (1, 100, 1_000)
AT_ONCE: Final = 64
# Per second.
COMMITS: Final = 6_000
DIALS: Final = 5
STARTS: Final = 3
# Seconds.
SETTLE: Final = 0.5
# Bytes of the payload of a bid.
BID_SIZE: Final = 600
PER_SECOND: Final = "1/s"


@dataclass(frozen=True)
class Measurement:
    """One measurement in every round. It has a value for each `what`; several if one run gives several."""

    part: str
    series: str
    unit: str
    better: Literal["higher", "lower"]
    measure: Callable[[], Mapping[str, float]]


class Bench(ExitStack):
    """The state that measurements share. Each process is started when it is first needed, and ends with the bench."""

    def __init__(self, programs: Programs, scratch: Path, seconds: float, connections: Sequence[int]) -> None:
        super().__init__()
        self.programs = programs
        self.scratch = scratch
        self.seconds = seconds
        self.connections = connections
        self.software: dict[str, str] = {}
        self._providers: dict[str, Provider] = {}
        self._loads: dict[str, Conversation] = {}
        self._rows: Rows = {}

    def provider(self, who: str) -> Provider:
        """The provider that is queried repeatedly."""
        if who not in self._providers:
            provider = self._providers[who] = self.enter_context(self.programs.provider(who, self.scratch))
            if who != "ours":
                self.software |= {SERIES[who]: provider.versions["libp2p"], RUNTIMES[who]: provider.versions["runtime"]}
        return self._providers[who]

    def load(self, by: str) -> Conversation:
        """The load generator."""
        if by not in self._loads:
            self._loads[by] = self.enter_context(conversation(self.programs.loads[by]))
        return self._loads[by]

    def home(self) -> Path:
        """The home of a running peer."""
        home = self.scratch / "peer"
        if not home.exists():
            self.enter_context(running_peer(home))
        return home

    def rows(self) -> Rows:
        """Rows as the ledger writes them."""
        if not self._rows:
            self._rows = sample_rows(self.scratch / "sample.db")
        return self._rows

    def pairs(self, *providers: str) -> list[tuple[str, str, str]]:
        """Which of these providers is queried by which load generator, and the series."""
        asked = [who for who in providers if who in self.programs.providers]
        by_go = [(who, "go", SERIES[who]) for who in asked if "go" in self.programs.loads]
        return [*by_go, ("ours", "ours", OURS_TO_OURS)]

    def order(self, measure: str, who: str, by: str, *, at_once: int = 1, count: int = 1) -> float:
        """The result of one order to a load generator."""
        value = self.load(by).ask(
            measure=measure,
            address=self.provider(who).address,
            at_once=at_once,
            seconds=self.seconds,
            warm_up=self.seconds / 4,
            count=count,
        )
        return float(value)


def measurements(bench: Bench, parts: str) -> Iterator[Measurement]:
    """The measurements of these parts (letters), in the order of a round."""
    makers = {"a": queries, "b": bids, "c": commits, "d": one_shots, "e": connects, "f": memory, "g": start_up}
    for part in parts:
        yield from makers[part](bench)


# The parts


def queries(bench: Bench) -> Iterator[Measurement]:
    """(a): queries that one stream answers in a second, with this many waiting at the same time."""
    for depth in DEPTHS:
        for who, by, series in bench.pairs("ours", "js", "go"):
            order = partial(bench.order, "queries", who, by, at_once=depth)
            yield Measurement("a", series, PER_SECOND, "higher", named(f"{depth} in flight", order))


def bids(bench: Bench) -> Iterator[Measurement]:
    """(b): bids that are decided, signed and encoded in a second, and signatures that can be made in a second."""
    what = f"{AT_ONCE} in flight"
    for who, by, series in bench.pairs("ours"):
        order = partial(bench.order, "bids", who, by, at_once=AT_ONCE)
        yield Measurement("b", series, PER_SECOND, "higher", named(what, order))
    yield Measurement("b", BARE_KEY, PER_SECOND, "higher", named(what, partial(signatures, bench.seconds)))


def signatures(seconds: float) -> float:
    """Signatures per second of py-libp2p's key, one after the other, with nothing else."""
    key, payload, done = create_new_key_pair().private_key, os.urandom(BID_SIZE), 0
    begin = now = time.perf_counter()
    while now < begin + seconds:
        for _ in range(100):
            key.sign(payload)
        done, now = done + 100, time.perf_counter()
    return done / (now - begin)


def commits(bench: Bench) -> Iterator[Measurement]:
    """(c): bids that are committed in a second, each on the disk before it is answered, and the same for
    SQLite alone.
    """
    what = f"{AT_ONCE} in flight"
    for who, by, series in bench.pairs("ours"):
        # As many bids as can be committed in that time. They are made before the measurement.
        order = partial(bench.order, "commits", who, by, at_once=AT_ONCE, count=int(COMMITS * bench.seconds))
        yield Measurement("c", series, PER_SECOND, "higher", named(what, order))
    yield Measurement("c", BARE_SQLITE, PER_SECOND, "higher", named(what, partial(bare_sqlite, bench)))


def bare_sqlite(bench: Bench) -> float:
    """Durable rows of a lease with its history per second, as the ledger writes them, without decisions."""
    path = bench.scratch / f"bare-{time.monotonic_ns()}.db"
    return trio.run(bare_commits, path, AT_ONCE, bench.seconds, bench.rows())


def one_shots(bench: Bench) -> Iterator[Measurement]:
    """(d): queries that are answered in a second if each has a stream of its own."""
    for at_once in STREAMS:
        for who, by, series in bench.pairs("ours", "js", "go"):
            order = partial(bench.order, "one_shot", who, by, at_once=at_once)
            yield Measurement("d", series, PER_SECOND, "higher", named(f"{at_once} at once", order))


def connects(bench: Bench) -> Iterator[Measurement]:
    """(e): how long a stranger waits for the first answer, from opening the socket."""
    for who, by, series in bench.pairs("ours", "js", "go"):
        order = partial(bench.order, "connect", who, by, count=DIALS)
        yield Measurement("e", series, "ms", "lower", named("dial and ask", order))


def memory(bench: Bench) -> Iterator[Measurement]:
    """(f): the memory of a new provider with this many connected, silent peers. Only Go can make that many."""
    for who, by, series in bench.pairs("ours", "js", "go"):
        if by == "go":
            yield Measurement("f", series, "KiB", "lower", partial(resident, bench, who))


def resident(bench: Bench, who: str) -> dict[str, float]:
    """KiB for each number of connections, and for each connection beyond the first."""
    found = {}
    with bench.programs.provider(who, bench.scratch) as provider:
        process = psutil.Process(provider.process.pid)
        for count in bench.connections:
            bench.load("go").ask(measure="idle", address=provider.address, count=count)
            # Time for what is done after a connection is made, such as identify.
            time.sleep(SETTLE)
            found[count] = process.memory_info().rss / 1024
        bench.load("go").ask(measure="leave", address="")
    first, last = min(found), max(found)
    shown = {f"{count:,} connection{'s' if count > 1 else ''}": size for count, size in found.items()}
    return {**shown, "each further one": (found[last] - found[first]) / (last - first)}


def start_up(bench: Bench) -> Iterator[Measurement]:
    """(g): how long the owner waits for a command, while the peer runs."""
    for series, command in ((STATUS, status), (NOTHING, nothing)):
        measure = partial(milliseconds, bench, command)
        yield Measurement("g", series, "ms", "lower", named("from start to end", measure))


def status(home: Path) -> list[str]:
    """The most frequent command of an owner."""
    return ["-m", "dms_peer", "status", "--home", str(home), "--json"]


def nothing(home: Path) -> list[str]:
    """The shortest possible command in Python."""
    return ["-c", "pass"]


def milliseconds(bench: Bench, command: Callable[[Path], list[str]]) -> float:
    """How long a command in Python takes: the median of several."""
    line, took = [sys.executable, *command(bench.home())], []
    # An installed package is compiled, but a checkout may not be.
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(bench.scratch / "bytecode")}
    start = partial(subprocess.run, line, check=True, stdout=subprocess.DEVNULL, env=environment)
    start()
    for _ in range(STARTS):
        begin = time.perf_counter()
        start()
        took.append(1000 * (time.perf_counter() - begin))
    return statistics.median(took)


def named(what: str, measure: Callable[[], float]) -> Callable[[], dict[str, float]]:
    """A measurement of one value."""
    return lambda: {what: measure()}
