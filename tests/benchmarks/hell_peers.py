"""The processes of `hell.py`: a provider, honest peers, and attackers.

    python tests/benchmarks/hell_peers.py provider HOME
    python tests/benchmarks/hell_peers.py behave ADDRESS COUNT
    python tests/benchmarks/hell_peers.py attack ADDRESS SLOW RANDOM STREAMS UNREAD

Each prints one line of JSON when it is ready, and then answers each line of its standard input with one.
"""

from __future__ import annotations

import gc
import json
import os
import random
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Any, Final

import psutil
import trio

from dms_host import HostLimits, open_stream
from dms_host.addresses import parse_peer_address
from dms_peer import dial, host_addresses, new_identity, open_host, open_resources, serve
from dms_peer.cli.event_loop import run_async
from dms_peer.errors import PeerError
from dms_peer.telemetry.heap import return_free_memory, use_system_allocator
from dms_protocols.clients import ResourcesClient
from dms_protocols.errors import ProtocolError
from dms_protocols.protocol_ids import RESOURCES_PROTOCOL
from dms_protocols.wire.cbor import encode_fast
from dms_protocols.wire.frames import encode_frame
from dms_resources.components import CPU, RAM, Disk, MachineResources, OnboardedResources
from dms_resources.manager import open_manager
from dms_resources.units import GIB, Cores

CONNECTIONS: Final = 700
MACHINE: Final = MachineResources(
    cpu=CPU(cores=Cores.of(16)), ram=RAM(size=64 * GIB), disk=Disk(size=64 * GIB), gpus=(), simulated=True
)
OFFER: Final = OnboardedResources(cpu=MACHINE.cpu, ram=MACHINE.ram, disk=MACHINE.disk, gpus=())
QUERY: Final = encode_frame(encode_fast({"id": 1, "op": "free"}))
# Seconds between two bytes of a slow peer, and between two attempts of one that was cut off.
PACE: Final = 1.0
# Seconds between two queries of an honest peer.
ASKS: Final = 0.5
STRANGE: Final = (OSError, trio.BrokenResourceError, trio.ClosedResourceError, trio.TooSlowError, PeerError)


async def answer_orders(orders: dict[str, Callable[..., Awaitable[Any]]], scope: trio.CancelScope) -> None:
    """Answer the lines of standard input until it ends; then the program ends."""
    lines = trio.wrap_file(sys.stdin)
    async for line in lines:
        order = json.loads(line)
        value = await orders[order.pop("order")](**order)
        print(json.dumps({"value": value}), flush=True)
    scope.cancel()


# The provider


async def provide(home: str) -> None:
    """A peer with the default limits, except for the number of connections, which all come from this machine."""
    limits = HostLimits(
        max_connections=CONNECTIONS, max_inbound_connections=CONNECTIONS, max_inbound_per_address=CONNECTIONS
    )
    identity = new_identity()
    async with (
        open_manager(Path(home) / "ledger.db", MACHINE) as manager,
        open_host(identity, ["/ip4/127.0.0.1/tcp/0"], limits) as host,
        serve(host, manager, identity=identity),
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(return_free_memory)
        await manager.update_onboarded_resources(OFFER)
        print(json.dumps({"addrs": host_addresses(host)}), flush=True)

        async def state() -> dict[str, int]:
            return {
                "rss": psutil.Process().memory_info().rss,
                "files": len(os.listdir("/proc/self/fd")),
                "tasks": trio.lowlevel.current_statistics().tasks_living,
                "connections": len(host.get_network().get_connections()),
            }

        await answer_orders({"state": state}, nursery.cancel_scope)


# Honest peers


class Behaved:
    """Peers with one connection each that query repeatedly what is free, and record how long each answer took."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.failures = 0

    async def ask(self, client: ResourcesClient, chance: random.Random) -> None:
        await trio.sleep(chance.random() * ASKS)
        while True:
            started = time.perf_counter()
            try:
                await client.free()
            except ProtocolError:
                self.failures += 1
            else:
                self.seconds.append(time.perf_counter() - started)
            await trio.sleep(ASKS)

    async def measured(self, seconds: float) -> dict[str, float]:
        """What they measure in the next `seconds`; times are in milliseconds."""
        self.seconds, self.failures = [], 0
        await trio.sleep(seconds)
        found = sorted(self.seconds)
        at = lambda share: found[min(len(found) - 1, int(len(found) * share))] * 1000 if found else float("nan")  # noqa: E731
        return {"answers": len(found), "failures": self.failures, "p50": at(0.5), "p99": at(0.99)}


async def behave(address: str, count: str) -> None:
    """This many peers, each with its own key."""
    behaved = Behaved()
    async with AsyncExitStack() as stack:
        clients = []
        for _ in range(int(count)):
            host = await stack.enter_async_context(open_host(new_identity()))
            peer_id = await dial(host, address)
            clients.append(await stack.enter_async_context(open_resources(host, peer_id)))
        async with trio.open_nursery() as nursery:
            for number, client in enumerate(clients):
                nursery.start_soon(behaved.ask, client, random.Random(number))
            print(json.dumps({"connected": len(clients)}), flush=True)
            await answer_orders(
                {"measure": behaved.measured, "cycle": lambda times: cycle(address, times)}, nursery.cancel_scope
            )


async def cycle(address: str, times: int) -> int:
    """This many peers connect, query once and leave, four at a time."""
    left, done = iter(range(times)), 0

    async def come_and_go() -> None:
        nonlocal done
        for _ in left:
            with suppress(*STRANGE, ProtocolError):
                async with open_host(new_identity()) as host, open_resources(host, await dial(host, address)) as client:
                    await client.free()
                    done += 1

    async with trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(come_and_go)
    return done


# Attackers


async def attack(address: str, slow: str, noise: str, streams: str, unread: str) -> None:
    """This many attackers of each kind."""
    kinds: list[Callable[[str, random.Random], Awaitable[None]]] = [
        *[slow_handshake, slow_request] * (int(slow) // 2),
        *[random_bytes] * int(noise),
        *[endless_streams] * int(streams),
        *[never_reads] * int(unread),
    ]
    async with trio.open_nursery() as nursery:
        for number, kind in enumerate(kinds):
            nursery.start_soon(persist, kind, address, random.Random(number))
        print(json.dumps({"attackers": len(kinds)}), flush=True)
        await answer_orders({}, nursery.cancel_scope)


async def persist(kind: Callable[[str, random.Random], Awaitable[None]], address: str, chance: random.Random) -> None:
    """Reconnect whenever the connection is closed."""
    await trio.sleep(chance.random() * 5)
    while True:
        with suppress(*STRANGE):
            await kind(address, chance)
        await trio.sleep(PACE)


async def _socket(address: str) -> trio.SocketStream:
    target = parse_peer_address(address)
    return await trio.open_tcp_stream(target.host, target.port)


async def slow_handshake(address: str, chance: random.Random) -> None:
    """Send the handshake one byte at a time."""
    async with await _socket(address) as stream:
        for byte in b"\x13/multistream/1.0.0\n\x07/noise\n" * 100:
            await stream.send_all(bytes([byte]))
            await trio.sleep(PACE)


async def slow_request(address: str, chance: random.Random) -> None:
    """Connect correctly, and send a request one byte at a time."""
    async with open_host(new_identity()) as host:
        stream = await open_stream(host, await dial(host, address), [RESOURCES_PROTOCOL])
        while True:
            for byte in QUERY:
                await stream.send_all(bytes([byte]))
                await trio.sleep(PACE)


async def random_bytes(address: str, chance: random.Random) -> None:
    """Send random bytes, as fast as they are accepted."""
    async with await _socket(address) as stream:
        while True:
            await stream.send_all(chance.randbytes(4096))
            await trio.sleep(PACE / 10)


async def endless_streams(address: str, chance: random.Random) -> None:
    """Open one stream after the other and end none."""
    async with open_host(new_identity()) as host:
        peer_id = await dial(host, address)
        opened = []
        while True:
            with suppress(PeerError):
                opened.append(await open_stream(host, peer_id, [RESOURCES_PROTOCOL]))
            if not host.get_network().get_connections(None):
                return
            await trio.sleep(PACE / 2)


async def never_reads(address: str, chance: random.Random) -> None:
    """Send queries without end and read no answers."""
    async with open_host(new_identity()) as host:
        stream = await open_stream(host, await dial(host, address), [RESOURCES_PROTOCOL])
        while True:
            await stream.send_all(QUERY * 256)


PARTS: Final = {"provider": provide, "behave": behave, "attack": attack}

if __name__ == "__main__":
    if sys.argv[1] == "provider":
        # As `dms-peer run` does.
        use_system_allocator()
        gc.disable()
    run_async(partial(PARTS[sys.argv[1]], *sys.argv[2:]))
