"""Stream handlers that can fail without harm.

What breaks: the library runs a stream's handler in the host's own nursery. A handler that raises, or a peer that sends
garbage where a protocol's name should be, ends the host; a handler that returns without closing leaves the stream open
for good.
Measure: `guarded` wraps a handler; whatever it raises ends in one rate-limited line and a reset of its stream, and its
return closes the stream. Both are shielded and have a deadline.
Upstream: https://github.com/libp2p/py-libp2p/issues/417 (a failed negotiation takes the listener down),
https://github.com/libp2p/py-libp2p/issues/1120 (the same with pubsub's streams).
"""

from __future__ import annotations

import logging

from libp2p.abc import INetStream
from libp2p.custom_types import StreamHandlerFn
from libp2p.exceptions import BaseLibp2pError

from ..logs import RateLimiter, log_limited
from .locks import use_quick_lock
from .stream import close_stream, reset_stream

__all__ = ["guarded"]

logger = logging.getLogger(__name__)
limiter = RateLimiter()


def guarded(handler: StreamHandlerFn, close_timeout: float) -> StreamHandlerFn:
    """`handler` in a cage: no exception leaves it, and its stream ends when it does, within `close_timeout` seconds."""

    async def guarded_handler(stream: INetStream) -> None:
        use_quick_lock(stream)
        finished = False
        try:
            await handler(stream)
            finished = True
        except* Exception as group:
            # `except*`, because a handler's nursery may raise its errors together with a cancellation, which goes on.
            _report(stream, group)
        finally:
            if finished:
                await close_stream(stream, close_timeout)
            else:
                await reset_stream(stream, close_timeout)

    return guarded_handler


def _report(stream: INetStream, group: BaseExceptionGroup[Exception]) -> None:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    # A peer that hangs up is no news; an error of ours is.
    level = logging.DEBUG if isinstance(error, BaseLibp2pError | OSError | EOFError) else logging.ERROR
    peer, protocol = stream.muxed_conn.peer_id, stream.get_protocol() or "no protocol yet"
    log_limited(logger, limiter, level, "a stream of %s (%s) failed: %s", peer, protocol, _one_line(error))


def _one_line(error: BaseException) -> str:
    return " ".join(repr(error).split())[:200]
