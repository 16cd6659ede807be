"""Tunnels of `/dms/tunnel/1.0.0`: a TCP connection to a port of a job, carried by one stream.

Rules:

1. The first frame names the lease and the port. Only the holder of the lease may connect, and only to ports that the
   job document names. The answer is one frame; nothing but bytes of the connection follow.
2. The end of one direction is passed on, and the other direction goes on. When one side breaks, the other is reset: cut
   data never looks whole.
3. A tunnel whose one direction has ended, and on whose other nothing moves for `half_open_idle` seconds, is reset. A
   tunnel that is open both ways may be silent for as long as its job runs.
4. There is no queue: a piece is read when the one before was taken. A slow reader slows the sender down.
5. Tunnels are counted for each lease and for each peer, and one too many is refused with `busy`. All bytes are counted.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Awaitable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from typing import Final, Protocol

import trio

from dms_resources.errors import ResourcesError

from ..errors import (
    BusyError,
    ConnectionLostError,
    DeadlineExceededError,
    InternalError,
    JobError,
    ProtocolError,
    UnknownOperationError,
)
from ..logs import LimitedLog
from ..messages.tunnel import TunnelAnswer, TunnelRequest
from ..rpc.access import Access
from ..rpc.operations import Caller
from ..wire.cbor import decode_map
from ..wire.conversion import from_map, to_bytes
from ..wire.envelope import add_token, encode_error, encode_ok, encode_request, read_id, read_ok
from ..wire.error_bodies import encode_error_body
from ..wire.frames import FrameReader
from .joined_streams import BROKEN, HALF_OPEN_IDLE, PIECE, ContinuedStream, break_stream, join_streams

__all__ = ["TunnelConnect", "TunnelLimits", "TunnelsInUse", "open_tunnel", "serve_tunnel"]

_log = LimitedLog(logging.getLogger(__name__))
_RETRY_SECONDS: Final = 1.0
_CLOSE_DEADLINE: Final = 2.0


@dataclass(frozen=True, slots=True)
class TunnelLimits:
    """The limits of tunnels. Sizes in bytes, times in seconds."""

    frame_bytes: int = 16 * 1024
    """The largest first frame, with its token."""
    depth: int = 4
    """The depth of containers within the map of the first frame."""
    items: int = 64
    """Values in the first frame, at every depth together."""
    request_deadline: float = 10.0
    """The longest that the first frame may take to arrive."""
    connect_deadline: float = 10.0
    """The longest that connecting to the job may take."""
    per_lease: int = 32
    """Tunnels to one lease at the same time."""
    per_peer: int = 40
    """Tunnels of one peer at the same time: fewer than the streams that it may have, so that its requests pass."""
    half_open_idle: float = HALF_OPEN_IDLE
    """A tunnel whose one direction has ended is reset when nothing moves in the other for this time."""


class TunnelConnect(Protocol):
    """Connects to a port of a job, as `JobService.connect` does."""

    def __call__(self, lease_id: str, *, holder: str, port: int) -> Awaitable[trio.abc.HalfCloseableStream]:
        """The connection. Raises JobError, or LeaseError for a lease of another holder."""
        ...


class TunnelsInUse:
    """The open tunnels of a provider, and the bytes that they have carried."""

    def __init__(self, limits: TunnelLimits | None = None) -> None:
        self.limits = limits or TunnelLimits()
        self.received = 0
        """Bytes from requesters to jobs, since the start."""
        self.sent = 0
        """Bytes from jobs to requesters, since the start."""
        self._by_lease: Counter[tuple[str, str]] = Counter()
        self._by_peer: Counter[str] = Counter()

    @property
    def open(self) -> int:
        """How many tunnels are open, or are being opened."""
        return self._by_peer.total()

    @contextmanager
    def counted(self, lease_id: str, holder: str) -> Iterator[None]:
        """Counts a tunnel while the block runs. Raises BusyError if it is one too many."""
        # By peer and lease together: the tunnels that other peers try to open to a lease do not count against it.
        key = (holder, lease_id)
        if self._by_lease[key] >= self.limits.per_lease:
            raise BusyError(f"{self.limits.per_lease} tunnels to this lease are open", retry_after=_RETRY_SECONDS)
        if self._by_peer[holder] >= self.limits.per_peer:
            raise BusyError(f"{self.limits.per_peer} tunnels of this peer are open", retry_after=_RETRY_SECONDS)
        self._by_lease[key] += 1
        self._by_peer[holder] += 1
        try:
            yield
        finally:
            self._by_lease[key] -= 1
            self._by_peer[holder] -= 1
            if not self._by_lease[key]:
                del self._by_lease[key]
            if not self._by_peer[holder]:
                del self._by_peer[holder]

    def count_received(self, size: int) -> None:
        """Counts bytes that go to a job."""
        self.received += size

    def count_sent(self, size: int) -> None:
        """Counts bytes that come from a job."""
        self.sent += size


async def serve_tunnel(
    stream: trio.abc.HalfCloseableStream,
    caller: Caller,
    connect: TunnelConnect,
    tunnels: TunnelsInUse,
    *,
    access: Access | None = None,
) -> str:
    """Serves one stream: opens the connection that it requests, and copies until both directions have ended.

    The stream is closed, or reset, when this returns. Returns `ok`, or the code of the error that was answered. Raises
    nothing but cancellation, with which both sides are reset.
    """
    request_id: int | None = None
    try:
        try:
            frame, rest = await _first_frame(stream, tunnels.limits)
            message = decode_map(frame, max_depth=tunnels.limits.depth, max_items=tunnels.limits.items)
            request_id = read_id(message)
            request = _request(message, caller, access)
            with tunnels.counted(request.lease_id, caller.peer_id):
                job = await _connect(connect, request, caller, tunnels.limits.connect_deadline)
                await _carry(stream, job, request_id, rest, tunnels)
                return "ok"
        except (ProtocolError, ResourcesError) as error:
            await _refuse(stream, request_id, error)
            return error.code
    except BROKEN:
        return "connection_lost"
    finally:
        # Costs nothing if it is closed already.
        await trio.aclose_forcefully(stream)


async def open_tunnel(
    stream: trio.abc.HalfCloseableStream,
    lease_id: str,
    port: int,
    *,
    token: bytes | None = None,
    timeout: float = 20.0,  # noqa: ASYNC109
) -> trio.abc.HalfCloseableStream:
    """Requests a tunnel on a fresh stream of `/dms/tunnel`, and returns the connection to the port.

    Raises RemoteError with the provider's refusal, DeadlineExceededError, ConnectionLostError and FrameError; the
    stream is reset then. May be cancelled, with the same effect.
    """
    fields = to_bytes(TunnelRequest(lease_id=lease_id, port=port))
    if token is not None:
        fields = add_token(fields, token)
    opened = False
    limits = TunnelLimits(request_deadline=timeout)
    try:
        with trio.move_on_after(timeout):
            await stream.send_all(encode_request(0, fields))
            frame, rest = await _first_frame(stream, limits)
            read_ok(decode_map(frame, max_depth=limits.depth, max_items=limits.items))
            opened = True
            return ContinuedStream(stream, rest) if rest else stream
        raise DeadlineExceededError(f"no answer within {timeout:g} s")
    except BROKEN as error:
        raise ConnectionLostError("the stream ended before the answer") from error
    finally:
        if not opened:
            await break_stream(stream)


async def _first_frame(stream: trio.abc.ReceiveStream, limits: TunnelLimits) -> tuple[bytes, bytes]:
    """The first frame of a stream, and what arrived behind it."""
    frames = FrameReader(limits.frame_bytes, limits.frame_bytes)
    with trio.move_on_after(limits.request_deadline):
        while data := await stream.receive_some(PIECE):
            frames.feed(bytes(data))
            with closing(iter(frames)) as arrived:
                # A frame above the limit raises FrameError here.
                frame = next(arrived, None)
            if isinstance(frame, bytes):
                return frame, frames.take_rest()
        raise ConnectionLostError("the stream ended before its first frame")
    raise DeadlineExceededError(f"no frame within {limits.request_deadline:g} s")


def _request(message: dict[str, object], caller: Caller, access: Access | None) -> TunnelRequest:
    if message.get("op") != "tunnel":
        raise UnknownOperationError("a stream of this protocol begins with a request of the operation tunnel")
    if access is not None:
        access.admit("tunnel", caller, message)
    return from_map(message, TunnelRequest)


async def _connect(
    connect: TunnelConnect, request: TunnelRequest, caller: Caller, deadline: float
) -> trio.abc.HalfCloseableStream:
    with trio.move_on_after(deadline):
        try:
            return await connect(request.lease_id, holder=caller.peer_id, port=request.port)
        except (ProtocolError, ResourcesError):
            raise
        except Exception as error:
            # What connects may be an executor of the owner's own; its errors do not leave this stream.
            _log.error(
                "connecting a tunnel failed: peer=%s lease=%s error=%.300r", caller.peer_id, request.lease_id, error
            )
            raise InternalError("connecting to the job failed; the log says more") from error
    raise JobError(f"the job took no connection within {deadline:g} s", code="port_closed")


async def _carry(
    stream: trio.abc.HalfCloseableStream,
    job: trio.abc.HalfCloseableStream,
    request_id: int,
    rest: bytes,
    tunnels: TunnelsInUse,
) -> None:
    try:
        await stream.send_all(encode_ok(request_id, to_bytes(TunnelAnswer())))
    except BaseException:
        await break_stream(job)
        raise
    await join_streams(
        ContinuedStream(stream, rest) if rest else stream,
        job,
        half_open_idle=tunnels.limits.half_open_idle,
        to_right=tunnels.count_received,
        to_left=tunnels.count_sent,
    )


async def _refuse(
    stream: trio.abc.HalfCloseableStream, request_id: int | None, error: ProtocolError | ResourcesError
) -> None:
    if isinstance(error, ConnectionLostError):
        return
    with trio.move_on_after(_CLOSE_DEADLINE), suppress(*BROKEN):
        await stream.send_all(encode_error(request_id, encode_error_body(error)))
        await stream.aclose()
