"""Runs a user's command while something is held for it.

Rules:

1. The command never outlives the block that runs it: it gets SIGTERM, and SIGKILL ten seconds later. This also applies
   to everything that it started, and if this process is killed with SIGKILL: then a watcher process ends them.
2. While the command runs, SIGTERM, SIGHUP and SIGINT are for the command. From a terminal the command gets SIGINT
   directly. It has ten seconds to end; a second signal kills it at once.
3. While no command runs, SIGTERM, SIGHUP and SIGINT end the block, and what is held is released.
4. If a command ends by itself, the processes that it leaves behind are not ended.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Final

import trio

from ..errors import PeerError, StoppedError
from . import child_watcher

__all__ = ["check_command", "run_child", "stopped_by_signals"]

# Seconds that a command has to end after SIGTERM.
_GRACE: Final = 10.0
# The most seconds that the watcher needs: its own grace period, and the killing.
_WATCHER_ENDS: Final = 16.0
_SIGNAL_BASE: Final = 128
# Seconds in which a signal that has already ended the command is noticed.
_LATE: Final = 0.05
_HANDED_ON: Final = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)


def check_command(command: Sequence[str]) -> None:
    """Raise PeerError `command_not_found` if the command does not exist, before anything is reserved for it."""
    if command and shutil.which(command[0]) is None:
        raise PeerError(
            f"there is no command {command[0]}", code="command_not_found", hint="check its name, or give its path"
        )


class _Watcher:
    """The process that ends the command's processes if this one dies."""

    def __init__(self, mark: str, process: trio.Process) -> None:
        self.environment = {child_watcher.COMMAND_MARK: mark}
        self._process = process

    async def dismiss(self) -> None:
        """Tell it that the command has ended by itself."""
        assert self._process.stdin is not None
        with suppress(trio.BrokenResourceError):
            await self._process.stdin.send_all(child_watcher.DONE)


@asynccontextmanager
async def _watcher() -> AsyncIterator[_Watcher]:
    """A running watcher. At the end of the block it ends what is left, unless it was dismissed."""
    mark = secrets.token_hex(16)
    process = await trio.lowlevel.open_process(
        [sys.executable, "-I", "-S", str(Path(child_watcher.__file__)), mark],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
        env={},
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        if not await process.stdout.receive_some(1):
            raise PeerError(
                "the watcher of the command cannot be started", code="command_failed", hint="check the machine's memory"
            )
        yield _Watcher(mark, process)
    finally:
        with trio.CancelScope(shield=True, deadline=trio.current_time() + _WATCHER_ENDS):
            await process.stdin.aclose()
            await process.wait()
        with trio.CancelScope(shield=True):
            await process.stdout.aclose()


async def run_child(command: Sequence[str], environment: Mapping[str, str]) -> int:
    """Run the command with the environment added to this process's own. Returns its exit code, 128 + n for signal n.

    Without a command it waits for one of the signals and returns 0. Raises PeerError `command_failed` if the command
    cannot be started. If cancelled, it ends the command, within about 25 seconds.
    """
    with trio.open_signal_receiver(*_HANDED_ON) as signals:
        if not command:
            await anext(signals)
            return 0
        try:
            async with _watcher() as watcher:
                marked = {**os.environ, **environment, **watcher.environment}
                process = await trio.lowlevel.open_process(list(command), env=marked)
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(_hand_on, signals, process)
                    try:
                        code = await process.wait()
                    finally:
                        with trio.CancelScope(shield=True):
                            await _end(process)
                    nursery.cancel_scope.cancel()
                await watcher.dismiss()
        except OSError as error:
            raise PeerError(
                f"{command[0]} cannot be run: {error.strerror}", code="command_failed", hint="check the command"
            ) from error
        # If it stayed in the receiver, it would be delivered again, to this process.
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
    """Cancel the block on SIGTERM, SIGHUP and SIGINT. When it has ended, raise StoppedError, or KeyboardInterrupt for
    SIGINT.

    The interpreter would raise KeyboardInterrupt in whichever task runs, for example in one of a connection over which
    something has to be released. A SIGINT that is ignored stays ignored.
    """
    stopped: list[int] = []
    numbers = [signal.SIGTERM, signal.SIGHUP]
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
        numbers.append(signal.SIGINT)
    with trio.open_signal_receiver(*numbers) as signals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_stop, signals, nursery.cancel_scope, stopped)
            yield
            nursery.cancel_scope.cancel()
    if stopped and stopped[0] == signal.SIGINT:
        raise KeyboardInterrupt
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
