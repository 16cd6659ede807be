"""The Unix socket by which this machine's owner talks to a running peer: the same wire as between peers.

Who may open the file may administer the peer: it is made with mode 0600 and never wider, not even for an instant.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Final

import trio

from dms_protocols.client import Client, open_client
from dms_protocols.operations import Caller, Operations
from dms_protocols.service import serve_stream

from .errors import PeerError

__all__ = ["connect_socket", "serve_socket"]

# Commands of one owner: more at a time are a mistake or an attack, and wait in the kernel's queue.
_MOST_CONNECTIONS: Final = 32
_BACKLOG: Final = 32
# `sun_path` has 108 bytes on Linux and 104 elsewhere, with its end.
_LONGEST_PATH: Final = 100


@asynccontextmanager
async def serve_socket(path: Path, operations: Operations, peer_id: str) -> AsyncIterator[None]:
    """Answers local commands while the block runs, and removes the socket at its end.

    To be called by the process that holds the ledger's lock: a socket that is there already is a dead one.
    Raises PeerError `bad_socket`.
    """
    listener = _listen(path)
    caller = Caller(peer_id, local=True)
    slots = trio.CapacityLimiter(_MOST_CONNECTIONS)
    failure: Exception | None = None
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_accept, listener, operations, caller, slots, nursery)
            try:
                yield
            except Exception as error:
                # Raised behind the nursery, which would wrap it in a group.
                failure = error
            nursery.cancel_scope.cancel()
    finally:
        listener.close()
        _remove(path)
    if failure is not None:
        raise failure


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
            # Out of file descriptors, or gone before it was accepted: neither is a reason to stop listening.
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


@asynccontextmanager
async def connect_socket(path: Path) -> AsyncIterator[Client | None]:
    """A client of the peer that listens at `path`; None when none does. Raises PeerError `bad_socket`."""
    stream = await _connect(path)
    if stream is None:
        yield None
        return
    async with open_client(stream) as client:
        yield client


async def _connect(path: Path) -> trio.SocketStream | None:
    connection = trio.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with _short(path) as address:
            await connection.connect(address)
    except (FileNotFoundError, ConnectionRefusedError, NotADirectoryError):
        connection.close()
        return None
    except OSError as error:
        connection.close()
        raise PeerError(
            "bad_socket", f"cannot talk to the peer at {path}: {error.strerror}", "run the command as the peer's user"
        ) from error
    except BaseException:
        connection.close()
        raise
    return trio.SocketStream(connection)


def _listen(path: Path) -> trio.socket.SocketType:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
        # Before it has a name: Linux gives the file the mode that the socket has.
        os.fchmod(listener.fileno(), 0o600)
        with _short(path) as address:
            listener.bind(address)
        os.chmod(path, 0o600)
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise PeerError(
            "bad_socket", f"cannot listen at {path}: {error.strerror}", "choose another --home on a local file system"
        ) from error
    return trio.socket.from_stdlib_socket(listener)


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink()


@contextmanager
def _short(path: Path) -> Iterator[str]:
    """An address of the same file that fits into a socket address."""
    if len(os.fsencode(path)) <= _LONGEST_PATH:
        yield str(path)
        return
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{directory}/{path.name}"
    finally:
        os.close(directory)
