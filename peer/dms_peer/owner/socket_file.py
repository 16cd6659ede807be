"""The file by which this machine's owner talks to a running peer: a Unix socket in its home.

Who may open the file may administer the peer: it is made with mode 0600 and never wider, not even for an instant.
Needs no trio, so that a command that only asks the peer starts at once.
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
# `sun_path` has 108 bytes on Linux and 104 elsewhere, with its end.
_LONGEST_PATH: Final = 100


def listen(path: Path) -> socket.socket:
    """A socket that listens at `path`, in the place of one that may be there. Raises PeerError `bad_socket`."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        remove(path)
        if path.is_dir():
            set_aside(path, "it is a directory")
        # Before it has a name: Linux gives the file the mode that the socket has.
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
    """Connect to the listener at `path`; None without a listener. Raises PeerError `bad_socket`."""
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
    """Removes the file, if it is there and may be removed."""
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
