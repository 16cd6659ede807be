"""Runs a command of the user's while something is held for it.

Rules:

1. The command never outlives the block that runs it: it is asked to end, and killed when it does not.
2. SIGTERM and SIGINT are for the command. From a terminal it has got SIGINT itself; it has its time to end, and a
   second signal ends it at once.
"""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Final

import trio

from .errors import PeerError

__all__ = ["run_child"]

# Seconds that a command has to end after it was asked to.
_GRACE: Final = 10.0
_SIGNAL_BASE: Final = 128


async def run_child(command: Sequence[str], environment: Mapping[str, str]) -> int:
    """Runs the command with the environment added to this process's own; its exit code, 128 + n for signal n.

    Without a command it waits for SIGTERM or SIGINT, which is 0. Raises PeerError `command_failed` when the command
    cannot be started. Cancelled, it ends the command, for ten seconds at most.
    """
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        if not command:
            await anext(signals)
            return 0
        try:
            process = await trio.lowlevel.open_process(list(command), env={**os.environ, **environment})
        except OSError as error:
            raise PeerError(
                "command_failed", f"{command[0]} cannot be run: {error.strerror}", "check the command"
            ) from error
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_hand_on, signals, process)
            try:
                code = await process.wait()
            finally:
                with trio.CancelScope(shield=True):
                    await _end(process)
            nursery.cancel_scope.cancel()
    return code if code >= 0 else _SIGNAL_BASE - code


async def _hand_on(signals: AsyncIterator[int], process: trio.Process) -> None:
    first = await anext(signals)
    if first == signal.SIGTERM:
        process.terminate()
    with trio.move_on_after(_GRACE):
        await anext(signals)
    process.kill()
    async for _ in signals:
        process.kill()


async def _end(process: trio.Process) -> None:
    if process.poll() is not None:
        return
    process.terminate()
    with trio.move_on_after(_GRACE):
        await process.wait()
        return
    process.kill()
    await process.wait()
