"""Runs a command of the user's while something is held for it.

Rules:

1. The command never outlives the block that runs it: it is asked to end, and killed when it does not.
2. While it runs SIGTERM, SIGHUP and SIGINT are for the command. From a terminal it has got SIGINT itself; it has its
   time to end, and a second signal ends it at once.
3. Otherwise SIGTERM and SIGHUP end the block as Ctrl-C does, so that what is held is given back.
"""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Final

import trio

from ..errors import PeerError, StoppedError

__all__ = ["run_child", "stopped_by_signals"]

# Seconds that a command has to end after it was asked to.
_GRACE: Final = 10.0
_SIGNAL_BASE: Final = 128
# Seconds in which a signal is noticed that has ended the command already.
_LATE: Final = 0.05
_HANDED_ON: Final = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)


async def run_child(command: Sequence[str], environment: Mapping[str, str]) -> int:
    """Runs the command with the environment added to this process's own; its exit code, 128 + n for signal n.

    Without a command it waits for one of the signals, which is 0. Raises PeerError `command_failed` when the command
    cannot be started. Cancelled, it ends the command, for ten seconds at most.
    """
    with trio.open_signal_receiver(*_HANDED_ON) as signals:
        if not command:
            await anext(signals)
            return 0
        try:
            process = await trio.lowlevel.open_process(list(command), env={**os.environ, **environment})
        except OSError as error:
            raise PeerError(
                f"{command[0]} cannot be run: {error.strerror}", code="command_failed", hint="check the command"
            ) from error
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_hand_on, signals, process)
            try:
                code = await process.wait()
            finally:
                with trio.CancelScope(shield=True):
                    await _end(process)
            nursery.cancel_scope.cancel()
        # Left in the receiver, it would be delivered once more, to us.
        with trio.move_on_after(_LATE):
            await anext(signals)
    return code if code >= 0 else _SIGNAL_BASE - code


async def _hand_on(signals: AsyncIterator[int], process: trio.Process) -> None:
    first = await anext(signals)
    if first != signal.SIGINT:
        process.send_signal(signal.Signals(first))
    with trio.move_on_after(_GRACE):
        await anext(signals)
    process.kill()
    async for _ in signals:
        process.kill()


@asynccontextmanager
async def stopped_by_signals() -> AsyncIterator[None]:
    """Cancels the block on SIGTERM and SIGHUP, and raises StoppedError when it has ended."""
    stopped: list[int] = []
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGHUP) as signals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_stop, signals, nursery.cancel_scope, stopped)
            yield
            nursery.cancel_scope.cancel()
    if stopped:
        raise StoppedError(stopped[0])


async def _stop(signals: AsyncIterator[int], scope: trio.CancelScope, stopped: list[int]) -> None:
    stopped.append(await anext(signals))
    scope.cancel()


async def _end(process: trio.Process) -> None:
    if process.poll() is not None:
        return
    process.terminate()
    with trio.move_on_after(_GRACE):
        await process.wait()
        return
    process.kill()
    await process.wait()
