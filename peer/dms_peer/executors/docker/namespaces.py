"""Connects to a port inside the network namespace of a process, which may have no network but its loopback."""

from __future__ import annotations

import ctypes
import os
import socket
import threading
from typing import Final

from ..executor import ExecutorError

__all__ = ["connect_inside", "is_own_namespace", "open_namespace"]

_NEW_NETWORK: Final = 0x40000000
_CONNECT_SECONDS: Final = 10.0
_ADDRESSES: Final = ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1"))


def open_namespace(process: int) -> int:
    """A descriptor of the network namespace of a process. Blocks.

    Raises ExecutorError `failed` where it may not be opened, or is that of this process: then there is no isolation.
    """
    try:
        namespace = os.open(f"/proc/{process}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise ExecutorError(f"the network of the job cannot be entered: {error.strerror}", code="failed") from error
    if is_own_namespace(namespace):
        os.close(namespace)
        raise ExecutorError("the job has the network of the machine", code="failed")
    return namespace


def is_own_namespace(namespace: int) -> bool:
    """Whether a descriptor is of the network namespace in which this process is."""
    own, other = os.stat("/proc/self/ns/net"), os.fstat(namespace)
    return (own.st_dev, own.st_ino) == (other.st_dev, other.st_ino)


def connect_inside(namespace: int, port: int) -> socket.socket:
    """A connection to a port on the loopback of a namespace. Blocks for at most 10 s for each address.

    Raises ExecutorError `failed` where nothing listens, or where this process has not the right to enter.
    """
    found: list[socket.socket] = []
    problems: list[str] = []

    def connect() -> None:
        # Only this thread changes its namespace, and it ends here: nothing else ever runs in it.
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.setns(namespace, _NEW_NETWORK):
            problems.append(f"the network of the job cannot be entered: {os.strerror(ctypes.get_errno())}")
            return
        for family, address in _ADDRESSES:
            try:
                connection = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
            except OSError:
                continue
            try:
                connection.settimeout(_CONNECT_SECONDS)
                connection.connect((address, port))
            except OSError as error:
                connection.close()
                problems.append(f"nothing answers at port {port} of the job: {error.strerror or error}")
            else:
                found.append(connection)
                return

    thread = threading.Thread(target=connect, name="dms-connect-inside", daemon=True)
    thread.start()
    thread.join()
    if not found:
        raise ExecutorError(problems[0] if problems else "no connection can be made", code="failed")
    found[0].setblocking(False)
    return found[0]
