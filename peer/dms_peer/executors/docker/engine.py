"""The client of an engine: the Docker Engine API over a Unix socket.

Rules:

1. Every answer has a status; callers decide what it means. No answer at all is ExecutorError `unavailable`: the request
   may have been carried out all the same, so callers look up what is there.
2. At most four short requests run at a time, each with a deadline. An answer without an end (output, events, pulls,
   waiting) has a connection of its own, and no deadline before its head: an engine sends that with the first byte.
3. The version is the highest that both sides speak.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import trio

from ..executor import ExecutorError

if TYPE_CHECKING:
    import httpx

__all__ = ["Engine", "EngineAnswer", "open_engine"]

_OLDEST: Final = (1, 40)
_NEWEST: Final = (1, 47)
_SHORT_REQUESTS: Final = 4
_SECONDS: Final = 30.0
_CONNECT_SECONDS: Final = 10.0
_LARGEST_ANSWER: Final = 32 * 2**20
_LONGEST_MESSAGE: Final = 400


class EngineAnswer(NamedTuple):
    """The status of an answer and its JSON, None where it has none."""

    status: int
    content: Any

    @property
    def succeeded(self) -> bool:
        """Whether the engine did what it was asked for, or had done it before (304)."""
        return 200 <= self.status < 300 or self.status == 304

    @property
    def message(self) -> str:
        """What the engine says about a failure, for people; its form differs between engines and versions."""
        content = self.content if isinstance(self.content, dict) else {}
        said = content.get("message") or content.get("cause") or f"status {self.status}"
        return str(said)[:_LONGEST_MESSAGE]


class Engine:
    """An engine on a socket; made by `open_engine`. Every method may be cancelled."""

    def __init__(self, socket: str, client: httpx.AsyncClient) -> None:
        self.socket = socket
        self._client = client
        self._short = trio.CapacityLimiter(_SHORT_REQUESTS)
        self._version = ""

    async def call(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        content: Any = None,
        seconds: float = _SECONDS,
    ) -> EngineAnswer:
        """A short request. Raises ExecutorError `unavailable` where no answer comes within `seconds`."""
        prefix = await self._prefix()
        async with self._short:
            return await self._send(method, prefix + path, query, content, seconds)

    async def look(self, path: str, *, method: str = "GET", content: Any = None) -> EngineAnswer:
        """A short request whose path has its version or needs none, such as that for the versions themselves."""
        async with self._short:
            return await self._send(method, path, None, content, _SECONDS)

    async def version(self) -> str:
        """The version of the API that is spoken, such as "1.41".

        Raises ExecutorError `refused` where there is none that both sides speak.
        """
        if not self._version:
            answer = await self.look("/version")
            content = answer.content if isinstance(answer.content, dict) else {}
            newest, oldest = (_parsed(content.get(name)) for name in ("ApiVersion", "MinAPIVersion"))
            chosen = min(_NEWEST, newest)
            if not answer.succeeded or chosen < max(_OLDEST, oldest):
                raise ExecutorError(
                    f"{self.socket} speaks the versions {_text(oldest)} to {_text(newest)} of the API, "
                    f"and this peer {_text(_OLDEST)} to {_text(_NEWEST)}",
                    code="refused",
                )
            self._version = _text(chosen)
        return self._version

    async def read_stream(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None,
        take: Callable[[int, bytes], Awaitable[bool]],
    ) -> None:
        """A request whose answer comes bit by bit: `take` gets its status and each part, and says whether to go on.

        Raises ExecutorError `unavailable` where the connection cannot be made or breaks, and what `take` raises.
        """
        import httpx

        prefix = await self._prefix()
        timeout = httpx.Timeout(None, connect=_CONNECT_SECONDS)
        try:
            async with (
                _client(self.socket, timeout) as client,
                client.stream(method, f"http://engine{prefix}{path}", params=query) as response,
            ):
                await _read_parts(response, take)
        except (httpx.HTTPError, OSError) as error:
            raise self._unavailable(error) from error

    async def _prefix(self) -> str:
        return f"/v{await self.version()}"

    async def _send(
        self, method: str, path: str, query: Mapping[str, str] | None, content: Any, seconds: float
    ) -> EngineAnswer:
        import httpx

        body = bytearray()

        async def take(status: int, part: bytes) -> bool:
            body.extend(part)
            return len(body) <= _LARGEST_ANSWER

        try:
            with trio.fail_after(seconds):
                async with self._client.stream(method, f"http://engine{path}", params=query, json=content) as response:
                    await _read_parts(response, take)
        except (httpx.HTTPError, OSError, trio.TooSlowError) as error:
            # It may be another engine when it comes back.
            self._version = ""
            raise self._unavailable(error) from error
        try:
            return EngineAnswer(response.status_code, json.loads(body) if body.strip() else None)
        except (ValueError, RecursionError):
            return EngineAnswer(response.status_code, None)

    def _unavailable(self, error: Exception) -> ExecutorError:
        reason = "no answer in time" if isinstance(error, trio.TooSlowError) else str(error) or type(error).__name__
        return ExecutorError(
            f"the engine at {self.socket} does not answer: {reason[:_LONGEST_MESSAGE]}",
            code="unavailable",
            hint="start it, and let the peer's user open its socket",
        )


async def _read_parts(response: httpx.Response, take: Callable[[int, bytes], Awaitable[bool]]) -> None:
    """Reads an answer. Left early, the generators of httpx would stay unfinished; cancelled, they finish."""
    problem: BaseException | None = None
    with trio.CancelScope() as scope:
        async for part in response.aiter_raw():
            if scope.cancel_called:
                continue
            try:
                goes_on = await take(response.status_code, part)
            except BaseException as error:
                problem, goes_on = error, False
            if not goes_on:
                scope.cancel()
    if problem is not None:
        raise problem


@asynccontextmanager
async def open_engine(socket: str) -> AsyncIterator[Engine]:
    """Opens a client; nothing is asked yet. Its connections are closed when the block ends."""
    async with _client(socket, None) as client:
        yield Engine(socket, client)


def _client(socket: str, timeout: Any) -> httpx.AsyncClient:
    import httpx

    limits = httpx.Limits(max_connections=_SHORT_REQUESTS, max_keepalive_connections=_SHORT_REQUESTS)
    # Neither .netrc nor proxies of the environment have a say here.
    return httpx.AsyncClient(
        transport=httpx.AsyncHTTPTransport(uds=socket, limits=limits), timeout=timeout, trust_env=False
    )


def _parsed(text: object) -> tuple[int, int]:
    major, dot, minor = str(text).partition(".")
    return (int(major), int(minor)) if dot and major.isdecimal() and minor.isdecimal() else (0, 0)


def _text(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"
