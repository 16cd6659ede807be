"""The server on the Unix socket for the owner's commands. It uses the same wire format as peers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import trio

from dms_protocols.rpc.operations import Caller, Operations
from dms_protocols.rpc.service import serve_stream
from dms_resources.tasks import open_background

from .socket_file import listen, remove

__all__ = ["serve_socket"]

# Commands of one owner at the same time. More are a mistake or an attack, and wait in the kernel's queue.
_MOST_CONNECTIONS: Final = 32


@asynccontextmanager
async def serve_socket(path: Path, operations: Operations, peer_id: str) -> AsyncIterator[None]:
    """Answer local commands while the block runs, and remove the socket at its end.

    Only the process that holds the ledger's lock may call it: an existing socket is then a dead one. Raises PeerError
    `bad_socket`.
    """
    listener = trio.socket.from_stdlib_socket(listen(path))
    caller = Caller(peer_id, local=True)
    slots = trio.CapacityLimiter(_MOST_CONNECTIONS)
    try:
        async with open_background() as nursery:
            nursery.start_soon(_accept, listener, operations, caller, slots, nursery)
            yield
    finally:
        listener.close()
        remove(path)


async def _accept(
    listener: trio.socket.SocketType,
    operations: Operations,
    caller: Caller,
    slots: trio.CapacityLimiter,
    nursery: trio.Nursery,
) -> None:
    while True:
        await slots.acquire_on_behalf_of(token := object())
        try:
            connection, _ = await listener.accept()
        except OSError:
            # The process is out of file descriptors, or the client left before it was accepted. The server continues to
            # listen.
            slots.release_on_behalf_of(token)
            await trio.sleep(0.1)
            continue
        nursery.start_soon(_serve, trio.SocketStream(connection), operations, caller, slots, token)


async def _serve(
    stream: trio.SocketStream, operations: Operations, caller: Caller, slots: trio.CapacityLimiter, token: object
) -> None:
    try:
        await serve_stream(stream, operations, caller)
    finally:
        slots.release_on_behalf_of(token)
