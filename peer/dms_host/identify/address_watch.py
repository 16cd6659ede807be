"""Notices that the addresses of this machine have changed, so that other peers learn the new ones within seconds.

What breaks: the library reads the addresses when it is asked, and tells nobody that they have changed. A laptop that
moves to another network stays known under its old address.
Measure: `AddressWatch` compares the addresses every few seconds, and tells what announces them. That works on every
operating system and needs no rights.
Upstream: no upstream report found (November 2026).
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import trio

__all__ = ["AddressWatch"]

logger = logging.getLogger(__name__)


class AddressWatch:
    """The addresses that `read` returns, compared every `interval` seconds. `read` may block."""

    def __init__(self, read: Callable[[], tuple[str, ...]], interval: float) -> None:
        self._read = read
        self._interval = interval
        self._addresses: tuple[str, ...] | None = None
        self._changed = trio.Event()

    async def wait_changed(self) -> None:
        """Return when the addresses have changed. May be cancelled."""
        await self._changed.wait()

    async def keep(self, announce: Callable[[], None]) -> None:
        """Compare until cancelled; call `announce` after each change. `open_host` runs it."""
        self._addresses = await trio.to_thread.run_sync(self._read)
        while True:
            await trio.sleep(self._interval)
            addresses = await trio.to_thread.run_sync(self._read)
            if addresses == self._addresses:
                continue
            self._addresses = addresses
            logger.info("the addresses of this peer have changed: %s", " ".join(addresses) or "there are none")
            announce()
            self._changed.set()
            self._changed = trio.Event()
