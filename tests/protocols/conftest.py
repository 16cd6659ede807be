"""A small service, a caller that speaks raw frames, and a provider with a ledger."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import cbor2
import msgspec
import pytest
import trio
import trio.testing
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from dms_protocols.adverts.adverts import AdvertTable
from dms_protocols.adverts.bid_delivery import Deliveries
from dms_protocols.adverts.exchange import advert_exchange_operations
from dms_protocols.allocations import allocation_operations
from dms_protocols.bidding.service import BidTerms, bid_operations
from dms_protocols.clients import BidClient
from dms_protocols.errors import BusyError, EnvelopeError
from dms_protocols.jobs.service import job_operations
from dms_protocols.messages.bid import EnsembleRequest, NodeRequest
from dms_protocols.queries import resource_operations
from dms_protocols.rpc.access import Access
from dms_protocols.rpc.client import Client, open_client
from dms_protocols.rpc.counts import ServiceCounts
from dms_protocols.rpc.limits import ServiceLimits, Shares
from dms_protocols.rpc.operations import Caller, Operations
from dms_protocols.rpc.service import serve_stream
from dms_protocols.tokens.checks import TokenChecker
from dms_protocols.wire.frames import FrameReader, encode_frame
from dms_resources.components import (
    CPU,
    GPU,
    RAM,
    Disk,
    GPUVendor,
    HoldLimits,
    MachineResources,
    NetworkInfo,
    NetworkInterface,
    OnboardedResources,
)
from dms_resources.demands import CPUDemand, Demand, DiskDemand, GPUDemand, RAMDemand
from dms_resources.manager import ResourceManager, open_manager
from dms_resources.units import Cores
from memory_jobs import MemoryJobs


class EchoRequest(msgspec.Struct, frozen=True, tag_field="op", tag="echo"):
    """A quick operation."""

    text: str
    data: bytes = b""


class EchoAnswer(msgspec.Struct, frozen=True):
    """What the quick operation answers."""

    text: str
    peer_id: str = ""


class SlowRequest(msgspec.Struct, frozen=True, tag_field="op", tag="slow"):
    """An operation that takes its time."""

    seconds: float
    text: str = ""


class FailRequest(msgspec.Struct, frozen=True, tag_field="op", tag="fail"):
    """A quick operation that fails."""

    kind: str = "crash"


class SlowFailRequest(msgspec.Struct, frozen=True, tag_field="op", tag="slow_fail"):
    """A slow operation that fails."""

    kind: str = "crash"


class CountRequest(msgspec.Struct, frozen=True, tag_field="op", tag="count"):
    """A watch that counts up to `last`, one number every `interval` seconds."""

    last: int = 3
    interval: float = 1.0


class CountEvent(msgspec.Struct, frozen=True):
    """One number of the watch."""

    number: int


class Market:
    """Operations of all three kinds, and their calls."""

    def __init__(self) -> None:
        self.finished: list[str] = []
        self.cancelled: list[str] = []
        self.watches = 0
        self.operations = Operations()
        self.operations.quick(EchoRequest, self.echo)
        self.operations.quick(FailRequest, lambda request, caller: _fail(request.kind))
        self.operations.slow(SlowRequest, self.slow)
        self.operations.slow(SlowFailRequest, self.slow_fail)
        self.operations.watch(CountRequest, self.count)

    def echo(self, request: EchoRequest, caller: Caller) -> EchoAnswer:
        return EchoAnswer(request.text, caller.peer_id)

    async def slow(self, request: SlowRequest, caller: Caller) -> EchoAnswer:
        try:
            await trio.sleep(request.seconds)
        except trio.Cancelled:
            self.cancelled.append(request.text)
            raise
        self.finished.append(request.text)
        return EchoAnswer(request.text)

    async def slow_fail(self, request: SlowFailRequest, caller: Caller) -> EchoAnswer:
        await trio.lowlevel.checkpoint()
        return _fail(request.kind)

    @asynccontextmanager
    async def count(self, request: CountRequest, caller: Caller) -> AsyncIterator[AsyncIterator[CountEvent]]:
        self.watches += 1
        try:
            async with aclosing(self._numbers(request)) as numbers:
                yield numbers
        finally:
            self.watches -= 1

    async def _numbers(self, request: CountRequest) -> AsyncGenerator[CountEvent, None]:
        start = trio.current_time()
        for number in range(request.last + 1):
            due = start + number * request.interval
            if due < trio.current_time():
                continue
            await trio.sleep_until(due)
            yield CountEvent(number)


def _fail(kind: str) -> EchoAnswer:
    match kind:
        case "busy":
            raise BusyError("later", retry_after=2.5)
        case "group":
            raise ExceptionGroup("several", [ValueError("one"), KeyError("two")])
        case _:
            raise ZeroDivisionError("a secret of the service")


class RawPeer:
    """Writes bytes and reads frames as a client in another language would."""

    def __init__(self, stream: trio.abc.HalfCloseableStream) -> None:
        self.stream = stream
        self._frames = FrameReader(1 << 24)
        self._ready: list[dict[str, Any]] = []

    async def send(self, *messages: object) -> None:
        await self.stream.send_all(b"".join(encode_frame(cbor2.dumps(message)) for message in messages))

    async def receive(self) -> dict[str, Any] | None:
        """The next message; None at the end of the stream."""
        while not self._ready:
            data = await self.stream.receive_some()
            if not data:
                return None
            self._frames.feed(data)
            self._ready += [cbor2.loads(frame) for frame in self._frames if isinstance(frame, bytes)]
        return self._ready.pop(0)

    async def receive_rest(self) -> list[dict[str, Any]]:
        messages = []
        while (message := await self.receive()) is not None:
            messages.append(message)
        return messages


@pytest.fixture
def messages() -> Any:
    """The message types of the small service."""

    class Types:
        Echo, EchoAnswer, Slow, Fail, SlowFail = EchoRequest, EchoAnswer, SlowRequest, FailRequest, SlowFailRequest
        Count, CountEvent = CountRequest, CountEvent

    return Types


@pytest.fixture
def market() -> Market:
    """A service with a quick, a slow, a failing and a watching operation."""
    return Market()


@pytest.fixture
def new_market() -> Callable[[], Market]:
    """Makes such services."""
    return Market


@pytest.fixture
def raw_peer() -> Callable[[trio.abc.HalfCloseableStream], RawPeer]:
    """Makes a raw peer of a stream."""
    return RawPeer


@pytest.fixture
def serving(market: Market) -> Any:
    """Opens a raw peer on a service that runs while the block does; the block ends when the service has ended."""

    @asynccontextmanager
    async def open_service(
        limits: ServiceLimits | None = None,
        operations: Operations | None = None,
        pair: Callable[[], Any] = trio.testing.memory_stream_pair,
        counts: ServiceCounts | None = None,
    ) -> AsyncIterator[RawPeer]:
        ours, theirs = pair()
        served = market.operations if operations is None else operations
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve_stream, theirs, served, Caller("peer-1"), limits, counts)
            yield RawPeer(ours)
            with trio.CancelScope(shield=True):
                await trio.aclose_forcefully(ours)

    return open_service


# The three protocols on a ledger


class HandClock:
    """Wall and steady time, moved by hand."""

    boot_id = "boot"

    def __init__(self) -> None:
        self.now = 1_700_000_000.0

    def steady(self) -> float:
        return self.now

    def wall(self) -> float:
        return self.now


class Ed25519Signer:
    """Envelopes of a small form of its own, signed as libp2p signs: domain, payload type and payload together."""

    def __init__(self, seed: int) -> None:
        self._key = Ed25519PrivateKey.from_private_bytes(bytes([seed]) * 32)
        self.peer_id = self._key.public_key().public_bytes_raw().hex()

    def sign(self, domain: str, payload_type: bytes, payload: bytes) -> bytes:
        signed = cbor2.dumps([domain, payload_type, payload])
        return cbor2.dumps([bytes.fromhex(self.peer_id), payload_type, payload, self._key.sign(signed)])


class Ed25519Opener:
    """Opens the envelopes of Ed25519Signer."""

    def open(self, raw: bytes, domain: str, payload_type: bytes) -> tuple[str, bytes]:
        try:
            key, kind, payload, signature = cbor2.loads(raw)
            public = Ed25519PublicKey.from_public_bytes(key)
        except Exception:
            raise EnvelopeError("unreadable") from None
        if kind != payload_type:
            raise EnvelopeError("holds something else")
        try:
            public.verify(signature, cbor2.dumps([domain, kind, payload]))
        except InvalidSignature:
            raise EnvelopeError("changed", code="bad_signature") from None
        return key.hex(), payload


class Provider:
    """One peer's ledger and the operations on it; `connect` opens a client of any requester."""

    def __init__(self, manager: ResourceManager, clock: HandClock, nursery: trio.Nursery) -> None:
        self.manager = manager
        self.clock = clock
        self.signer = Ed25519Signer(1)
        self.opener = Ed25519Opener()
        self.terms = BidTerms()
        self.shares = Shares()
        self.tokens: TokenChecker | None = None
        self.access: Access | None = None
        self.adverts = AdvertTable(self.opener, own_id=self.signer.peer_id, clock=clock.wall)
        self.deliveries = Deliveries(self.opener, requester=self.signer.peer_id, clock=clock.wall)
        self._nursery = nursery

    @property
    def operations(self) -> Operations:
        bids = bid_operations(self.manager, self.signer, self.terms, clock=self.clock.wall, shares=self.shares)
        allocations = allocation_operations(
            self.manager, self.signer.peer_id, self.opener,
            clock=self.clock.wall, shares=self.shares, tokens=self.tokens,
        )  # fmt: skip
        exchange = advert_exchange_operations(self.adverts, lambda: None, lambda: 60.0)
        jobs = job_operations(MemoryJobs({}, self._nursery, lambda job: None))
        return resource_operations(self.manager) | bids | allocations | exchange | self.deliveries.operations | jobs

    @asynccontextmanager
    async def connect(self, peer_id: str = "local", *, local: bool = False, group: str = "") -> AsyncIterator[Client]:
        ours, theirs = trio.testing.memory_stream_pair()
        caller = Caller(peer_id, local, group=group)
        self._nursery.start_soon(partial(serve_stream, theirs, self.operations, caller, access=self.access))
        async with open_client(ours) as client:
            yield client

    def bidder(self, client: Client, requester: str, token: bytes | None = None) -> BidClient:
        provider = self.signer.peer_id
        return BidClient(
            client, self.opener, requester=requester, provider=provider, token=token, clock=self.clock.wall
        )


GIB = 2**30


def gpu(number: int, gib: int) -> GPU:
    return GPU(uuid=f"GPU-{number}", index=number, vendor=GPUVendor.NVIDIA, model="NVIDIA A100", vram=gib * GIB)


@pytest.fixture
def machine() -> MachineResources:
    """A machine with 8 cores, 32 GiB and two GPUs of 40 and 80 GiB."""
    return MachineResources(
        cpu=CPU(cores=Cores.of(8), architecture="x86_64", clock_speed=3_000_000_000),
        ram=RAM(size=32 * GIB),
        disk=Disk(size=100 * GIB),
        gpus=(gpu(0, 40), gpu(1, 80)),
        network=NetworkInfo(interfaces=(NetworkInterface(name="eth0", addresses=("10.1.2.3",)),)),
    )


@pytest.fixture
async def provider(tmp_path: Path, machine: MachineResources, nursery: trio.Nursery) -> AsyncIterator[Provider]:
    """A peer that has onboarded the whole machine and allows holds of a minute."""

    async def in_place(call: Callable[[], None]) -> None:
        # Virtual time would continue while a thread works.
        call()
        await trio.lowlevel.checkpoint()

    clock = HandClock()
    async with open_manager(tmp_path / "ledger.sqlite", machine, clock=clock, worker=in_place) as manager:
        await manager.update_onboarded_resources(
            OnboardedResources(
                cpu=machine.cpu, ram=machine.ram, disk=machine.disk, gpus=machine.gpus,
                holds=HoldLimits(max_seconds=60, share=1000),
            )
        )  # fmt: skip
        yield Provider(manager, clock, nursery)


@pytest.fixture
def requester() -> Ed25519Signer:
    """The requester."""
    return Ed25519Signer(2)


@pytest.fixture
def new_signer() -> Callable[[int], Ed25519Signer]:
    """Makes signers, each of another number."""
    return Ed25519Signer


@pytest.fixture
def stranger() -> Ed25519Signer:
    """Another peer."""
    return Ed25519Signer(3)


@pytest.fixture
def ask(provider: Provider) -> Callable[..., EnsembleRequest]:
    """Makes an ensemble request of one or more nodes."""

    def make(*nodes: NodeRequest, nonce: int = 1, deadline: float = 60, **fields: Any) -> EnsembleRequest:
        return EnsembleRequest(
            id="e1", nonce=nonce, deadline=provider.clock.now + deadline, request=nodes or (node(),), **fields
        )

    return make


def node(
    node_id: str = "n1", *, cores: float = 1, ram: int = 1, gpus: tuple[int, ...] = (), **fields: Any
) -> NodeRequest:
    return NodeRequest(
        node_id=node_id,
        resources=Demand(
            cpu=CPUDemand(cores=Cores.of(cores)),
            ram=RAMDemand(size=ram * GIB),
            disk=DiskDemand(size=GIB),
            gpus=tuple(GPUDemand(vram=gib * GIB) for gib in gpus),
        ),
        **fields,
    )


@pytest.fixture(name="node")
def node_factory() -> Callable[..., NodeRequest]:
    """Makes node requests; sizes in GiB."""
    return node
