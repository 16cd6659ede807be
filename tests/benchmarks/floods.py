"""Floods of Yamux frames without content, and their effect on an honest peer.

    python tests/benchmarks/floods.py [--seconds 5] [--connections 24] [--rate 1000000] [--json FILE] [KIND ...]

Three processes on loopback: a provider, 50 peers that query it twice a second, and an attacker that sends `rate` bytes
a second over its connections, all from one address, and reconnects as soon as it is dropped. The times of the honest
peers are measured while they are alone, and during each kind of flood after its first second.

Exits with 1 if a 99th percentile is more than 5 times the quiet one, or if an honest query fails.
"""

from __future__ import annotations

import argparse
import json
import struct
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any, Final

import psutil
import trio
from libp2p.io.exceptions import IOException
from libp2p.network.connection.raw_connection import RawConnection
from processes import conversation
from rich.console import Console
from rich.table import Table

from dms_host import HostLimits, new_identity
from dms_host.addresses import parse_peer_address
from dms_host.transport.tcp import PeerSocket
from dms_host.transport.upgrader import hardened_upgrader

PEERS: Final = str(Path(__file__).with_name("hell_peers.py"))
HONEST: Final = 50
AIM: Final = 5.0
# Bytes of frames in one Noise message, for floods that do not use small messages.
MESSAGE: Final = 60_000
# Seconds before an attacker that was dropped or refused reconnects.
PAUSE: Final = 0.05


def frame(kind: int, flags: int, stream_id: int, value: int = 0, data: bytes = b"") -> bytes:
    """One Yamux frame, encoded here so that the attacker uses none of our code."""
    return struct.pack("!BBHII", 0, kind, flags, stream_id, value) + data


def _repeated(one: bytes) -> Iterator[bytes]:
    while True:
        yield one * (MESSAGE // len(one))


def _half_headers() -> Iterator[bytes]:
    header = frame(0, 0, 77)
    while True:
        yield header[:6]
        yield header[6:]


def _opened_and_reset() -> Iterator[bytes]:
    for first in count(1, 2 * 1000):
        ids = range(first, first + 2 * 1000, 2)
        yield b"".join(frame(1, 1, number) + frame(1, 8, number) for number in ids)


def _short_data() -> Iterator[bytes]:
    # A negotiation that never ends: each frame has eight bytes of a long line, which gets no answer.
    yield frame(1, 1, 1) + frame(0, 0, 1, 22, b"\x13/multistream/1.0.0\n\x80\x08")
    yield from _repeated(frame(0, 0, 1, 8, b"/" * 8))


def _one_byte_each() -> Iterator[bytes]:
    # A stream without a negotiated protocol: its bytes are a line of multistream-select that never ends.
    yield frame(1, 1, 1)
    yield from _repeated(frame(0, 0, 1, 1, b"\xff"))


KINDS: Final = {
    "empty data": lambda: _repeated(frame(0, 0, 77)),
    "window updates": lambda: _repeated(frame(1, 0, 77, 1)),
    "pings": lambda: _repeated(frame(2, 1, 0, 7)),
    "resets": lambda: _repeated(frame(1, 8, 77)),
    "half headers": _half_headers,
    "streams opened and reset": _opened_and_reset,
    "one byte in a frame": _one_byte_each,
    "short data": _short_data,
}


class Flood:
    """The attacker's connections, and their results."""

    def __init__(self, address: str, kind: str, rate: float) -> None:
        self._target = parse_peer_address(address)
        self._kind = kind
        self._rate = rate
        # An address for each kind, so that one flood does not affect the account of the next one.
        self._own = f"127.0.1.{1 + list(KINDS).index(kind)}"
        self.sent = self.connected = self.refused = 0

    async def persist(self) -> None:
        """Connect, flood until dropped, and repeat."""
        while True:
            with suppress(OSError, IOException, trio.BrokenResourceError):
                await self._flood()
            await trio.sleep(PAUSE)

    async def _flood(self) -> None:
        async with await trio.open_tcp_stream(self._target.host, self._target.port, local_address=self._own) as stream:
            upgrader = hardened_upgrader(new_identity().key_pair(), HostLimits())
            try:
                raw = RawConnection(PeerSocket(stream), True)
                secured = await upgrader.upgrade_security(raw, True, self._target.peer_id)
                await upgrader.muxer_multistream._selector.select(secured, True)
            except Exception:
                # Each layer of the library reports a closed connection differently.
                self.refused += 1
                return
            self.connected += 1
            started = trio.current_time()
            sent = 0
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._swallow, stream, nursery.cancel_scope)
                for message in KINDS[self._kind]():
                    await secured.write(message)
                    sent += len(message)
                    self.sent += len(message)
                    await trio.sleep_until(started + sent / self._rate)

    async def _swallow(self, stream: trio.SocketStream, scope: trio.CancelScope) -> None:
        with suppress(OSError, trio.BrokenResourceError, trio.ClosedResourceError):
            while await stream.receive_some():
                pass
        scope.cancel()


async def attack(address: str, kind: str, connections: str, rate: str) -> None:
    """Flood until standard input ends. Answer each of its lines with what was sent."""
    flood = Flood(address, kind, float(rate) / int(connections))
    async with trio.open_nursery() as nursery:
        for _ in range(int(connections)):
            nursery.start_soon(flood.persist)
        print(json.dumps({"kind": kind}), flush=True)
        async for _ in trio.wrap_file(sys.stdin):
            value = {"bytes": flood.sent, "connected": flood.connected, "refused": flood.refused}
            print(json.dumps({"value": value}), flush=True)
        nursery.cancel_scope.cancel()


def measure(kinds: list[str], *, seconds: float, connections: int, rate: float) -> dict[str, dict[str, Any]]:
    """The times of the honest peers, quiet and during each flood, in milliseconds."""
    with tempfile.TemporaryDirectory() as home, conversation([sys.executable, PEERS, "provider", home]) as provider:
        address = provider.first["addrs"][0]
        with conversation([sys.executable, PEERS, "behave", address, str(HONEST)]) as honest:
            honest.ask(order="measure", seconds=1)
            # On a busy machine the provider's processor time says more than waiting times.
            process = psutil.Process(provider.process.pid)

            def seen() -> dict[str, float]:
                before = sum(process.cpu_times()[:2])
                times: dict[str, float] = honest.ask(order="measure", seconds=seconds)
                return {**times, "cpu": (sum(process.cpu_times()[:2]) - before) / seconds}

            found = {"quiet": seen()}
            for kind in kinds:
                command = [sys.executable, __file__, "attack", address, kind, str(connections), str(rate)]
                with conversation(command) as attacker:
                    # Measured only when all of its connections exist.
                    honest.ask(order="measure", seconds=1)
                    found[kind] = {**seen(), **attacker.ask()}
                # Answers that the provider still owes must not count for the next flood.
                honest.ask(order="measure", seconds=1)
    return found


def show(found: dict[str, dict[str, Any]], seconds: float, console: Console) -> bool:
    """Print a table for people. Returns whether all aims are met."""
    table = Table("", "answers", "failures", "p50 ms", "p99 ms", "p99 / quiet", "cpu %", "kB/s", "connected", "refused")
    met = True
    for moment, seen in found.items():
        ratio = seen["p99"] / found["quiet"]["p99"]
        met = met and ratio <= AIM and not seen["failures"]
        sent = f"{seen.get('bytes', 0) / seconds / 1000:.0f}"
        flood = [sent, str(seen.get("connected", "")), str(seen.get("refused", ""))]
        figures = [f"{seen['answers']:,}", str(seen["failures"]), f"{seen['p50']:.1f}", f"{seen['p99']:.1f}"]
        table.add_row(moment, *figures, f"{ratio:.1f}", f"{100 * seen['cpu']:.0f}", *flood)
    console.print(table)
    console.print(f"{'met   ' if met else 'MISSED'}  the 99th percentile within {AIM:g} times of the quiet one")
    return met


def main() -> int:
    """Measure the floods. Returns 0 if all aims are met."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=f"{', '.join(KINDS)}; all of them by default")
    parser.add_argument("--seconds", type=float, default=5.0, help="how long each flood is measured (default: 5)")
    parser.add_argument("--connections", type=int, default=24, help="the attacker's connections (default: 24)")
    parser.add_argument("--rate", type=float, default=1e6, help="bytes per second over all of them (default: 1000000)")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    options = parser.parse_args()
    unknown = [kind for kind in options.kinds if kind not in KINDS]
    if unknown:
        parser.error(f"unknown kind {unknown[0]!r}; there are {', '.join(KINDS)}")
    chosen = options.kinds or list(KINDS)
    found = measure(chosen, seconds=options.seconds, connections=options.connections, rate=options.rate)
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")
    return 0 if show(found, options.seconds, Console(highlight=False)) else 1


if __name__ == "__main__":
    if sys.argv[1:2] == ["attack"]:
        trio.run(attack, *sys.argv[2:])
    else:
        raise SystemExit(main())
