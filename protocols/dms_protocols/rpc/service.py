"""Answers pipelined requests on one byte stream.

Rules:

1. All frames that have arrived are taken together. Quick operations are answered in place, and their answers leave in
   one write.
2. Slow operations and watches run in tasks. A request above the limit, or above the caller's share of this peer, is
   answered with `busy` and a time to retry. If the service stopped reading instead, the caller could not tell that from
   a network fault, and the quick requests behind would wait too.
3. The service does not read from a peer that does not take its answers. A write that stalls past its deadline drops
   the stream.
4. At the end of the input watches end, slow operations finish, their answers are sent, and the stream is closed.
5. Nothing but cancellation is raised. A refusal becomes an error with a code. Any other exception becomes `internal`
   and one line in the log.

One stream, from its first byte to its end::

    WAITING ── first bytes ──▶ SERVING ◀──────────────────────────┐
       │                          │ a frame                       │
       │ end, reset,              ├─ quick ── answer ─────────────┤
       │ idle_deadline            ├─ slow ─── task ── answer ─────┤ outbox full: reading pauses
       │                          ├─ watch ── task ── events ─────┤ share used up: `busy`
       │                          └─ invalid, refused ── error ───┘
       │                          │
       │                          │ end of input, idle_deadline,       reset, or a write
       │                          │ FrameError (answered once)         stalls: write_deadline
       │                          ▼                                         │
       │                       DRAINING: watches are cancelled,             │
       │                          │      slow operations finish             │
       │                          │ outbox flushed                          │
       ▼                          ▼                                         ▼
    CLOSING ◀─────────────────────┘                                      DROPPED: tasks are
       │ FIN sent, within close_deadline                                  cancelled, the stream
       ▼                                                                  is reset
    CLOSED
"""

from __future__ import annotations

import contextlib
import logging
import traceback
from collections.abc import AsyncIterator, Coroutine
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from typing import Any

import msgspec
import trio

from dms_resources.errors import ResourcesError

from ..errors import (
    AnswerTooLargeError,
    BusyError,
    DeadlineExceededError,
    FrameError,
    InternalError,
    MessageError,
    ProtocolError,
    UnknownOperationError,
)
from ..logs import LimitedLog
from ..wire.cbor import decode_map
from ..wire.conversion import from_map
from ..wire.envelope import Encoded, RequestID, encode_error, encode_event, encode_ok, read_id
from ..wire.error_bodies import encode_error_body
from ..wire.frames import FrameReader, Oversize
from .access import Access
from .counts import OK, UNREADABLE, ServiceCounts
from .limits import ServiceLimits
from .operations import Answer, Caller, Operation, Operations, encode_answer
from .outbox import Outbox
from .shares import LOW_WATER, PeerShare, SharesInUse
from .traces import read_trace

__all__ = ["CancelAnswer", "CancelRequest", "refuse_stream", "serve_stream"]

_log = LimitedLog(logging.getLogger(__name__))
# One line for each request except successful quick ones. The log handler bounds the lines of each peer.
_events = logging.getLogger("dms_protocols.requests")
_DONE: Encoded = b"\xa0"
# A slow operation takes about as much processor time as this many quick ones.
_SLOW_WEIGHT = 8
# A stream may be closed as idle up to this part of the deadline early. Each time a deadline is moved, an entry stays in
# trio's heap until the old deadline passes. Moving it for each byte that arrives would leave hundreds of entries for a
# slow peer.
_IDLE_PRECISION = 1 / 64
# A frame that has arrived in part counts as bytes in flight from this size on. Smaller ones are bounded by the number
# of streams, and counting them would cost every request.
_COUNTED_PART = 64 * 1024


class CancelRequest(msgspec.Struct, frozen=True, tag_field="op", tag="cancel"):
    """Ends the watch whose request had the id `target`."""

    target: RequestID


class CancelAnswer(msgspec.Struct, frozen=True):
    """Whether there was such a watch. The last answer of the watch may arrive before or after this one."""

    cancelled: bool


async def serve_stream(
    stream: trio.abc.HalfCloseableStream,
    operations: Operations,
    caller: Caller,
    limits: ServiceLimits | None = None,
    counts: ServiceCounts | None = None,
    share: PeerShare | None = None,
    access: Access | None = None,
) -> None:
    """Answer requests until the peer ends its side, is idle too long or sends an invalid frame; then close the stream.

    Requests are counted in `counts` and against the caller's `share`. `access` holds the rules (None: anyone may
    request everything). Raises nothing but cancellation, which cancels the operations and closes the stream at once.
    """
    service = _Service(
        stream,
        operations,
        caller,
        limits or ServiceLimits(),
        counts or ServiceCounts(),
        share or SharesInUse().alone(),
        access,
    )
    await service.run()


async def refuse_stream(
    stream: trio.abc.HalfCloseableStream, error: ProtocolError, limits: ServiceLimits | None = None
) -> None:
    """Send one error without an id, and close the stream. Raises nothing but cancellation."""
    with trio.move_on_after((limits or ServiceLimits()).close_deadline):
        with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            await stream.send_all(encode_error(None, encode_error_body(error)))
        await stream.aclose()
    await trio.aclose_forcefully(stream)


class _Service:
    def __init__(
        self,
        stream: trio.abc.HalfCloseableStream,
        operations: Operations,
        caller: Caller,
        limits: ServiceLimits,
        counts: ServiceCounts,
        share: PeerShare,
        access: Access | None,
    ) -> None:
        self._stream = stream
        self._operations = operations
        self._caller = self._asking = caller
        self._logs = _events.isEnabledFor(logging.INFO)
        self._limits = limits
        self._counts = counts
        self._share = share
        self._access = access
        # The frame that is being handled, and its operation as soon as it is known.
        self._frame = b""
        self._operation = UNREADABLE
        self._frames = FrameReader(limits.frame_bytes, limits.skip_bytes)
        self._outbox = Outbox(
            stream, high_water=limits.outgoing_bytes, write_deadline=limits.write_deadline, meter=share.hold
        )
        self._handlers: trio.Nursery
        self._slow = 0
        self._part = 0
        self._watches: dict[int, trio.CancelScope] = {}
        self._idle = trio.CancelScope()
        self._active_at = trio.current_time()

    async def run(self) -> None:
        self._counts.streams += 1
        try:
            # Half of the memory of a stream is allocated when its first bytes arrive, because many streams may never
            # send any.
            if first := await self._receive_first():
                await self._serve(first)
        finally:
            self._counts.streams -= 1
            self._share.hold(-self._part)
            self._outbox.abandon()
            # This has no effect if the stream is closed already.
            await trio.aclose_forcefully(self._stream)

    async def _serve(self, first: bytes) -> None:
        async with trio.open_nursery() as writing:
            writing.start_soon(self._write, writing.cancel_scope)
            async with trio.open_nursery() as self._handlers:
                await self._read(first)
                self._end_watches()
            await self._outbox.flushed()
            await self._close()
            writing.cancel_scope.cancel()

    async def _close(self) -> None:
        with trio.move_on_after(self._limits.close_deadline):
            await self._stream.aclose()

    async def _write(self, everything: trio.CancelScope) -> None:
        await self._outbox.run()
        everything.cancel()

    # Reading

    async def _receive_first(self) -> bytes:
        """The first bytes; none if the stream ends, breaks, or is idle for too long."""
        with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            with trio.move_on_after(self._limits.idle_deadline):
                if first := bytes(await self._stream.receive_some(self._limits.read_bytes)):
                    return first
            await self._close()
        return b""

    async def _read(self, data: bytes) -> None:
        """Handle requests until the stream ends, breaks, or is idle for too long."""
        with self._idle:
            while data:
                self._watch_idleness()
                self._frames.feed(data)
                try:
                    await self._take_frames()
                    self._count_part()
                except (FrameError, BusyError) as error:
                    self._refuse(None, error, UNREADABLE, self._caller)
                    return
                self._watch_idleness()
                data = await self._receive()

    async def _receive(self) -> bytes:
        try:
            return bytes(await self._stream.receive_some(self._limits.read_bytes))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self._handlers.cancel_scope.cancel()
        return b""

    def _watch_idleness(self) -> None:
        longest = self._limits.idle_deadline
        end = float("inf") if self._slow or self._watches else self._active_at + longest
        if end < self._idle.deadline or end > self._idle.deadline + longest * _IDLE_PRECISION:
            self._idle.deadline = end

    async def _take_frames(self) -> None:
        share, outbox, high_water = self._share, self._outbox, self._limits.outgoing_bytes
        share.now = trio.current_time()
        whole = False
        for frame in self._frames:
            if share.turn <= 0:
                await share.rest(self._limits.batch_frames)
                self._stay_active()
            share.turn -= 1
            whole = True
            self._take(frame)
            if outbox.size >= high_water or (share.limited and share.crowded and outbox.size > LOW_WATER):
                await (outbox.flushed() if share.crowded else outbox.wait_for_space())
                self._stay_active()
        if whole:
            # Only complete requests count as activity: one byte a second does not keep a stream open.
            self._active_at = share.now

    def _count_part(self) -> None:
        part = self._frames.buffered
        if part < _COUNTED_PART:
            part = 0
        if part > self._part:
            # A peer that has used up its bytes does not keep more in unfinished frames.
            self._share.admit_bytes()
        if part != self._part:
            self._share.hold(part - self._part)
            self._part = part

    def _stay_active(self) -> None:
        # A peer that waits for its turn, reads its answers, or has an operation that has just ended is not idle.
        self._active_at = self._share.now = trio.current_time()
        self._watch_idleness()

    def _take(self, frame: bytes | Oversize) -> None:
        request_id: int | None = None
        self._operation, self._asking = UNREADABLE, self._caller
        try:
            if isinstance(frame, Oversize):
                raise FrameError(
                    f"a frame of {frame.length} bytes, {self._limits.frame_bytes} are allowed", code="frame_too_large"
                )
            self._frame = frame
            message = decode_map(frame, max_depth=self._limits.depth, max_items=self._limits.items)
            request_id = read_id(message)
            self._begin(request_id, message)
        except Exception as error:
            self._refuse(request_id, error, self._operation, self._asking)

    # Answering

    def _begin(self, request_id: int, message: dict[str, Any]) -> None:
        name = message.get("op")
        operation = self._operations.get(name) if type(name) is str else None
        if operation is None:
            self._begin_other(request_id, name, message)
            return
        self._operation = operation.name
        if self._share.limited:
            self._share.admit()
        if operation.kind != "quick":
            self._share.weigh(_SLOW_WEIGHT)
            if operation.rate == "bids":
                self._share.admit_bid()
        caller = self._caller
        if self._logs and (trace := read_trace(message)):
            caller = replace(caller, trace=trace)
        self._asking = caller
        if operation.kind == "quick" and "token" not in message:
            self._answer(request_id, operation, message, caller)
            return
        # The time also counts if the request is refused in the end.
        with self._share.weighing():
            self._answer(request_id, operation, message, caller)

    def _answer(self, request_id: int, operation: Operation, message: dict[str, Any], caller: Caller) -> None:
        if self._access is not None:
            caller = self._access.admit(operation.name, caller, message)
        request = from_map(message, operation.request_type)
        if operation.kind == "watch":
            return self._begin_watch(request_id, operation, request, caller)
        answer = operation.handler(request, caller)
        if operation.kind == "slow" and isinstance(answer, Coroutine):
            return self._begin_slow(request_id, operation, answer, caller)
        return self._put_answer(request_id, operation, answer, caller)

    def _begin_other(self, request_id: int, name: object, message: dict[str, Any]) -> None:
        if type(name) is not str:
            raise MessageError("op: the name of an operation is expected", path="op")
        if name != "cancel":
            if self._share.limited:
                self._share.admit()
            raise UnknownOperationError(f"no operation {name[:64]!r} here")
        self._operation = name
        scope = self._watches.get(from_map(message, CancelRequest).target)
        if scope is not None:
            scope.cancel()
        self._put(request_id, encode_ok(request_id, encode_answer(CancelAnswer(scope is not None))))
        self._counts.requests[name, OK] += 1

    def _begin_slow(
        self, request_id: int, operation: Operation, work: Coroutine[Any, Any, Answer], caller: Caller
    ) -> None:
        size = len(self._frame)
        try:
            if self._slow >= self._limits.operations_in_flight:
                raise BusyError(f"{self._slow} operations run already", retry_after=self._limits.busy_retry_after)
            self._share.begin_operation(size)
        except BusyError:
            work.close()
            raise
        self._slow += 1
        self._handlers.start_soon(self._run_slow, request_id, operation, work, size, caller)

    def _begin_watch(self, request_id: int, operation: Operation, request: msgspec.Struct, caller: Caller) -> None:
        if request_id in self._watches:
            raise MessageError(f"id: a watch with id {request_id} runs already", path="id")
        if len(self._watches) >= self._limits.watches:
            raise BusyError(f"{len(self._watches)} watches run already", retry_after=self._limits.busy_retry_after)
        watch, size = operation.handler(request, caller), len(self._frame)
        self._share.begin_operation(size)
        scope = self._watches[request_id] = trio.CancelScope()
        self._handlers.start_soon(self._run_watch, request_id, operation, watch, scope, size, caller)

    async def _run_slow(
        self, request_id: int, operation: Operation, work: Coroutine[Any, Any, Answer], size: int, caller: Caller
    ) -> None:
        try:
            with trio.move_on_after(self._limits.operation_deadline) as scope:
                # Operations begin in turns, as requests do. Many that began at once would delay all other peers.
                answer = await self._share.metered(self._in_turn(work))
            if scope.cancelled_caught:
                raise DeadlineExceededError(f"{operation.name} took longer than {self._limits.operation_deadline:g} s")
            await self._outbox.wait_for_space()
            self._put_answer(request_id, operation, answer, caller)
        except Exception as error:
            await self._outbox.wait_for_space()
            self._refuse(request_id, error, operation.name, caller)
        finally:
            self._slow -= 1
            self._share.end_operation(size)
            self._stay_active()

    async def _in_turn(self, work: Coroutine[Any, Any, Answer]) -> Answer:
        try:
            await self._share.rest(self._limits.batch_frames)
        except BaseException:
            work.close()
            raise
        return await work

    async def _run_watch(
        self,
        request_id: int,
        operation: Operation,
        watch: AbstractAsyncContextManager[AsyncIterator[Answer]],
        scope: trio.CancelScope,
        size: int,
        caller: Caller,
    ) -> None:
        try:
            with scope:
                async with watch as events:
                    async for event in events:
                        with self._share.weighing():
                            self._put(request_id, encode_event(request_id, encode_answer(event)))
                        # The next event is made only when this one is written, so that a slow reader gets the newest
                        # state.
                        await self._outbox.flushed()
                        await self._share.rest(self._limits.batch_frames)
            self._put_answer(request_id, operation, _DONE, caller)
        except Exception as error:
            self._refuse(request_id, error, operation.name, caller)
        finally:
            del self._watches[request_id]
            self._share.end_operation(size)
            self._stay_active()

    def _end_watches(self) -> None:
        for scope in self._watches.values():
            scope.cancel()

    def _put_answer(self, request_id: int, operation: Operation, answer: Answer, caller: Caller) -> None:
        self._put(request_id, encode_ok(request_id, encode_answer(answer)))
        self._counts.requests[operation.name, OK] += 1
        # There may be thousands of quick requests in a second, and they change nothing.
        if self._logs and operation.kind != "quick":
            _events.info("answered", extra=_fields(request_id, operation.name, OK, caller))

    def _put(self, request_id: int, frame: bytes) -> None:
        if len(frame) > self._limits.answer_bytes:
            raise AnswerTooLargeError(f"the answer has {len(frame)} bytes, {self._limits.answer_bytes} are allowed")
        self._outbox.put(frame)

    def _refuse(self, request_id: int | None, error: Exception, operation: str, caller: Caller) -> None:
        if not isinstance(error, ProtocolError | ResourcesError):
            self._report(request_id, error, operation)
            error = InternalError("the service failed at this request; its log says more")
        self._counts.requests[operation, error.code] += 1
        if self._logs:
            _events.info("refused", extra=_fields(request_id, operation, error.code, caller))
        self._outbox.put(encode_error(request_id, encode_error_body(error)))

    def _report(self, request_id: int | None, error: Exception, operation: str) -> None:
        frames = traceback.extract_tb(error.__traceback__)
        place = f"{frames[-1].filename}:{frames[-1].lineno}" if frames else "unknown"
        _log.error(
            "request failed: peer=%s id=%s op=%s at=%s error=%.300r",
            self._caller.peer_id, request_id, operation, place, error,
        )  # fmt: skip


def _fields(request_id: int | None, operation: str, outcome: str, caller: Caller) -> dict[str, Any]:
    fields = {"peer": caller.peer_id, "op": operation, "outcome": outcome, "id": request_id, "trace": caller.trace}
    return {"fields": {key: value for key, value in fields.items() if value not in (None, "")}}
