"""A small program that ends a command's processes if the process that runs the command dies, even by SIGKILL.

It reads from a pipe that only that process holds open. At the end of the pipe it ends every process that has the mark
in its environment, with SIGTERM and, after a grace period, with SIGKILL. `done` on the pipe means that the command has
ended by itself. It uses the standard library only.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterator

__all__ = ["COMMAND_MARK", "DONE", "main"]

COMMAND_MARK = "DMS_PEER_COMMAND"
"""The environment variable that marks a command and all processes that it starts."""

DONE = b"done"
"""Written to the pipe if nothing has to be ended."""

_GRACE = 10.0
_PAUSE = 0.05
# A process that is just being started gets its environment a moment later.
_QUIET_LOOKS = 3
_KILLING = 5.0


def main() -> None:
    """Wait for the end of the pipe (standard input), then end what carries the mark of argument 1."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    mark = f"{COMMAND_MARK}={sys.argv[1]}".encode()
    os.write(1, b"\n")
    said = b""
    while data := os.read(0, 4096):
        said += data
    if said == DONE:
        return
    if not _end(mark, signal.SIGTERM, _GRACE):
        _end(mark, signal.SIGKILL, _KILLING)


def _end(mark: bytes, number: signal.Signals, seconds: float) -> bool:
    """Send the signal to each marked process once, until there is none. Returns whether there is none after
    `seconds`.
    """
    deadline, told, quiet = time.monotonic() + seconds, set[int](), 0
    while time.monotonic() < deadline:
        found = set(_marked(mark))
        quiet = 0 if found else quiet + 1
        if quiet == _QUIET_LOOKS:
            return True
        for process in found - told:
            _send(process, mark, number)
        told |= found
        time.sleep(_PAUSE)
    return False


def _marked(mark: bytes) -> Iterator[int]:
    for name in os.listdir("/proc"):
        if name.isdecimal() and _carries(int(name), mark):
            yield int(name)


def _carries(process: int, mark: bytes) -> bool:
    # A process that has ended but was not waited for no longer has an environment.
    with contextlib.suppress(OSError), open(f"/proc/{process}/environ", "rb") as file:
        return mark in file.read().split(b"\0")
    return False


def _send(process: int, mark: bytes, number: signal.Signals) -> None:
    with contextlib.suppress(OSError):
        # The descriptor first, so that the process that gets the signal is the one that was examined.
        descriptor = os.pidfd_open(process)
        try:
            if _carries(process, mark):
                signal.pidfd_send_signal(descriptor, number)
        finally:
            os.close(descriptor)


if __name__ == "__main__":
    main()
