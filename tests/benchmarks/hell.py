"""A provider under attack from hundreds of peers, for a few minutes.

    python tests/benchmarks/hell.py [--json FILE] [--seconds 40] [--cycles 5000]

Three processes on loopback. 150 honest peers are connected and query twice a second. They are measured while they are
alone, and again together with 200 peers that send one byte a second (half of them in the handshake, half in a request),
50 that send random bytes, 50 that open streams without end and 50 that never read their answers. An attacker that is
dropped reconnects. Then the attackers leave, and the remaining state of the provider is measured. Finally peers
connect, query once and leave.

Exits with 1 if an aim is missed: the 99th percentile under attack is at most 5 times the quiet one, memory afterwards
is within 10 % of before, and file descriptors and tasks are as before all connections.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from processes import Conversation, conversation
from rich import box
from rich.console import Console
from rich.table import Table

PEERS = str(Path(__file__).with_name("hell_peers.py"))
# Seconds after the last attacker has left until the provider has to be as before. Its own deadlines are at most 30.
PEACE = 45.0


@dataclass(frozen=True)
class Crowd:
    """The number of peers of each kind."""

    behaved: int = 150
    slow: int = 200
    noise: int = 50
    streams: int = 50
    unread: int = 50


def measure(crowd: Crowd, *, seconds: float, cycles: int, peace: float = PEACE) -> dict[str, Any]:
    """All results: percentiles in milliseconds, and the provider's state at each moment."""
    with (
        tempfile.TemporaryDirectory() as home,
        conversation([sys.executable, PEERS, "provider", home]) as provider,
    ):
        address = provider.first["addrs"][0]
        with conversation([sys.executable, PEERS, "behave", address, str(crowd.behaved)]) as behaved:
            behaved.ask(order="measure", seconds=seconds / 4)
            found = {"quiet": behaved.ask(order="measure", seconds=seconds), "before": provider.ask(order="state")}
            found |= _hell(address, crowd, behaved, provider, seconds)
            found["after"] = _settled(provider, found["before"], peace)
            found["peace"] = behaved.ask(order="measure", seconds=seconds / 2)
            if cycles:
                # The first visits fill caches that every process has.
                behaved.ask(order="cycle", times=min(cycles, 100))
                found["before_cycles"] = _settled(provider, found["before"], peace)
                found["cycles"] = behaved.ask(order="cycle", times=cycles)
                found["after_cycles"] = _settled(provider, found["before_cycles"], peace)
    return found


def _hell(address: str, crowd: Crowd, behaved: Conversation, provider: Conversation, seconds: float) -> dict[str, Any]:
    kinds = map(str, (crowd.slow, crowd.noise, crowd.streams, crowd.unread))
    with conversation([sys.executable, PEERS, "attack", address, *kinds]):
        # Measured only when all of them are connected.
        behaved.ask(order="measure", seconds=seconds / 4)
        return {"hell": behaved.ask(order="measure", seconds=seconds), "during": provider.ask(order="state")}


def _settled(provider: Conversation, before: dict[str, int], peace: float) -> dict[str, int]:
    """The state of the provider when it is as before, or when its time is over."""
    deadline = time.monotonic() + peace
    while True:
        state: dict[str, int] = provider.ask(order="state")
        same = all(state[what] <= before[what] for what in ("files", "tasks", "connections"))
        if (same and state["rss"] <= before["rss"] * 1.1) or time.monotonic() > deadline:
            return state
        time.sleep(0.5)


def verdicts(found: dict[str, Any]) -> dict[str, bool]:
    """Each aim, and whether it was met."""
    met = {
        "the 99th percentile within 5 times of the quiet one": found["hell"]["p99"] <= 5 * found["quiet"]["p99"],
        "nobody who behaves is refused or cut": not found["hell"]["failures"],
        "memory within 10 % afterwards": found["after"]["rss"] <= 1.1 * found["before"]["rss"],
    }
    if "cycles" in found:
        before, after = found["before_cycles"], found["after_cycles"]
        met["file descriptors and tasks as they were"] = all(after[key] <= before[key] for key in ("files", "tasks"))
    return met


def show(found: dict[str, Any], console: Console) -> None:
    """Print tables for people."""
    table = Table("", "answers", "failures", "p50 ms", "p99 ms", box=box.ROUNDED, title="those who behave")
    for moment in ("quiet", "hell", "peace"):
        seen = found[moment]
        table.add_row(
            moment, f"{seen['answers']:,}", f"{seen['failures']:,}", f"{seen['p50']:.1f}", f"{seen['p99']:.1f}"
        )
    console.print(table)
    table = Table("", "memory MiB", "files", "tasks", "connections", box=box.ROUNDED, title="the provider")
    for moment in ("before", "during", "after", "before_cycles", "after_cycles"):
        if moment in found:
            state = found[moment]
            table.add_row(
                moment.replace("_", " "),
                f"{state['rss'] / 2**20:.1f}",
                str(state["files"]),
                str(state["tasks"]),
                str(state["connections"]),
            )
    console.print(table)
    if "cycles" in found:
        console.print(f"{found['cycles']:,} peers came, asked once and went")
    for aim, met in verdicts(found).items():
        console.print(f"{'met   ' if met else 'MISSED'}  {aim}")


def main() -> int:
    """Run everything. Returns 0 if all aims are met."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=40.0, help="how long each part is measured")
    parser.add_argument("--cycles", type=int, default=5000, help="how many peers come and go")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    options = parser.parse_args()
    found = measure(Crowd(), seconds=options.seconds, cycles=options.cycles)
    show(found, Console(highlight=False))
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")
    return 0 if all(verdicts(found).values()) else 1


if __name__ == "__main__":
    raise SystemExit(main())
