"""A peer that is its own requester: its requests to itself use a socket pair inside the process.

libp2p cannot dial itself, but an orchestrator that offers capacity needs to use its own capacity like that of any other
peer.
"""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import TypeAlias

import trio

from dms_protocols.messages.bid import EnsembleRequest
from dms_protocols.protocol_ids import versions_of
from dms_protocols.rpc.client import Client, open_client
from dms_resources.tasks import open_background

from .network import Candidate, PeerNetwork

__all__ = ["OwnPeer", "ServeOwn"]

ServeOwn: TypeAlias = Callable[[str, trio.abc.HalfCloseableStream], Awaitable[None]]
"""Answers requests of one protocol (its id, with the version) on a stream of the peer to itself."""


class _OwnStream(trio.abc.HalfCloseableStream):
    """A stream of the peer to itself, with the protocol version that is used on it."""

    def __init__(self, stream: trio.SocketStream, protocol: str) -> None:
        self.protocol = protocol
        self._stream = stream

    async def send_all(self, data: bytes | memoryview) -> None:
        await self._stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        return await self._stream.receive_some(max_bytes)

    async def send_eof(self) -> None:
        await self._stream.send_eof()

    async def aclose(self) -> None:
        await self._stream.aclose()


class OwnPeer:
    """A PeerNetwork that also reaches the peer itself, and a CandidateSource that names it if it offers something."""

    name = "own"

    def __init__(self, network: PeerNetwork, serve: ServeOwn, offers: Callable[[], bool]) -> None:
        self._network = network
        self._serve = serve
        self._offers = offers

    @property
    def peer_id(self) -> str:
        """The id of this peer, the requester."""
        return self._network.peer_id

    @asynccontextmanager
    async def client(self, peer_id: str, protocol: str, addrs: Sequence[str] = ()) -> AsyncIterator[Client]:
        """A client of one protocol of a peer. For this peer itself it uses a socket pair. Raises DialError."""
        if peer_id != self.peer_id:
            async with self._network.client(peer_id, protocol, addrs) as client:
                yield client
            return
        async with self.open_stream(peer_id, protocol) as stream, open_client(stream) as own:
            yield own

    @asynccontextmanager
    async def open_stream(
        self, peer_id: str, protocol: str, addrs: Sequence[str] = ()
    ) -> AsyncIterator[trio.abc.HalfCloseableStream]:
        """A stream of one protocol to a peer; to this peer itself over a socket pair. Raises DialError."""
        if peer_id != self.peer_id:
            async with self._network.open_stream(peer_id, protocol, addrs) as stream:
                yield stream
            return
        newest = versions_of(protocol)[0]
        ours, theirs = map(trio.socket.from_stdlib_socket, socket.socketpair())

        async def serve() -> None:
            async with trio.SocketStream(theirs) as stream:
                await self._serve(newest, stream)

        async with open_background(serve), _OwnStream(trio.SocketStream(ours), newest) as own:
            yield own

    @asynccontextmanager
    async def candidates(self, request: EnsembleRequest) -> AsyncIterator[AsyncIterator[Candidate]]:
        """This peer itself, if it offers something."""
        yield self._own()

    async def _own(self) -> AsyncIterator[Candidate]:
        if self._offers():
            yield Candidate(self.peer_id, (), self.name)
