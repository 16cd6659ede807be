"""Which ports cannot be granted because programs of this machine use them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Final, TypeAlias

import trio

from ..demands import NO_PORTS, PortDemand
from .ledger import Ledger

__all__ = ["PortWatch", "ReadPorts"]

_log = logging.getLogger("dms_resources.manager")

ReadPorts: TypeAlias = Callable[[], frozenset[int] | None]
"""Returns the ports that programs use now, or None if they cannot be read. Called in a worker thread."""

# Reading the kernel's tables takes milliseconds of CPU time. Ports are checked again when they are granted.
PORTS_SECONDS: Final = 30.0


class PortWatch:
    """Keeps ports out of what a ledger grants: those that programs use, if `read` is given, and reserved ones."""

    def __init__(self, ledger: Ledger, read: ReadPorts | None) -> None:
        self._ledger = ledger
        self._read = read
        self._own: frozenset[int] = frozenset()
        self._unread = False

    async def run(self) -> None:
        """Read the ports at intervals until it is cancelled."""
        while self._read is not None:
            await trio.sleep(PORTS_SECONDS)
            await self.update()

    def reserve(self, ports: Iterable[int]) -> None:
        """Never grant these ports. Replaces the earlier reservation."""
        before, self._own = self._own, frozenset(ports)
        self._note(self._ledger.book.used_ports - before)

    async def update(self, asked: Iterable[PortDemand] | None = None) -> None:
        """Read which ports programs use now. With `asked`, only if one of the demands requests ports."""
        if self._read is None or (asked is not None and all(ports == NO_PORTS for ports in asked)):
            return
        read, found = self._read, list[frozenset[int] | None]()
        await self._ledger.work(lambda: found.append(read()))
        unread, self._unread = self._unread, found[0] is None
        if found[0] is not None:
            self._note(found[0])
        elif not unread:
            _log.warning("the ports that programs use cannot be read: the ledger alone decides which are free")

    def _note(self, used: frozenset[int]) -> None:
        if self._ledger.book.set_used_ports(used | self._own):
            self._ledger.tell()
