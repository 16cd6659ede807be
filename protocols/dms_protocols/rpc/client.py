"""Sends the requests of any number of callers over one byte stream.

Rules:

1. Requests that are made in the same turn of the scheduler are written together. Answers may arrive in any order.
2. Every call has a deadline. A call that ends early, by its deadline or by cancellation, does not affect others. Its
   answer is discarded when it arrives.
3. When the stream ends or an answer is invalid, every waiting caller gets `connection_lost`.
4. A watch keeps the newest events for a slow reader and drops the oldest. It never delays the answers of other calls.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Generic, TypeVar

import msgspec
import trio

from dms_resources.tasks import open_background

from ..errors import ConnectionLostError, DeadlineExceededError, FrameError, ProtocolError
from ..wire.cbor import decode_map
from ..wire.conversion import from_map, to_bytes
from ..wire.envelope import MAX_ID, Encoded, add_token, add_trace, encode_request, read_ok
from ..wire.frames import FrameReader, Oversize
from .client_limits import ClientLimits
from .outbox import Outbox
from .service import CancelRequest
from .traces import current_trace

__all__ = ["Client", "open_client"]

Answer = TypeVar("Answer", bound=msgspec.Struct)
Event = TypeVar("Event", bound=msgspec.Struct)
Message = dict[str, Any]


class _Call:
    """One caller that waits for one answer."""

    __slots__ = ("answer", "done")

    def __init__(self) -> None:
        self.done = trio.Event()
        self.answer: Message | None = None

    def take(self, message: Message) -> None:
        self.answer = message
        self.done.set()

    def lose(self) -> None:
        self.done.set()


class _Watch(Generic[Event]):
    """The events of one watch, and an iterator over them."""

    def __init__(self, client: Client, event_type: type[Event], limit: int, timeout: float) -> None:
        self._client = client
        self._event_type = event_type
        self._messages: deque[Message] = deque(maxlen=limit)
        self._last: Message | None = None
        self._ended = False
        self._arrived = trio.lowlevel.ParkingLot()
        self._timeout: float = timeout

    @property
    def ended(self) -> bool:
        return self._ended

    def take(self, message: Message) -> None:
        if "event" in message:
            self._messages.append(message)
        else:
            self._last, self._ended = message, True
        self._arrived.unpark_all()

    def lose(self) -> None:
        self._ended = True
        self._arrived.unpark_all()

    def __aiter__(self) -> AsyncIterator[Event]:
        return self

    async def __anext__(self) -> Event:
        with trio.move_on_after(self._timeout) as scope:
            while not self._messages and not self._ended:
                await self._arrived.park()
        if scope.cancelled_caught:
            raise DeadlineExceededError(f"no event of the watch for {self._timeout:g} s")
        self._timeout = float("inf")
        if self._messages:
            return from_map(self._messages.popleft()["event"], self._event_type)
        if self._last is None:
            raise self._client.lost_error()
        read_ok(self._last)
        raise StopAsyncIteration


class Client:
    """A client on one stream to a service. `open_client` makes it."""

    def __init__(self, stream: trio.abc.HalfCloseableStream, limits: ClientLimits) -> None:
        self.protocol = str(getattr(stream, "protocol", ""))
        """The negotiated protocol id with its version; empty where the stream has none."""
        self._stream = stream
        self._limits = limits
        self._frames = FrameReader(limits.frame_bytes, limits.frame_bytes)
        self._outbox = Outbox(stream, high_water=limits.outgoing_bytes, write_deadline=limits.write_deadline)
        self._waiting: dict[int, _Call | _Watch[Any]] = {}
        self._freed = trio.lowlevel.ParkingLot()
        self._last_id = -1
        self._lost: str | None = None
        self._lost_event = trio.Event()

    @property
    def lost(self) -> bool:
        """Whether the stream is lost. If it is, every further call raises ConnectionLostError."""
        return self._lost is not None

    @property
    def waiting(self) -> int:
        """The number of calls and watches that wait for answers."""
        return len(self._waiting)

    async def wait_lost(self) -> None:
        """Wait until the stream is lost. May be cancelled."""
        await self._lost_event.wait()

    def lost_error(self) -> ConnectionLostError:
        """The error that says how the stream was lost."""
        return ConnectionLostError(f"the connection is lost: {self._lost}")

    # The deadline is mandatory, so that no caller waits for ever on a silent peer.
    async def call(
        self,
        request: msgspec.Struct,
        answer_type: type[Answer],
        *,
        timeout: float,  # noqa: ASYNC109
        token: bytes | None = None,
    ) -> Answer:
        """Send a request and wait at most `timeout` seconds for the answer. `token` holds the grant for the request.

        Raises RemoteError if the other side refuses, DeadlineExceededError, ConnectionLostError, FrameError if the
        request exceeds the limit, and MessageError if the answer has another form. May be cancelled at any time; then
        it is unknown whether the operation took place.
        """
        fields = _fields(request, token)
        with trio.move_on_after(timeout) as scope:
            answer = await self._exchange(fields)
        if scope.cancelled_caught:
            raise DeadlineExceededError(f"no answer within {timeout:g} s")
        return from_map(read_ok(answer), answer_type)

    @asynccontextmanager
    async def watch(
        self,
        request: msgspec.Struct,
        event_type: type[Event],
        *,
        timeout: float,  # noqa: ASYNC109
        token: bytes | None = None,
    ) -> AsyncIterator[AsyncIterator[Event]]:
        """Request a stream of events. The iterator ends when the other side ends it. `token` holds the grant for the
        request.

        The first event has to arrive within `timeout` seconds. Iterating raises what `call` raises. At the end of the
        block the watch is cancelled at the other side.
        """
        fields = _fields(request, token)
        watch = _Watch(self, event_type, self._limits.watch_events, timeout)
        with trio.move_on_after(timeout) as scope:
            await self._turn()
        if scope.cancelled_caught:
            raise DeadlineExceededError(f"no turn within {timeout:g} s")
        watch_id = self._send(fields, watch)
        try:
            yield watch
        finally:
            self._forget(watch_id)
            if not watch.ended and not self.lost:
                self._put(self._next_id(), to_bytes(CancelRequest(watch_id)))

    # Sending

    async def _exchange(self, fields: bytes) -> Message:
        await self._turn()
        call = _Call()
        call_id = self._send(fields, call)
        try:
            await call.done.wait()
        finally:
            self._forget(call_id)
        if call.answer is None:
            raise self.lost_error()
        return call.answer

    async def _turn(self) -> None:
        while self._lost is None and (self._outbox.full or len(self._waiting) >= self._limits.calls_in_flight):
            if self._outbox.full:
                await self._outbox.wait_for_space()
            else:
                await self._freed.park()
        if self._lost is not None:
            raise self.lost_error()

    def _send(self, fields: bytes, waiter: _Call | _Watch[Any]) -> int:
        request_id = self._next_id()
        self._put(request_id, fields)
        self._waiting[request_id] = waiter
        return request_id

    def _put(self, request_id: int, fields: bytes) -> None:
        frame = encode_request(request_id, fields)
        if len(frame) > self._limits.request_bytes:
            raise FrameError(
                f"the request has {len(frame)} bytes, {self._limits.request_bytes} are allowed", code="frame_too_large"
            )
        self._outbox.put(frame)

    def _next_id(self) -> int:
        self._last_id = (self._last_id + 1) & MAX_ID
        return self._last_id

    def _forget(self, request_id: int) -> None:
        del self._waiting[request_id]
        self._freed.unpark()

    # Receiving

    async def read(self) -> None:
        """Deliver answers to the waiting calls until the stream ends. `open_client` runs it."""
        try:
            while data := await self._stream.receive_some(self._limits.read_bytes):
                self._frames.feed(bytes(data))
                for frame in self._frames:
                    self._take(frame)
            self.lose("the other side closed it")
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self.lose("the stream is broken")
        except ProtocolError as error:
            self.lose(f"the other side sent an invalid answer: {error.message}")

    async def write(self) -> None:
        """Send requests until the stream fails. `open_client` runs it."""
        self.lose(await self._outbox.run())

    def _take(self, frame: bytes | Oversize) -> None:
        if isinstance(frame, Oversize):
            raise FrameError(f"an answer of {frame.length} bytes", code="frame_too_large")
        message = decode_map(frame, max_depth=self._limits.depth, max_items=self._limits.items)
        request_id = message.get("id")
        if request_id is None and len(self._waiting) == 1:
            # The other side could not read the id, and only one call waits.
            (request_id,) = self._waiting
        waiter = self._waiting.get(request_id) if type(request_id) is int else None
        if waiter is not None:
            waiter.take(message)

    def lose(self, reason: str) -> None:
        """Give up the stream: every waiting call gets ConnectionLostError with the reason."""
        if self._lost is not None:
            return
        self._lost = reason
        for waiter in self._waiting.values():
            waiter.lose()
        self._freed.unpark_all()
        self._lost_event.set()


@asynccontextmanager
async def open_client(
    stream: trio.abc.HalfCloseableStream, limits: ClientLimits | None = None
) -> AsyncIterator[Client]:
    """A client on `stream` while the block runs. At its end the stream is closed; calls that still wait are lost."""
    limits = limits or ClientLimits()
    client = Client(stream, limits)
    try:
        async with open_background(client.read, client.write):
            try:
                yield client
            finally:
                client.lose("the client was closed")
    finally:
        with trio.CancelScope(deadline=trio.current_time() + limits.close_deadline, shield=True):
            await stream.aclose()


def _fields(request: msgspec.Struct, token: bytes | None) -> Encoded:
    fields = to_bytes(request)
    if token is not None:
        fields = add_token(fields, token)
    trace = current_trace()
    return add_trace(fields, trace) if trace else fields
