"""A small program that outlives the peer for a moment and kills the processes that policies started.

It reads from a pipe that only the peer holds open, so it notices the end of the peer in every case. Then it kills every
process that has the peer's mark in its environment, whatever its group. It uses the standard library only, because it
is started with an empty module path.
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

# A process that is just being started has no mark yet, so one empty look is not enough.
_LOOKS = 3
_PAUSE = 0.02
_MOST_LOOKS = 200


def main() -> None:
    """Waits for the end of the peer, then kills every process with the mark in the first argument."""
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
        # The descriptor first: otherwise the number could belong to a later process when it is killed.
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
