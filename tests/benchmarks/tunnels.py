"""How much passes through a tunnel to a job, beside plain TCP to the same program, near and far.

    python tests/benchmarks/tunnels.py [--mib 100] [--rounds 5] [--delays 0,50] [--json FILE]

Processes on loopback: a program that sends bytes on each connection (the job), a provider that serves `/dms/tunnel`,
and this requester. With a delay another process stands between requester and provider, or job, and passes everything
on so many milliseconds of round trip later. In each round all are measured one after the other; figures are medians.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

import trio
from libp2p.custom_types import TProtocol
from processes import conversation
from rich.console import Console
from rich.table import Table

from dms_host import dial, new_identity, open_host, open_stream
from dms_host.streams.protocols import attach_protocols
from dms_protocols.jobs.tunnels import TunnelsInUse, open_tunnel, serve_tunnel
from dms_protocols.protocol_ids import TUNNEL_PROTOCOL
from dms_protocols.rpc.operations import Caller

MIB: Final = 1 << 20
PIECE: Final = 256 * 1024


# The processes


async def job() -> None:
    """Sends bytes on each connection, for as long as they are read."""

    async def send(stream: trio.SocketStream) -> None:
        data = bytes(PIECE)
        try:
            while True:
                await stream.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return

    async with trio.open_nursery() as nursery:
        (listener,) = await nursery.start(partial(trio.serve_tcp, send, 0, host="127.0.0.1"))
        print(json.dumps({"port": listener.socket.getsockname()[1]}), flush=True)


async def provider(port: int) -> None:
    """Serves tunnels that lead to a port."""
    tunnels = TunnelsInUse()

    async def connect(lease_id: str, *, holder: str, **_: object) -> trio.SocketStream:
        return await trio.open_tcp_stream("127.0.0.1", port)

    async def answer(stream: trio.abc.HalfCloseableStream, peer_id: str) -> None:
        await serve_tunnel(stream, Caller(peer_id), connect, tunnels)  # type: ignore[arg-type]

    async with (
        open_host(new_identity(), ["/ip4/127.0.0.1/tcp/0"]) as host,
        attach_protocols(host, {TUNNEL_PROTOCOL: answer}),
    ):
        print(json.dumps({"address": f"{host.get_transport_addrs()[0]}/p2p/{host.get_id()}"}), flush=True)
        await trio.sleep_forever()


async def delay(port: int, milliseconds: float) -> None:
    """Passes connections on to a port, each byte half a round trip later."""

    async def serve(client: trio.SocketStream) -> None:
        async with await trio.open_tcp_stream("127.0.0.1", port) as server, client, trio.open_nursery() as nursery:
            nursery.start_soon(_later, client, server, milliseconds / 2000)
            nursery.start_soon(_later, server, client, milliseconds / 2000)

    async with trio.open_nursery() as nursery:
        (listener,) = await nursery.start(partial(trio.serve_tcp, serve, 0, host="127.0.0.1"))
        print(json.dumps({"port": listener.socket.getsockname()[1]}), flush=True)


async def _later(source: trio.SocketStream, sink: trio.SocketStream, seconds: float) -> None:
    # What is on its way; a path has no end of room.
    way: deque[tuple[float, bytes]] = deque()
    arrived = trio.Event()

    async def take() -> None:
        nonlocal arrived
        while data := await source.receive_some(MIB):
            way.append((trio.current_time() + seconds, data))
            arrived.set()
        way.append((trio.current_time() + seconds, b""))
        arrived.set()

    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(take)
            while True:
                while not way:
                    arrived = trio.Event()
                    await arrived.wait()
                at, data = way.popleft()
                await trio.sleep_until(at)
                if not data:
                    await sink.send_eof()
                    return
                await sink.send_all(data)
    except* (trio.BrokenResourceError, trio.ClosedResourceError):
        await trio.aclose_forcefully(sink)


# The measuring


async def read_all(stream: trio.abc.ReceiveStream, size: int) -> float:
    """MiB a second over so many bytes, from the first to the last."""
    left = size - len(await stream.receive_some(PIECE))
    began = time.perf_counter()
    while left > 0:
        data = await stream.receive_some(PIECE)
        assert data, "it ended before"
        left -= len(data)
    return size / MIB / (time.perf_counter() - began)


async def by_tcp(port: int, size: int) -> float:
    """Plain TCP."""
    async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
        return await read_all(stream, size)


@asynccontextmanager
async def tunnel(address: str) -> AsyncIterator[trio.abc.HalfCloseableStream]:
    """A tunnel over a connection of its own."""
    async with open_host(new_identity()) as host:
        peer_id = await dial(host, address)
        stream = await open_stream(host, peer_id, [str(TProtocol(TUNNEL_PROTOCOL))])
        yield await open_tunnel(stream, "lease", 80)


async def by_tunnel(address: str, size: int) -> float:
    """One tunnel."""
    async with tunnel(address) as stream:
        rate = await read_all(stream, size)
        await trio.aclose_forcefully(stream)
        return rate


@contextmanager
def process(role: str, *arguments: object) -> Iterator[dict[str, Any]]:
    """One of the processes, and what it said first."""
    with conversation([sys.executable, __file__, role, *map(str, arguments)]) as opened:
        yield opened.first


def measure(mib: int, rounds: int, delays: list[float]) -> dict[str, list[float]]:
    """MiB a second of each way, round after round."""
    found: dict[str, list[float]] = {}
    with ExitStack() as stack:
        target = stack.enter_context(process("job"))["port"]
        address = stack.enter_context(process("provider", target))["address"]
        ways: list[tuple[str, Callable[[], Awaitable[float]]]] = []
        for milliseconds in delays:
            tcp_port, far = target, address
            size = mib * MIB
            if milliseconds:
                port = int(address.split("/tcp/")[1].split("/")[0])
                tcp_port = stack.enter_context(process("delay", target, milliseconds))["port"]
                behind = stack.enter_context(process("delay", port, milliseconds))["port"]
                far = address.replace(f"/tcp/{port}/", f"/tcp/{behind}/")
            ways += [
                (f"TCP, {milliseconds:g} ms", lambda port=tcp_port, size=size: by_tcp(port, size)),  # type: ignore[misc]
                (f"tunnel, {milliseconds:g} ms", lambda to=far, size=size: by_tunnel(to, size)),  # type: ignore[misc]
            ]
        for _ in range(rounds):
            for name, way in ways:
                found.setdefault(name, []).append(trio.run(way))
    return found


def main() -> None:
    """Measures, and prints a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--mib", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--delays", default="0,50")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    delays = [float(one) for one in given.delays.split(",")]
    found = measure(given.mib, given.rounds, delays)
    medians = {name: statistics.median(values) for name, values in found.items()}
    table = Table("way", "MiB/s", "of TCP")
    for name, rate in medians.items():
        table.add_row(name, f"{rate:.0f}", f"{rate / medians['TCP, ' + name.split(', ')[1]]:.2f}")
    Console().print(table)
    if given.json:
        given.json.write_text(json.dumps({"mib": given.mib, "values": found}, indent=1) + "\n")


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["job"]:
            trio.run(job)
        case ["provider", port]:
            trio.run(provider, int(port))
        case ["delay", port, milliseconds]:
            trio.run(delay, int(port), float(milliseconds))
        case _:
            main()
