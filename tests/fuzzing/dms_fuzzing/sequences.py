"""Random sequences over live connections: operations, damaged frames, half frames, half-closes, resets, and raw Yamux.

A round opens connections from several identities to one serving peer, and does what its seed says on each. Everything
that comes back has to be an answer, an event or a coded error of the wire page. After a round nothing of it may be
left: no connection, no stream, no task, no descriptor, no share in use, no lease; and the ledger is sound.
"""

from __future__ import annotations

import logging
import os
import random
import re
import struct
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from itertools import count
from pathlib import Path
from typing import Any, Final

import trio
from libp2p.io.trio import TrioTCPStream
from libp2p.network.connection.raw_connection import RawConnection

from dms_host import HardenedHost, HostLimits, dial, host_addresses, open_host, open_stream
from dms_host.addresses import parse_peer_address
from dms_host.errors import HostError
from dms_host.keys.identity import new_identity
from dms_host.streams.stream import PeerStream
from dms_host.transport.upgrader import hardened_upgrader
from dms_peer.clients import open_resources
from dms_peer.serving import serve
from dms_protocols.protocol_ids import (
    ALLOCATION_PROTOCOL,
    ALLOCATION_PROTOCOL_1_1,
    BID_PROTOCOL,
    BID_PROTOCOL_1_1,
    RESOURCES_PROTOCOL,
)
from dms_protocols.rpc.shares import SharesInUse
from dms_protocols.wire.cbor import decode_map, encode_fast
from dms_protocols.wire.frames import FrameReader, Oversize, encode_frame
from dms_resources.components import CPU, RAM, Disk, MachineResources, OnboardedResources
from dms_resources.manager import AllocationTerms, ResourceManager, open_manager
from dms_resources.units import GIB, Cores

from .corpus import corpus
from .mutation import mutated

__all__ = ["Finding", "World", "findings", "open_world"]

MACHINE: Final = MachineResources(
    cpu=CPU(cores=Cores.of(64)), ram=RAM(size=64 * GIB), disk=Disk(size=64 * GIB), gpus=(), simulated=True
)
OFFER: Final = OnboardedResources(cpu=MACHINE.cpu, ram=MACHINE.ram, disk=MACHINE.disk, gpus=())
PROTOCOLS: Final = (
    RESOURCES_PROTOCOL, BID_PROTOCOL, BID_PROTOCOL_1_1, ALLOCATION_PROTOCOL, ALLOCATION_PROTOCOL_1_1
)  # fmt: skip
CONNECTIONS: Final = 6
STREAMS: Final = 12
# Seconds until a round has to have left nothing behind: leases last 2 s, a stalled close 2 s, a stalled frame 5 s.
SETTLING: Final = 45.0
LIMITS: Final = HostLimits(max_inbound_per_address=64, frame_timeout=5.0)
# What a peer may meet that is cut off while it talks.
STRANGE: Final = (OSError, trio.BrokenResourceError, trio.ClosedResourceError, trio.BusyResourceError, HostError)
_CODES: Final = re.compile(r"`([a-z][a-z_]+)`")


class Finding(Exception):  # noqa: N818 - not an error of the fuzzer
    """What a peer should not have done."""


def findings(error: BaseException) -> list[str]:
    """What was found, out of the groups that nurseries make. Raises the error itself where it is something else."""
    if isinstance(error, BaseExceptionGroup):
        return [text for inner in error.exceptions for text in findings(inner)]
    if not isinstance(error, Finding):
        raise error
    return [str(error)]


class _Learned:
    """The newest bids and leases that answers had."""

    def __init__(self) -> None:
        self.bids: list[bytes] = []
        self.leases: list[tuple[str, int]] = []

    def learn(self, answer: dict[str, Any]) -> None:
        self.bids.extend(answer.get("bids", ()))
        leases = [*answer.get("leases", ()), *([answer["lease"]] if "lease" in answer else [])]
        self.leases.extend((lease["lease_id"], lease["fence"]) for lease in leases)
        del self.bids[:-20], self.leases[:-20]


class World:
    """One serving peer, and what strangers have learned of it."""

    def __init__(self, host: HardenedHost, manager: ResourceManager, shares: SharesInUse, log: _Errors) -> None:
        self.host = host
        self.manager = manager
        self.address = host_addresses(host)[0]
        self.done: Counter[str] = Counter()
        self._shares = shares
        self._log = log
        self._public = _Learned()
        self._damaged = corpus("service")

    async def play(self, seed: int, seconds: float) -> None:
        """One round. Raises Finding for what should not have been."""
        tasks, descriptors = _tasks(), _descriptors()
        self._public = _Learned()
        with trio.move_on_after(seconds):
            async with trio.open_nursery() as nursery:
                for number in range(CONNECTIONS):
                    nursery.start_soon(self._talk, random.Random(f"{seed} {number}"))
                nursery.start_soon(self._abuse, random.Random(f"{seed} raw"))
                nursery.start_soon(self._ask_in_peace)
        await self._nothing_left(tasks, descriptors)

    # Those who speak through a libp2p of their own

    async def _talk(self, dice: random.Random) -> None:
        while True:
            async with open_host(new_identity()) as host:
                try:
                    peer_id = await dial(host, self.address)
                    await self._use(host, peer_id, dice)
                except STRANGE:
                    self.done["connections that ended"] += 1
                    # Nobody dials in a loop without a pause.
                    await trio.sleep(0.01)

    async def _use(self, host: HardenedHost, peer_id: str, dice: random.Random) -> None:
        own = _Learned()
        async with trio.open_nursery() as nursery:
            for _ in range(dice.randrange(1, STREAMS)):
                nursery.start_soon(self._stream, host, peer_id, own, random.Random(dice.random()))
            if dice.random() < 0.3:
                await trio.sleep(dice.random() / 4)
                # The host closes beneath its streams.
                nursery.cancel_scope.cancel()

    async def _stream(self, host: HardenedHost, peer_id: str, own: _Learned, dice: random.Random) -> None:
        try:
            stream = await open_stream(host, peer_id, [dice.choice(PROTOCOLS)])
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._converse, stream, own, dice, nursery.cancel_scope)
                if dice.random() < 0.9:
                    nursery.start_soon(self._read, stream, own)
        except* STRANGE:
            self.done["streams that ended"] += 1

    async def _converse(self, stream: PeerStream, own: _Learned, dice: random.Random, scope: trio.CancelScope) -> None:
        def operation() -> bytes:
            known = own if dice.random() < 0.85 else self._public
            protocol = stream.protocol if dice.random() < 0.95 else dice.choice(PROTOCOLS)
            identity: Any = next(ids) if dice.random() < 0.9 else dice.choice((0, 1, 2**53, -1, None, "1", 1.0))
            return encode_frame(encode_fast({"id": identity, **_question(protocol, known, dice)}))

        damaged = mutated(self._damaged, dice)
        ids = count(dice.randrange(3))
        while True:
            step = dice.choices(
                ("operation", "batch", "damaged", "half", "wait", "eof", "close", "reset"), (40, 10, 20, 5, 20, 2, 2, 2)
            )[0]
            self.done[step] += 1
            match step:
                case "operation":
                    await stream.send_all(operation())
                case "batch":
                    await stream.send_all(b"".join(operation() for _ in range(dice.randrange(200))))
                case "damaged":
                    await stream.send_all(next(damaged))
                case "half":
                    whole = operation()
                    middle = dice.randrange(len(whole))
                    await stream.send_all(whole[:middle])
                    await trio.sleep(dice.choice((0, 0.01, 0.1)))
                    await stream.send_all(whole[middle:] if dice.random() < 0.7 else next(damaged))
                case "wait":
                    await trio.sleep(dice.random() ** 4 / 5)
                case "eof":
                    await stream.send_eof()
                    await trio.sleep(dice.random())
                case "close":
                    await stream.aclose()
                    return
                case "reset":
                    await stream.areset()
                    scope.cancel()
                    return

    async def _read(self, stream: PeerStream, own: _Learned) -> None:
        reader = FrameReader(limit=2**20, skip_limit=2**20)
        async for data in stream:
            reader.feed(data)
            for frame in reader:
                if isinstance(frame, Oversize):
                    raise Finding(f"an answer of {frame.length} bytes")
                self._judge(decode_map(frame), own)

    def _judge(self, answer: dict[str, Any], own: _Learned) -> None:
        if "error" in answer:
            code = answer["error"]["code"]
            self.done[f"error {code}"] += 1
            if code not in _known_codes() or code == "internal":
                raise Finding(f"an error of an unknown code: {answer}")
        elif "event" in answer:
            self.done["event"] += 1
        elif "ok" in answer:
            self.done["ok"] += 1
            own.learn(answer["ok"])
            self._public.learn(answer["ok"])
        else:
            raise Finding(f"neither answer nor error: {answer}")

    # One who speaks raw Yamux

    async def _abuse(self, dice: random.Random) -> None:
        while True:
            target = parse_peer_address(self.address)
            raw = RawConnection(TrioTCPStream(await trio.open_tcp_stream(target.host, target.port)), True)
            try:
                upgrader = hardened_upgrader(new_identity().key_pair(), HostLimits())
                secured = await upgrader.upgrade_security(raw, True, target.peer_id)
                await upgrader.muxer_multistream._selector.select(secured, True)
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._drain, secured, nursery.cancel_scope)
                    for _ in range(dice.randrange(400)):
                        await secured.write(_yamux_frame(dice))
                        self.done["raw frames"] += 1
                        await trio.sleep(0.02 if dice.random() < 0.1 else 0)
                    nursery.cancel_scope.cancel()
            except* Exception:
                # The library's own errors: it is about the peer at the other end.
                self.done["raw connections that ended"] += 1
            finally:
                with trio.CancelScope(shield=True):
                    await raw.close()
            await trio.sleep(0.05)

    @staticmethod
    async def _drain(secured: Any, scope: trio.CancelScope) -> None:
        while await secured.read(2**16):
            pass
        scope.cancel()

    # One who behaves

    async def _ask_in_peace(self) -> None:
        async with open_host(new_identity()) as host:
            peer_id = await dial(host, self.address)
            async with open_resources(host, peer_id) as resources:
                while True:
                    began = trio.current_time()
                    free = await resources.free()
                    if free.cpu.cores > OFFER.cpu.cores or trio.current_time() - began > 5:
                        raise Finding(
                            f"{free.cpu.cores} cores are free, told after {trio.current_time() - began:.1f} s"
                        )
                    await trio.sleep(0.2)

    # What is left

    async def _nothing_left(self, tasks: int, descriptors: int) -> None:
        expected = {"connections": 0, "streams": 0, "operations": 0, "bytes": 0, "leases": 0, "storage": None}
        with trio.move_on_after(SETTLING):
            while self._left() != expected or _tasks() > tasks or _descriptors() > descriptors:  # noqa: ASYNC110
                await trio.sleep(0.05)
            if findings := await self.manager.audit():
                raise Finding(f"the ledger is not sound: {findings}")
            if self._log.records:
                raise Finding(f"the log has errors: {self._log.records[:3]}")
            return
        raise Finding(
            f"after {SETTLING:.0f} s there is left: {self._left()}, {_tasks() - tasks} tasks, "
            f"{_descriptors() - descriptors} descriptors"
        )

    def _left(self) -> dict[str, Any]:
        total = self._shares._total
        return {
            "connections": len(self.host.swarm.get_connections()),
            "streams": total.streams,
            "operations": total.operations,
            "bytes": total.bytes,
            "leases": len(self.manager.leases()),
            "storage": self.manager.storage_error,
        }


@asynccontextmanager
async def open_world() -> AsyncIterator[World]:
    """A peer on loopback that offers a simulated machine, for as long as the block runs."""
    async with AsyncExitStack() as stack:
        log = stack.enter_context(_errors_of_the_log())
        place = stack.enter_context(tempfile.TemporaryDirectory())
        # Nothing that was allocated outlives its round for long.
        terms = AllocationTerms(keep_alive=2.0, longest=5.0)
        manager = await stack.enter_async_context(
            # Ports that other programs of this machine take meanwhile are not looked at.
            open_manager(Path(place) / "ledger.db", MACHINE, allocation_terms=terms, read_ports=frozenset)
        )
        await manager.update_onboarded_resources(OFFER)
        identity, shares = new_identity(), SharesInUse()
        host = await stack.enter_async_context(open_host(identity, ["/ip4/127.0.0.1/tcp/0"], LIMITS))
        await stack.enter_async_context(serve(host, manager, identity=identity, shares=shares))
        yield World(host, manager, shares, log)


class _Errors(logging.Handler):
    """Keeps what is logged as an error."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.records: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(self.format(record))


@contextmanager
def _errors_of_the_log() -> Iterator[_Errors]:
    handler, loggers = (
        _Errors(),
        [logging.getLogger(name) for name in ("dms_host", "dms_peer", "dms_protocols", "dms_resources")],
    )
    for logger in loggers:
        logger.addHandler(handler)
    try:
        yield handler
    finally:
        for logger in loggers:
            logger.removeHandler(handler)


def _known_codes() -> frozenset[str]:
    global _codes
    if not _codes:
        page = Path(__file__).resolve().parents[3] / "docs" / "wire.md"
        _codes = frozenset(_CODES.findall(page.read_text()))
    return _codes


_codes: frozenset[str] = frozenset()


def _question(protocol: str, known: _Learned, dice: random.Random) -> dict[str, Any]:
    """An operation of this protocol, with what is known."""
    ttl = dice.choice((0.5, 1, 2, 2, 2.0, 0, -1, 1e9))
    if protocol == RESOURCES_PROTOCOL:
        queries = ("free", "free", "onboarded", "allocated", "machine", "usage", "watch", "cancel", "fly")
        operation = dice.choice(queries)
        return {"op": operation, "target": dice.randrange(10)} if operation == "cancel" else {"op": operation}
    if protocol in (BID_PROTOCOL, BID_PROTOCOL_1_1):
        return {
            "op": "bid_request",
            "ensemble": _ensemble(dice),
            "dry_run": dice.random() < 0.1,
            "hold": dice.choice((0, 0, 1.5)),
            "ttl": dice.choice((0, 1, ttl)),
        }
    lease, fence = dice.choice(known.leases) if known.leases else ("0" * 32, 1)
    named = {"lease_id": lease, "fence": dice.choice((fence, fence, fence, fence + 1))}
    match dice.choice(("commit", "commit", "renew", "allocate", "release", "list")):
        case "commit":
            return {
                "op": "commit",
                "bids": dice.sample(known.bids, min(len(known.bids), 1 + dice.randrange(3))),
                "ttl": ttl,
            }
        case "renew":
            return {"op": "renew", "ttl": ttl, **named}
        case "list":
            return {"op": "list", "after": dice.choice(("", lease)), "limit": dice.choice((0, 1, 100))}
        case operation:
            return {"op": operation, **named}


def _ensemble(dice: random.Random) -> dict[str, Any]:
    def node(number: int) -> dict[str, Any]:
        amounts = {"cpu": {"cores": dice.choice((1, 0.5, 1.0, 99))}, "ram": {"size": GIB}, "disk": {"size": GIB}}
        return {"node_id": f"n{number}", "resources": amounts}

    return {
        "id": "e",
        "nonce": dice.randrange(2**63),
        "deadline": time.time() + dice.choice((60, 60, 60, -5)),
        "request": [node(number) for number in range(dice.choice((1, 1, 2, 8)))],
    }


def _yamux_frame(dice: random.Random) -> bytes:
    kind = dice.choices((0, 1, 2, 3, dice.randrange(256)), (50, 20, 10, 1, 1))[0]
    flags = dice.choice((0, 0, 1, 1, 2, 4, 8, 5, 15, dice.randrange(2**16)))
    stream = dice.choice((0, 1, 3, 5, 7, 9, 2, 4, dice.randrange(2**32)))
    data = _negotiation(dice) if kind == 0 and dice.random() < 0.7 else b""
    length = len(data) if dice.random() < 0.98 else dice.choice((0, 1, 2**18, 2**32 - 1))
    whole = struct.pack("!BBHII", 0 if dice.random() < 0.995 else 1, kind % 256, flags, stream, length) + data
    return whole if dice.random() < 0.99 else whole[: dice.randrange(len(whole)) + 1]


def _negotiation(dice: random.Random) -> bytes:
    lines = [
        b"/multistream/1.0.0\n",
        dice.choice(PROTOCOLS).encode() + b"\n",
        b"/nothing/1.0.0\n",
        b"na\n",
        b"ls\n",
        b"\n",
    ]
    chosen = lines[:2] if dice.random() < 0.7 else dice.choices(lines, k=dice.randrange(4))
    data = b"".join(bytes([len(line)]) + line for line in chosen)
    return data + (encode_frame(encode_fast({"id": 1, "op": "free"})) if dice.random() < 0.7 else dice.randbytes(8))


def _tasks() -> int:
    return trio.lowlevel.current_statistics().tasks_living


def _descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))
