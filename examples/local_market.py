"""Two peers trade on this machine: a provider offers resources, a requester takes a part of them, runs a job there and
releases them.

The provider is a process of its own (`dms-peer run`), the requester is this program. They talk over TCP, secured by
Noise and multiplexed by Yamux. The provider's machine is simulated, so that the output is the same on every computer.
The program exits with 0 when all figures are as expected.

    python examples/local_market.py
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import trio
from rich import box
from rich.console import Console
from rich.table import Table

from dms_host import HardenedHost
from dms_peer import dial, new_identity, open_allocations, open_bids, open_host, open_jobs, open_resources
from dms_protocols import EnsembleRequest, Execution, Job, NodeRequest
from dms_resources import (
    GIB,
    Cores,
    CPUDemand,
    Demand,
    DiskDemand,
    FreeResources,
    GPUDemand,
    Lease,
    RAMDemand,
    describe_shortage,
    format_size,
)

console = Console(highlight=False)

# A machine with two GPUs of different size. A size is a number of bytes or a text with a unit.
MACHINE = {
    "cpu": {"cores": 16, "model": "Example 16-Core", "architecture": "x86_64"},
    "ram": {"size": "64GiB"},
    "disk": {"size": "1TiB"},
    "gpus": [
        {"vendor": "NVIDIA", "model": "Example 24G", "vram": "24GiB"},
        {"vendor": "NVIDIA", "model": "Example 10G", "vram": "10GiB"},
    ],
}
# What the job computes. It prints its progress.
PROGRAM = """
import os, random, time
print(f"started as process {os.getpid()} of the provider", flush=True)
inside = 0
for part in range(1, 5):
    inside += sum(random.random() ** 2 + random.random() ** 2 < 1 for _ in range(50_000))
    print(f"{part * 50_000:,} points: pi is about {4 * inside / (part * 50_000):.2f}", flush=True)
"""
# The executor of the provider: a program that runs the command of a job as a process, limited to its lease.
EXECUTOR = Path(__file__).with_name("executors") / "run_cmd.py"
OFFER = ["--cpu", "12", "--ram", "48GiB", "--disk", "500GiB", "--gpu", "all"]


def demand_of(cores: str, ram: int, *vram: int) -> Demand:
    """The demand of one node: cores, GiB of RAM and GiB of VRAM for each GPU. Disk is always 20 GiB."""
    return Demand(
        cpu=CPUDemand(cores=Cores.of(cores)),
        ram=RAMDemand(size=ram * GIB),
        disk=DiskDemand(size=20 * GIB),
        gpus=tuple(GPUDemand(vram=size * GIB) for size in vram),
    )


def ensemble(demand: Demand) -> EnsembleRequest:
    """A request for one node that expires in 60 s."""
    node = NodeRequest(node_id="training", resources=demand)
    return EnsembleRequest(id="example", nonce=time.time_ns() >> 11, deadline=time.time() + 60, request=(node,))


def dms_peer(*arguments: str) -> list[str]:
    """The command line of `dms-peer`, run by the same Python as this program."""
    return [sys.executable, "-m", "dms_peer", *arguments]


@contextmanager
def running_provider(home: Path) -> Iterator[str]:
    """Run a provider in a process of its own, and yield its address."""
    machine_file = home / "example-machine.json"
    machine_file.write_text(json.dumps(MACHINE))
    subprocess.run(
        dms_peer("onboard", "--home", str(home), "--machine", str(machine_file), *OFFER, "--json"),
        check=True,
        stdout=subprocess.DEVNULL,
    )
    # Peers that this provider does not know may have all that it offers; by default it is a quarter. The requester gets
    # the address from here, so mDNS is not needed. What is written is YAML too.
    settings = {
        "access": {"shares": {"stranger_capacity": 1000}},
        "discovery": {"mdns": False},
        "executors": {"command": {"command": [sys.executable, str(EXECUTOR)]}},
    }
    (home / "peer.yaml").write_text(json.dumps(settings))
    options = ("--listen", "/ip4/127.0.0.1/tcp/0", "--json")
    command = dms_peer("run", "--home", str(home), *options)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            # The first line reports that the peer is ready, with its addresses.
            yield json.loads(process.stdout.readline())["addrs"][0]
        finally:
            process.terminate()


def step(number: int, text: str) -> None:
    """Print a heading."""
    say(f"\n[bold cyan]{number}.[/] [bold]{text}[/]")


def say(text: str) -> None:
    """Print a line. The terminal wraps it, so that an address can be copied."""
    console.print(text, soft_wrap=True)


def show_free(moments: dict[str, FreeResources]) -> None:
    """Print the free resources at several moments side by side."""
    table = Table(box=box.ROUNDED, header_style="bold")
    table.add_column("free")
    for moment in moments:
        table.add_column(moment, justify="right")
    table.add_row("CPU cores", *(str(free.cpu.cores) for free in moments.values()))
    table.add_row("RAM", *(format_size(free.ram.size) for free in moments.values()))
    table.add_row("disk", *(format_size(free.disk.size) for free in moments.values()))
    for index, gpu in enumerate(next(iter(moments.values())).gpus):
        table.add_row(f"GPU {gpu.model}", *(format_size(free.gpus[index].vram) for free in moments.values()))
    console.print(table)


async def next_free(changes: AsyncIterator[FreeResources], last: FreeResources | None = None) -> FreeResources:
    """Return what the provider has free when that is not `last` any more; raise TooSlowError after 20 s."""
    with trio.fail_after(20):
        while (free := await anext(changes)) == last:
            pass
    return free


def fell_by(before: FreeResources, after: FreeResources, demand: Demand) -> bool:
    """Return whether `after` is exactly `before` minus the demand."""
    vram = sum(gpu.vram for gpu in before.gpus) - sum(gpu.vram for gpu in after.gpus)
    return (
        before.cpu.cores - after.cpu.cores == demand.cpu.cores
        and before.ram.size - after.ram.size == demand.ram.size
        and before.disk.size - after.disk.size == demand.disk.size
        and vram == sum(gpu.vram for gpu in demand.gpus)
    )


async def trade(address: str) -> None:
    """The requester's side."""
    identity = new_identity()
    async with open_host(identity) as host:
        provider = await dial(host, address)
        step(1, "Two peers, two processes, one connection (TCP + Noise + Yamux)")
        say(f"   provider   {address}\n   requester  {identity.peer_id}")
        async with (
            open_resources(host, provider) as resources,
            open_bids(host, provider) as bids,
            open_allocations(host, provider) as allocations,
            resources.watch() as changes,
        ):
            before = await next_free(changes)
            step(2, "The requester queries the free resources and watches them")
            show_free({"offered": before})

            step(3, "A request that is too large is refused, with every shortage")
            answer = await bids.dry_run(ensemble(demand_of("64", 32, 8, 8, 8)))
            for shortage in answer.refusals[0].shortages:
                say(f"   [red]no[/]  {describe_shortage(shortage)}")

            demand = demand_of("4.5", 16, 8, 20)
            step(4, f"A request that fits gets a signed bid: {demand.describe()}")
            signed = (await bids.request_bids(ensemble(demand))).bids[0]
            given = ", ".join(f"{format_size(gpu.vram)} of {gpu.model}" for gpu in signed.bid.resources.gpus)
            say(
                f"   [green]yes[/]  {given}; {len(signed.envelope)} bytes, signed by {signed.bid.provider[-8:]}, "
                f"for {signed.bid.requester[-8:]} only"
            )

            step(5, "The requester commits the bid for 60 s, then allocates the lease")
            (lease,) = await allocations.commit([signed.envelope], ttl=60)
            committed = await next_free(changes, before)
            say(f"   lease {lease.lease_id}, fencing number {lease.fence}")
            lease = await allocations.allocate(lease.lease_id, fence=lease.fence)
            allocated = await next_free(changes)
            say(f"   the lease is {lease.state.value}")

            step(6, "The provider runs a job on the lease, and the requester reads its output as it is written")
            exit_code = await run_job(host, provider, lease)

            step(7, "The requester releases the lease")
            await allocations.release(lease.lease_id)
            after = await next_free(changes, allocated)

            step(8, "The free resources that the requester saw")
            show_free({"offered": before, "committed": committed, "allocated": allocated, "released": after})
            check(fell_by(before, committed, demand), "free resources fell by exactly the committed amount")
            check(committed == allocated, "the allocation replaced the commitment and took nothing twice")
            check(exit_code == 0, "the job ran on the provider and ended with exit code 0")
            check(after == before, "all resources are free again")


async def run_job(host: HardenedHost, provider: str, lease: Lease) -> int | None:
    """Run a job on an allocated lease and print what it writes; return its exit code."""
    job = Job(execution=Execution(type="command", cmd=(sys.executable, "-c", PROGRAM)))
    async with open_jobs(host, provider) as jobs:
        await jobs.start(lease.lease_id, fence=lease.fence, job=job)
        async with jobs.logs(lease.lease_id, follow=True) as output:
            async for piece in output:
                for line in piece.data.decode().splitlines():
                    say(f"   [dim]job |[/] {line}")
        ended = (await jobs.wait(lease.lease_id)).exit
    return ended.code if ended is not None else None


def check(holds: bool, sentence: str) -> None:
    """Print the sentence; exit with 1 if it is not true."""
    say(f"   [green]✓[/] {sentence}" if holds else f"   [red]✗ not true: {sentence}[/]")
    if not holds:
        raise SystemExit(1)


def main() -> None:
    """Start the provider and trade with it."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="dms-market-") as home, running_provider(Path(home)) as address:
        trio.run(trade, address)
    say(f"\n[bold green]done[/] in {time.monotonic() - started:.1f} s")


if __name__ == "__main__":
    main()
