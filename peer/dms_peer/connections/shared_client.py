"""One client on one stream, shared by all callers that query this peer over this protocol."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

import trio

from dms_host.errors import DialError
from dms_host.streams.stream import PeerStream
from dms_protocols.rpc.client import Client, open_client
from dms_protocols.rpc.client_limits import ClientLimits
from dms_resources.tasks import open_background

__all__ = ["SharedClient"]

logger = logging.getLogger(__name__)


class SharedClient:
    """Opens its stream in a separate task, so that the first caller may be cancelled without affecting later ones.

    While it opens, it ends if no caller waits for it any more. Once open, it ends if no caller has used it for `idle`
    seconds, if its stream is lost, or on `close`.
    """

    def __init__(self, idle: float, limits: ClientLimits | None = None) -> None:
        self._idle = idle
        self._limits = limits
        self._users = 0
        self._changed = trio.Event()
        self._settled = trio.Event()
        self._scope = trio.CancelScope()
        self._client: Client | None = None
        self._ending = False
        self._failure: DialError | None = None
        self.used_at = trio.current_time()

    @property
    def usable(self) -> bool:
        """Whether a caller may join it: it is opening or open, and its stream is not known to have ended."""
        opening = not self._settled.is_set()
        open_ = self._client is not None and not self._client.lost
        return not self._ending and (opening or open_)

    @property
    def unused(self) -> bool:
        """Whether no caller uses it or waits for it."""
        return self._users == 0

    @contextmanager
    def used(self) -> Iterator[None]:
        """While the block runs, the client is not idle."""
        self._users += 1
        try:
            yield
        finally:
            self._users -= 1
            self.used_at = trio.current_time()
            self._changed.set()
            if not self._users and not self._settled.is_set():
                self.close()

    async def opened(self) -> Client:
        """The client, when it is open. Raises DialError."""
        await self._settled.wait()
        if self._client is not None:
            return self._client
        raise _copy(self._failure) if self._failure is not None else _closed()

    def close(self) -> None:
        """End it. For its users the stream is lost. Never blocks."""
        self._ending = True
        self._scope.cancel()

    async def run(self, open_stream: Callable[[], Awaitable[PeerStream]]) -> None:
        """Open the stream and keep it for as long as it is used. Raises nothing but cancellation."""
        try:
            with self._scope:
                stream = await open_stream()
                async with open_client(stream, self._limits) as client:
                    self._client = client
                    self._settled.set()
                    await self._wait_for_end(client)
        except DialError as error:
            self._failure = error
        except Exception as error:
            # A defect here or in the library must not end the connections of all other callers.
            logger.exception("opening a client failed")
            self._failure = _unexpected(error)
        finally:
            self._ending = True
            self._settled.set()

    async def _wait_for_end(self, client: Client) -> None:
        async with open_background(self._close_unused):
            await client.wait_lost()

    async def _close_unused(self) -> None:
        while True:
            self._changed = trio.Event()
            with trio.move_on_at(self.used_at + self._idle if self.unused else float("inf")):
                await self._changed.wait()
                continue
            # Callers that come later get another client.
            self.close()
            return


def _copy(error: DialError) -> DialError:
    # A new exception for each task: one that is raised in several tasks would collect all their tracebacks.
    return DialError(
        error.message, code=error.code, address=error.address, hint=error.hint, retry_after=error.retry_after
    )


def _unexpected(error: Exception) -> DialError:
    return DialError(
        f"opening a stream failed: {type(error).__name__}", code="stream_failed", address="", hint="see the log"
    )


def _closed() -> DialError:
    return DialError("the connections of this peer were closed", code="closed", address="", hint="start it again")
