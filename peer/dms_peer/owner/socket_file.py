"""The Unix socket in the home through which the owner's commands reach a running peer.

A user who can open the file can administer the peer, so the file always has mode 0600, from its creation on. This
module does not need trio, so that a command that only queries the peer starts at once.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from ..errors import PeerError
from ..home.state_files import set_aside

__all__ = ["connect", "listen", "remove"]

_BACKLOG: Final = 32
# `sun_path` has 108 bytes on Linux and 104 elsewhere, including its terminator.
_LONGEST_PATH: Final = 100


def listen(path: Path) -> socket.socket:
    """A socket that listens at `path`. An existing file is replaced. Raises PeerError `bad_socket`."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        remove(path)
        if path.is_dir():
            set_aside(path, "it is a directory")
        # Before it has a name: Linux gives the file the mode of the socket.
        os.fchmod(listener.fileno(), 0o600)
        with _short(path) as address:
            listener.bind(address)
        os.chmod(path, 0o600)
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise PeerError(
            f"cannot listen at {path}: {error.strerror}",
            code="bad_socket",
            hint="choose another --home on a local file system",
        ) from error
    return listener


def connect(path: Path) -> socket.socket | None:
    """Connect to the listener at `path`; None if there is no listener. Raises PeerError `bad_socket`."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with _short(path) as address:
            connection.setblocking(False)
            connection.connect(address)
    except (FileNotFoundError, ConnectionRefusedError, NotADirectoryError):
        connection.close()
        return None
    except OSError as error:
        connection.close()
        raise PeerError(
            f"cannot talk to the peer at {path}: {error.strerror}",
            code="bad_socket",
            hint="run the command as the peer's user",
        ) from error
    return connection


def remove(path: Path) -> None:
    """Remove the file, if it exists and may be removed."""
    with contextlib.suppress(OSError):
        path.unlink()


@contextmanager
def _short(path: Path) -> Iterator[str]:
    """A path of the same file that is short enough for a socket address."""
    if len(os.fsencode(path)) <= _LONGEST_PATH:
        yield str(path)
        return
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{directory}/{path.name}"
    finally:
        os.close(directory)
