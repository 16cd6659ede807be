"""A small program that outlives the peer for a moment: it ends what the policies started when the peer is gone.

It reads from a pipe that only the peer holds open, so it learns of the peer's end however that came about, and then
kills every process that carries the peer's mark in its environment, wherever it went. Standard library only: it is
started with nothing else on the path.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterator

__all__ = ["MARK", "main"]

MARK = "DMS_PEER_POLICY"
"""The environment variable that marks what the policies of one peer started."""

# A process that is being started at this moment gets the mark a moment later.
_LOOKS = 3
_PAUSE = 0.02
_MOST_LOOKS = 200


def main() -> None:
    """Waits for the peer's end, then ends everything with the mark that is given as argument."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    mark = f"{MARK}={sys.argv[1]}".encode()
    os.write(1, b"\n")
    while os.read(0, 4096):
        pass
    quiet = 0
    for _ in range(_MOST_LOOKS):
        quiet = 0 if _end_marked(mark) else quiet + 1
        if quiet == _LOOKS:
            return
        time.sleep(_PAUSE)


def _end_marked(mark: bytes) -> int:
    ended = 0
    for number in _processes():
        # The descriptor first, so that what is killed is what was looked at and not a later process of that number.
        with contextlib.suppress(OSError), _opened(number) as descriptor:
            with open(f"/proc/{number}/environ", "rb") as file:
                if mark not in file.read().split(b"\0"):
                    continue
            signal.pidfd_send_signal(descriptor, signal.SIGKILL)
            ended += 1
    return ended


def _processes() -> Iterator[int]:
    for name in os.listdir("/proc"):
        if name.isdecimal():
            yield int(name)


@contextlib.contextmanager
def _opened(number: int) -> Iterator[int]:
    descriptor = os.pidfd_open(number)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


if __name__ == "__main__":
    main()
