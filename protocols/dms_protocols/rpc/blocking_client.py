"""A client on one connected socket without an event loop, one request at a time: for short commands.

Loading trio takes most of the time of a short command. All other programs use `dms_protocols.rpc.client`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from ..errors import ConnectionLostError, DeadlineExceededError, FrameError
from ..wire.cbor import decode_map
from ..wire.conversion import from_map, to_bytes
from ..wire.envelope import encode_request, read_ok
from ..wire.frames import FrameReader, Oversize
from .client_limits import ClientLimits

if TYPE_CHECKING:
    import socket

__all__ = ["BlockingClient"]

Answer = TypeVar("Answer", bound=msgspec.Struct)


class BlockingClient:
    """A client of the service at the other end of a connected socket."""

    def __init__(self, connection: socket.socket, limits: ClientLimits | None = None) -> None:
        self._connection = connection
        self._limits = limits or ClientLimits()
        self._frames = FrameReader(self._limits.frame_bytes, self._limits.frame_bytes)
        self._last_id = -1

    def call(self, request: msgspec.Struct, answer_type: type[Answer], *, timeout: float) -> Answer:
        """Send a request and wait at most `timeout` seconds for the answer.

        Raises RemoteError if the other side refuses, DeadlineExceededError, ConnectionLostError, and MessageError,
        CBORError or FrameError if the answer is invalid.
        """
        request_id = self._send(request, deadline := time.monotonic() + timeout)
        return from_map(read_ok(self._receive(request_id, deadline)), answer_type)

    def watch(
        self, request: msgspec.Struct, event_type: type[Answer], *, timeout: float, until: float = float("inf")
    ) -> Iterator[Answer]:
        """Yield events until the other side ends them. The first event has to arrive within `timeout` seconds.

        Raises DeadlineExceededError at the time `until` (seconds of `time.monotonic`), and whatever `call` raises.
        """
        request_id = self._send(request, deadline := time.monotonic() + timeout)
        while "event" in (message := self._receive(request_id, deadline)):
            deadline = until
            yield from_map(message["event"], event_type)
        read_ok(message)

    def _send(self, request: msgspec.Struct, deadline: float) -> int:
        self._last_id += 1
        self._set_timeout(deadline)
        try:
            self._connection.sendall(encode_request(self._last_id, to_bytes(request)))
        except TimeoutError:
            raise _too_late() from None
        except OSError as error:
            raise _lost(error.strerror) from error
        return self._last_id

    def _receive(self, request_id: int, deadline: float) -> dict[str, Any]:
        while True:
            for frame in self._frames:
                if isinstance(frame, Oversize):
                    raise FrameError(f"an answer of {frame.length} bytes", code="frame_too_large")
                message = decode_map(frame, max_depth=self._limits.depth, max_items=self._limits.items)
                if message.get("id") in (request_id, None):
                    return message
            self._set_timeout(deadline)
            try:
                data = self._connection.recv(self._limits.read_bytes)
            except TimeoutError:
                raise _too_late() from None
            except OSError as error:
                raise _lost(error.strerror) from error
            if not data:
                raise _lost("the other side closed it")
            self._frames.feed(data)

    def _set_timeout(self, deadline: float) -> None:
        left = deadline - time.monotonic()
        if left <= 0:
            raise _too_late()
        self._connection.settimeout(None if left == float("inf") else left)


def _too_late() -> DeadlineExceededError:
    return DeadlineExceededError("the other side did not answer in time")


def _lost(reason: str | None) -> ConnectionLostError:
    return ConnectionLostError(f"the connection is lost: {reason}")
