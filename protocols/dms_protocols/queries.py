"""Answers `/dms/resources/1.0.0` from a resource manager.

Each answer is encoded once for each version of the ledger, and the bytes are sent again until the ledger changes.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager

import msgspec

from dms_resources.components import FreeResources, MachineResources, NetworkInfo, OnboardedResources
from dms_resources.errors import UsageUnknownError
from dms_resources.manager import ResourceManager
from dms_resources.refusals import NotOnboardedError

from .disclosure import for_strangers
from .messages.resources import (
    AllocatedRequest,
    FreeRequest,
    MachineRequest,
    OnboardedRequest,
    UsageRequest,
    WatchRequest,
)
from .rpc.operations import Answer, Caller, Operations
from .wire.conversion import to_bytes
from .wire.envelope import Encoded

__all__ = ["resource_operations"]


def resource_operations(manager: ResourceManager) -> Operations:
    """The operations that query a manager."""
    queries = _Queries(manager)
    operations = Operations()
    operations.quick(FreeRequest, lambda request, caller: queries.free(caller))
    operations.quick(OnboardedRequest, lambda request, caller: queries.onboarded(caller))
    operations.quick(AllocatedRequest, lambda request, caller: queries.allocated(caller))
    operations.quick(MachineRequest, lambda request, caller: queries.machine(caller))
    operations.quick(UsageRequest, lambda request, caller: queries.usage(caller))
    operations.watch(WatchRequest, lambda request, caller: queries.watch(caller))
    return operations


class _Queries:
    def __init__(self, manager: ResourceManager) -> None:
        self._manager = manager
        self._version = -1
        self._encoded: dict[str, Encoded] = {}

    def free(self, caller: Caller) -> Encoded:
        if caller.local:
            return self._once("free", self._manager.get_free_resources)
        return self._once("public free", lambda: for_strangers(self._manager.get_free_resources()))

    def onboarded(self, caller: Caller) -> Encoded:
        if caller.local:
            return self._once("onboarded", self._onboarded)
        return self._once("public onboarded", lambda: for_strangers(self._onboarded()))

    def allocated(self, caller: Caller) -> Encoded:
        if caller.local:
            return self._once("allocated", self._manager.get_total_allocation)
        return self._once("public allocated", lambda: for_strangers(self._manager.get_total_allocation()))

    def machine(self, caller: Caller) -> Encoded:
        if caller.local:
            return self._once("machine", lambda: self._manager.machine)
        return self._once("public machine", self._public_machine)

    def usage(self, caller: Caller) -> Answer:
        try:
            usage = self._manager.usage_monitor.get_usage()
        except LookupError:
            raise UsageUnknownError("this peer does not watch what its machine uses") from None
        return usage if caller.local else for_strangers(usage)

    def watch(self, caller: Caller) -> AbstractAsyncContextManager[AsyncIterator[FreeResources]]:
        return self._manager.watch() if caller.local else self._watch_for_strangers()

    @asynccontextmanager
    async def _watch_for_strangers(self) -> AsyncIterator[AsyncIterator[FreeResources]]:
        async with self._manager.watch() as changes, aclosing(_for_strangers(changes)) as hidden:
            yield hidden

    def _once(self, name: str, read: Callable[[], msgspec.Struct]) -> Encoded:
        version = self._manager.version
        if version != self._version:
            self._version = version
            self._encoded.clear()
        encoded = self._encoded.get(name)
        if encoded is None:
            encoded = self._encoded[name] = to_bytes(read())
        return encoded

    def _onboarded(self) -> OnboardedResources:
        onboarded = self._manager.get_onboarded_resources()
        if onboarded is None:
            raise NotOnboardedError("the owner of this machine offers nothing")
        return onboarded

    def _public_machine(self) -> MachineResources:
        # Other peers do not need to know the addresses of the owner's networks.
        return msgspec.structs.replace(self._manager.machine, network=NetworkInfo())


async def _for_strangers(changes: AsyncIterator[FreeResources]) -> AsyncGenerator[FreeResources, None]:
    async for free in changes:
        yield for_strangers(free)
