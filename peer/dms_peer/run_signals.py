"""What a signal does to a running peer: stop it, or make it read its configuration again."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import AsyncIterator

import trio

__all__ = ["RunSignals", "has_terminal"]

_log = logging.getLogger(__name__)


class RunSignals:
    """Handles SIGTERM, SIGINT and SIGHUP. `terminal` says whether the peer was started from a terminal."""

    def __init__(self, terminal: bool) -> None:
        self._terminal = terminal
        self._reload = trio.Event()
        self.terminal_gone = False

    @property
    def numbers(self) -> tuple[signal.Signals, ...]:
        """The signals to receive."""
        # A peer that was started with SIGHUP ignored, as by nohup, has to survive its terminal.
        ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        return (signal.SIGTERM, signal.SIGINT, *(() if ignored else (signal.SIGHUP,)))

    async def follow(self, signals: AsyncIterator[int], scope: trio.CancelScope) -> None:
        """Cancel the scope when a signal stops the peer."""
        async for number in signals:
            if number == signal.SIGHUP:
                self.terminal_gone = self._terminal and not has_terminal()
                if not self.terminal_gone:
                    self._reload.set()
                    continue
            _log.info("stopping on %s", signal.Signals(number).name)
            scope.cancel()

    async def reload_asked(self) -> None:
        """Wait until the configuration has to be read again."""
        await self._reload.wait()
        self._reload = trio.Event()


def has_terminal() -> bool:
    """Whether the process has a controlling terminal that is still open."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError:
        return False
    return True
