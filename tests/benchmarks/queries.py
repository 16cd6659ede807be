"""How many queries and bids a second two peers exchange, and how that compares with an echo without our code.

    python tests/benchmarks/queries.py [--seconds 2] [--rounds 3] [--json]

Two processes on loopback. "Ours" is the whole way: typed request, CBOR, frames, hardened host, TCP, Noise, Yamux, and
back. "Echo" is a plain py-libp2p host with the same transport, which sends back the bytes of an answer, without frames,
CBOR, or anybody who looks at them.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import trio
from libp2p import new_host
from libp2p.abc import IHost, INetStream
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.crypto.x25519 import create_new_key_pair as create_noise_key_pair
from libp2p.custom_types import TProtocol
from libp2p.peer.peerinfo import info_from_p2p_addr
from libp2p.security.noise.transport import PROTOCOL_ID, Transport
from libp2p.stream_muxer.yamux.yamux import PROTOCOL_ID as YAMUX_ID
from libp2p.stream_muxer.yamux.yamux import Yamux
from multiaddr import Multiaddr

from dms_peer import dial, host_addresses, new_identity, open_bids, open_host, open_resources, serve
from dms_peer.tables import show_table
from dms_protocols.messages.bid import EnsembleRequest, NodeRequest
from dms_resources.components import CPU, GPU, RAM, Disk, MachineResources, OnboardedResources
from dms_resources.demands import CPUDemand, Demand, DiskDemand, GPUDemand, RAMDemand
from dms_resources.manager import open_manager
from dms_resources.units import GIB, Cores

ECHO: Final = TProtocol("/echo/1.0.0")
LOOPBACK: Final = "/ip4/127.0.0.1/tcp/0"
# Bytes: a frame with what is free on a machine with one GPU, and one with a signed bid.
QUERY_SIZE: Final = 180
BID_SIZE: Final = 700
PARTS: Final = {
    "cpu": CPU(cores=Cores.of(64)),
    "ram": RAM(size=256 * GIB),
    "disk": Disk(size=1000 * GIB),
    "gpus": (GPU(uuid="GPU-a", vram=24 * GIB),),
}
DEMAND: Final = Demand(
    cpu=CPUDemand(cores=Cores.of(2)),
    ram=RAMDemand(size=4 * GIB),
    disk=DiskDemand(size=GIB),
    gpus=(GPUDemand(vram=8 * GIB),),
)


@dataclass(frozen=True)
class Row:
    """One measurement: exchanges per second, ours and the echo's."""

    name: str
    ours: float
    echo: float

    @property
    def ratio(self) -> float:
        """Ours as a part of the echo."""
        return self.ours / self.echo


# The process that answers


def plain_host() -> IHost:
    """py-libp2p as it comes, with Noise and Yamux only."""
    key_pair = create_new_key_pair()
    noise = Transport(key_pair, noise_privkey=create_noise_key_pair().private_key)
    return new_host(key_pair=key_pair, sec_opt={PROTOCOL_ID: noise}, muxer_opt={YAMUX_ID: Yamux})


async def echo(stream: INetStream) -> None:
    """Sends back what comes."""
    try:
        while data := await stream.read(65536):
            await stream.write(data)
    except Exception:
        # The end of a stream is an exception there.
        return
    finally:
        await stream.close()


async def answer(home: Path) -> None:
    """Runs both hosts until the process is ended."""
    plain = plain_host()
    plain.set_stream_handler(ECHO, echo)
    identity = new_identity()
    async with (
        plain.run([Multiaddr(LOOPBACK)]),
        open_manager(home / "ledger.db", MachineResources(**PARTS)) as manager,
        open_host(identity, [LOOPBACK]) as host,
        serve(host, manager, identity=identity),
    ):
        await manager.update_onboarded_resources(OnboardedResources(**PARTS))
        addresses = {"ours": host_addresses(host)[0], "echo": host_addresses(plain)[0]}
        print(json.dumps(addresses), flush=True)
        await trio.sleep_forever()


# The process that asks


async def rate(seconds: float, workers: int, work: Callable[[], Awaitable[int]]) -> float:
    """How often `work` gets done in a second by so many workers together, not counting the first half second."""
    done = 0
    counting = False

    async def worker() -> None:
        nonlocal done
        while True:
            count = await work()
            if counting:
                done += count
            # Work may be shielded, and would never hear that it is over.
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        for _ in range(workers):
            nursery.start_soon(worker)
        await trio.sleep(0.5)
        started, counting = time.perf_counter(), True
        await trio.sleep(seconds)
        took = time.perf_counter() - started
        nursery.cancel_scope.cancel()
    return done / took


def echo_burst(stream: INetStream, size: int, count: int) -> Callable[[], Awaitable[int]]:
    """Writes `count` messages at once and reads until all are back."""
    burst = bytes(size * count)

    async def work() -> int:
        # Shielded, as a cancelled write breaks the connection of a plain host.
        with trio.CancelScope(shield=True):
            await stream.write(burst)
            left = len(burst)
            while left:
                left -= len(await stream.read(min(left, 65536)))
        return count

    return work


@asynccontextmanager
async def connected_plain_host(address: str) -> AsyncIterator[tuple[IHost, Any]]:
    """A plain host with a connection to the echo."""
    host = plain_host()
    async with host.run([]):
        info = info_from_p2p_addr(Multiaddr(address))
        await host.connect(info)
        yield host, info.peer_id


async def measure_echo(address: str, seconds: float) -> dict[str, float]:
    """The echo's side of every row."""
    found = {}
    async with connected_plain_host(address) as (host, peer_id):

        async def one_shot() -> int:
            with trio.CancelScope(shield=True):
                stream = await host.new_stream(peer_id, [ECHO])
                await echo_burst(stream, QUERY_SIZE, 1)()
                await stream.close()
            return 1

        for count in (1, 8, 64):
            stream = await host.new_stream(peer_id, [ECHO])
            found[f"queries, {count} in flight"] = await rate(seconds, 1, echo_burst(stream, QUERY_SIZE, count))
            await stream.close()
        found["queries, a stream for each"] = await rate(seconds, 1, one_shot)
        stream = await host.new_stream(peer_id, [ECHO])
        found["signed bids, 64 in flight"] = await rate(seconds, 1, echo_burst(stream, BID_SIZE, 64))
    return found


async def measure_ours(address: str, seconds: float) -> dict[str, float]:
    """Our side of every row."""
    found = {}
    async with open_host(new_identity()) as host:
        peer_id = await dial(host, address)

        async def one_shot() -> int:
            async with open_resources(host, peer_id) as resources:
                await resources.free()
            return 1

        async with open_resources(host, peer_id) as resources:

            async def query() -> int:
                await resources.free()
                return 1

            for count in (1, 8, 64):
                found[f"queries, {count} in flight"] = await rate(seconds, count, query)
        found["queries, a stream for each"] = await rate(seconds, 1, one_shot)
        async with open_bids(host, peer_id) as bids:
            nonces = iter(range(2**53))

            async def bid() -> int:
                ensemble = EnsembleRequest(
                    id="benchmark",
                    nonce=next(nonces),
                    deadline=time.time() + 10,
                    request=(NodeRequest(node_id="node", resources=DEMAND),),
                )
                # Checks the signature as well: both sides of the work are in the number.
                return len((await bids.request_bids(ensemble)).bids)

            found["signed bids, 64 in flight"] = await rate(seconds, 64, bid)
    return found


async def measure(addresses: dict[str, str], seconds: float, rounds: int) -> list[Row]:
    """All rows, each number the best of several rounds: whatever else the machine does only takes away."""
    echoed: dict[str, float] = {}
    ours: dict[str, float] = {}
    for _ in range(rounds):
        for best, found in (
            (echoed, await measure_echo(addresses["echo"], seconds)),
            (ours, await measure_ours(addresses["ours"], seconds)),
        ):
            best.update({name: max(number, best.get(name, 0.0)) for name, number in found.items()})
    return [Row(name, ours[name], echoed[name]) for name in echoed]


def machine_description() -> str:
    """What was measured on."""
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        models = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    model = models[0] if models else platform.processor()
    return f"{os.cpu_count()} cores of {model}, Python {platform.python_version()}, Linux {platform.release()}"


def main() -> None:
    """Starts the answering process, measures, and prints."""
    parser = argparse.ArgumentParser(description="Queries and bids per second between two processes on loopback.")
    parser.add_argument("--seconds", type=float, default=2.0, help="how long each measurement takes")
    parser.add_argument("--rounds", type=int, default=3, help="how often it is measured; the best counts")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--answer", metavar="HOME", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.answer:
        trio.run(answer, Path(options.answer))
        return
    with tempfile.TemporaryDirectory() as home:
        command = [sys.executable, __file__, "--answer", home]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            try:
                assert process.stdout is not None
                rows = trio.run(measure, json.loads(process.stdout.readline()), options.seconds, options.rounds)
            finally:
                process.kill()
    if options.json:
        measured = [{**asdict(row), "ratio": row.ratio} for row in rows]
        print(json.dumps({"machine": machine_description(), "rows": measured}))
        return
    cells = [[row.name, f"{row.ours:,.0f}", f"{row.echo:,.0f}", f"{row.ratio:.2f}"] for row in rows]
    show_table(machine_description(), ["per second", "ours", "echo", "ours / echo"], cells)


if __name__ == "__main__":
    main()
