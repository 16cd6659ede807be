"""Stream handlers that may fail.

What breaks: the library runs a stream's handler in the host's own nursery. A handler that raises ends the host, and so
does a peer that sends garbage instead of a protocol's name. A handler that returns without closing leaks its stream.
Measure: `guarded` wraps a handler. If it raises, its stream is reset and one rate-limited line is logged; when it
returns, its stream is closed. Both are shielded and have a deadline.
Upstream: https://github.com/libp2p/py-libp2p/issues/417 (a failed negotiation ends the listener),
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
    """Wrap `handler`: it raises nothing, and its stream ends within `close_timeout` seconds after it."""

    async def guarded_handler(stream: INetStream) -> None:
        use_quick_lock(stream)
        finished = False
        try:
            await handler(stream)
            finished = True
        except* Exception as group:
            # `except*`, because a nursery of the handler may raise errors together with a cancellation, which must
            # continue.
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
    # A peer that disconnects is ordinary. A defect of ours is not.
    level = logging.DEBUG if isinstance(error, BaseLibp2pError | OSError | EOFError) else logging.ERROR
    peer, protocol = stream.muxed_conn.peer_id, stream.get_protocol() or "no protocol yet"
    log_limited(logger, limiter, level, "a stream of %s (%s) failed: %s", peer, protocol, _one_line(error))


def _one_line(error: BaseException) -> str:
    return " ".join(repr(error).split())[:200]
