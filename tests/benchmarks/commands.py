"""How long commands take that ask the running peer to go to the network, beside `status`, which asks it alone.

    python tests/benchmarks/commands.py [--rounds 10]

Two peers on this machine: a provider, and the requester's own peer, which is connected to it. Every round runs each
command once. Exits with 1 when one takes more than twice the time of `status`, by the medians.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.table import Table

AIM: Final = 2.0
DEMAND: Final = ("--cpu", "1", "--ram", "1GiB", "--disk", "1GiB")
MACHINE: Final = {"cpu": {"cores": 8}, "ram": {"size": "32GiB"}, "disk": {"size": "1TiB"}, "gpus": []}


def command(home: Path, *words: str) -> list[str]:
    """The command line of a command in a home."""
    return [sys.executable, "-m", "dms_peer", *words, "--home", str(home)]


@contextmanager
def peer(home: Path, machine: Path, *options: str) -> Iterator[str]:
    """A peer that runs, and its address."""
    words = ("run", "--machine", str(machine), "--listen", "/ip4/127.0.0.1/tcp/0", "--no-mdns", "--json", *options)
    with subprocess.Popen(command(home, *words), stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield str(json.loads(process.stdout.readline())["addrs"][0])
        finally:
            process.terminate()


def measure(rounds: int) -> dict[str, float]:
    """The median of each command, in milliseconds."""
    found: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        machine, provider, requester = (Path(folder) / name for name in ("machine.json", "provider", "requester"))
        machine.write_text(json.dumps(MACHINE))
        offer = ("onboard", "--machine", str(machine), "--cpu", "4", "--ram", "16GiB", "--disk", "100GiB")
        subprocess.run(command(provider, *offer), check=True, stdout=subprocess.DEVNULL)
        address = stack.enter_context(peer(provider, machine))
        stack.enter_context(peer(requester, machine, "--bootstrap", address))
        ways = {
            "status": ("status",),
            "free": ("free", address),
            "bid": ("bid", address, *DEMAND),
            "discover": ("discover", *DEMAND),
        }
        for _ in range(rounds + 1):
            for name, words in ways.items():
                began = time.perf_counter()
                subprocess.run(command(requester, *words), check=True, stdout=subprocess.DEVNULL)
                found.setdefault(name, []).append(1000 * (time.perf_counter() - began))
    # The first of each connects, and fills the caches of the disk.
    return {name: statistics.median(values[1:]) for name, values in found.items()}


def main() -> None:
    """Measures, prints a table, and exits with 1 if an aim is missed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=10)
    medians = measure(parser.parse_args().rounds)
    table = Table("command", "ms", "of status")
    for name, value in medians.items():
        table.add_row(name, f"{value:.0f}", f"{value / medians['status']:.2f}")
    Console().print(table)
    sys.exit(any(value > AIM * medians["status"] for value in medians.values()))


if __name__ == "__main__":
    main()
