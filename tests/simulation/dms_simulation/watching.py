"""The ledger of a member of a population, for code that waits for its changes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import trio

from dms_resources.components import FreeResources

from .population import Member

__all__ = ["Watched"]


class Watched:
    """The part of a ResourceManager that `keep_providing` and `AdvertKeeper` need."""

    def __init__(self, member: Member) -> None:
        self._member = member

    def get_free_resources(self) -> FreeResources:
        """What is free now."""
        return self._member.manager(trio.current_time()).get_free_resources()

    @asynccontextmanager
    async def watch(self) -> AsyncIterator[AsyncIterator[FreeResources]]:
        """What is free now and after every change."""
        yield _Changes(self)

    async def changed(self) -> None:
        """Return when something else is free."""
        await trio.sleep_until(self._member.next_change(trio.current_time()))


@dataclass(slots=True)
class _Changes:
    watched: Watched
    begun: bool = False

    def __aiter__(self) -> _Changes:
        return self

    async def __anext__(self) -> FreeResources:
        if self.begun:
            await self.watched.changed()
        else:
            self.begun = True
            await trio.lowlevel.checkpoint()
        return self.watched.get_free_resources()
