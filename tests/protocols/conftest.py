"""Streams, a small service and a caller that speaks raw frames."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from typing import Any

import cbor2
import msgspec
import pytest
import trio
import trio.testing

from dms_protocols.errors import BusyError
from dms_protocols.frames import FrameReader, encode_frame
from dms_protocols.limits import ServiceLimits
from dms_protocols.operations import Caller, Operations
from dms_protocols.service import serve_stream


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
    """Operations of all three kinds, and what became of them."""

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
    ) -> AsyncIterator[RawPeer]:
        ours, theirs = pair()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(
                serve_stream, theirs, market.operations if operations is None else operations, Caller("peer-1"), limits
            )
            yield RawPeer(ours)
            with trio.CancelScope(shield=True):
                await trio.aclose_forcefully(ours)

    return open_service
