"""Measures the ledger: durable cycles compared with bare SQLite, decisions as it grows, start-up and memory.

    python tests/benchmarks/ledger.py [--json FILE] [--quick] [--folder FOLDER]

A cycle is commit, allocate, release; each waits until it is on the disk. Bare SQLite writes as many rows of the same
sizes into the same tables with the same PRAGMAs, group commit and writer thread, and decides and encodes nothing. The
two alternate, and the ratio is the median of the ratios of neighbouring runs.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import psutil
import trio
from bare_sqlite import DEMAND, MACHINE, OFFER, PORTS, bare_cycles, sample_rows
from figures import machine_description
from rich.console import Console
from rich.table import Table

from dms_resources.components import CPU, GPU, RAM, Disk, Resources
from dms_resources.demands import CPUDemand, Demand, GPUDemand, RAMDemand
from dms_resources.ledger import decisions
from dms_resources.ledger.book import Change, OfferState, Record
from dms_resources.ledger.history import HistoryEntry
from dms_resources.ledger.leases import Lease, LeaseRequest, LeaseState, ResourceAllocation
from dms_resources.ledger.storage import SQLiteStorage
from dms_resources.manager import ResourceManager, open_manager
from dms_resources.units import MIB, Cores

CALLERS = (1, 8, 64, 256)
SIZES = (10, 1_000, 100_000)


async def ledger_cycles(path: Path, callers: int, seconds: float) -> float:
    """Cycles per second of the ledger."""
    done = 0

    async def caller(manager: ResourceManager, name: str) -> None:
        nonlocal done
        number = 0
        while trio.current_time() < end:
            lease_id, number = f"{name}-{number}", number + 1
            await manager.commit_resources(lease_id, DEMAND, PORTS, holder=name, ttl=60.0)
            await manager.allocate_resources(ResourceAllocation(lease_id=lease_id, holder=name))
            await manager.deallocate_resources(lease_id, holder=name)
            done += 1

    async with open_manager(path, MACHINE) as manager:
        await manager.update_onboarded_resources(OFFER)
        begin = trio.current_time()
        end = begin + seconds
        async with trio.open_nursery() as nursery:
            for number in range(callers):
                nursery.start_soon(caller, manager, f"caller-{number}")
        return done / (trio.current_time() - begin)


def measure_cycles(folder: Path, runs: int, seconds: float) -> list[dict[str, Any]]:
    """Both, alternating, for each number of callers."""
    rows = sample_rows(folder / "sample.db")
    found = []
    for callers in CALLERS:
        pairs = []
        for run in range(runs + 1):
            ledger = trio.run(ledger_cycles, folder / f"ledger-{callers}-{run}.db", callers, seconds)
            bare = trio.run(bare_cycles, folder / f"bare-{callers}-{run}.db", callers, seconds, rows)
            pairs.append((ledger, bare))
        # The first run warms up.
        ledgers, bares = zip(*pairs[1:], strict=True)
        ratio = statistics.median(ledger / bare for ledger, bare in pairs[1:])
        found.append(
            {
                "callers": callers,
                "ledger": statistics.median(ledgers),
                "bare": statistics.median(bares),
                "ratio": ratio,
            }
        )
    return found


def fill(path: Path, size: int) -> None:
    """A ledger with this many live allocations, a tenth of them on GPUs."""
    with SQLiteStorage(path, boot_id="") as storage:
        storage.load()
        storage.write([Change(offer=(OfferState(), OfferState(onboarded=OFFER)))])
        for first in range(0, size, 5000):
            storage.write([allocated(number) for number in range(first, min(size, first + 5000))])


def allocated(number: int) -> Change:
    """The change that made one small allocation."""
    gpus = (GPU(uuid=f"GPU-{number % 8}", model="A100", vram=MIB),) if number % 10 == 0 else ()
    demand = Demand(
        cpu=CPUDemand(cores=Cores(1)), ram=RAMDemand(size=MIB), gpus=tuple(GPUDemand(vram=MIB) for _ in gpus)
    )
    lease = Lease(
        lease_id=f"live-{number}",
        holder=f"peer-{number % 100}",
        state=LeaseState.ALLOCATED,
        demand=demand,
        resources=Resources(cpu=CPU(cores=Cores(1)), ram=RAM(size=MIB), disk=Disk(size=0), gpus=gpus),
        fence=number + 1,
        created=time.time(),
    )
    entry = HistoryEntry(at=time.time(), actor=lease.holder, action="allocate", lease_id=lease.lease_id)
    return Change(leases=((None, Record(lease)),), entries=(entry,), fence=number + 1)


async def measure_decisions(paths: dict[int, Path], runs: int, loops: int) -> list[dict[str, Any]]:
    """Microseconds for a commit's decision (made, applied, undone), `would_fit` and a free query without a cached
    result.
    """
    async with AsyncExitStack() as stack:
        managers = {size: await stack.enter_async_context(open_manager(path, MACHINE)) for size, path in paths.items()}
        tasks: dict[str, Callable[[ResourceManager], None]] = {"commit": decide, "would_fit": ask, "free": query}
        samples: dict[tuple[int, str], list[float]] = {(size, name): [] for size in managers for name in tasks}
        for _ in range(runs + 1):
            # Alternating, so that a busy moment of the machine affects all sizes.
            for name, task in tasks.items():
                for size, manager in managers.items():
                    samples[size, name].append(microseconds(task, manager, loops))
        return [
            {"live": size, **{name: statistics.median(samples[size, name][1:]) for name in tasks}} for size in managers
        ]


def microseconds(task: Callable[[ResourceManager], None], manager: ResourceManager, loops: int) -> float:
    """How long one call takes."""
    begin = time.perf_counter()
    for _ in range(loops):
        task(manager)
    return (time.perf_counter() - begin) / loops * 1e6


def decide(manager: ResourceManager) -> None:
    """What a commit does before it waits for the disk, and its undo."""
    request = LeaseRequest(lease_id="new", holder="peer", demand=DEMAND, ports=PORTS, ttl=60.0)
    book = manager._ledger.book
    change, _ = decisions.commit(book, [request], manager._ledger.now())
    book.apply(change)
    book.undo(change)


def ask(manager: ResourceManager) -> None:
    """A dry run."""
    manager.would_fit(DEMAND, PORTS, ttl=60.0)


def query(manager: ResourceManager) -> None:
    """What is free, computed as after a change."""
    manager._free = None
    manager.get_free_resources()


def measure_start(path: Path, runs: int) -> dict[str, float]:
    """Seconds to open a large ledger and the bytes of memory that it takes, each in a new process."""
    command = [sys.executable, __file__, "--start", str(path)]
    found = [json.loads(subprocess.run(command, check=True, capture_output=True).stdout) for _ in range(runs)]
    return {key: statistics.median(one[key] for one in found) for key in ("seconds", "bytes")}


async def start(path: Path) -> None:
    """Open the ledger once and print what it took."""
    before = psutil.Process().memory_info().rss
    begin = time.perf_counter()
    async with open_manager(path, MACHINE):
        seconds = time.perf_counter() - begin
        print(json.dumps({"seconds": seconds, "bytes": psutil.Process().memory_info().rss - before}))


def show(found: dict[str, Any]) -> None:
    """Print the tables."""
    console = Console()
    console.print(found["machine"])
    cycles = Table("callers", "ledger, cycles/s", "bare SQLite, cycles/s", "ratio", title="Durable cycles")
    for row in found["cycles"]:
        cycles.add_row(str(row["callers"]), f"{row['ledger']:.0f}", f"{row['bare']:.0f}", f"{row['ratio']:.2f}")
    console.print(cycles)
    sizes = Table("live allocations", "commit, µs", "would_fit, µs", "free query, µs", title="Decisions")
    for row in found["decisions"]:
        sizes.add_row(f"{row['live']:,}", *(f"{row[name]:.1f}" for name in ("commit", "would_fit", "free")))
    console.print(sizes)
    began = found["start"]
    console.print(
        f"Start-up with {SIZES[-1]:,} live allocations: {began['seconds']:.2f} s, {began['bytes'] / MIB:.0f} MiB"
    )


def main() -> None:
    """Measure everything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers there too")
    parser.add_argument("--quick", action="store_true", help="short runs, to see that it works")
    parser.add_argument("--folder", type=Path, help="where the ledgers are made (a disk of your choice)")
    parser.add_argument("--start", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.start:
        trio.run(start, options.start)
        return
    runs, seconds, loops = (1, 0.2, 50) if options.quick else (5, 1.5, 1000)
    folder = Path(tempfile.mkdtemp(dir=options.folder))
    try:
        paths = {size: folder / f"live-{size}.db" for size in SIZES}
        for size, path in paths.items():
            fill(path, size)
        found = {
            "machine": f"{machine_description()}, Python {platform.python_version()}, SQLite {sqlite3.sqlite_version}",
            "start": measure_start(paths[SIZES[-1]], runs),
            "decisions": trio.run(measure_decisions, paths, runs, loops),
            "cycles": measure_cycles(folder, runs, seconds),
        }
    finally:
        shutil.rmtree(folder)
    show(found)
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
