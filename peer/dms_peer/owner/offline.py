"""What the running peer would answer its owner, answered by opening the ledger in its place."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

import trio
from msgspec import Struct

from dms_host.keys.identity import load_or_create_identity
from dms_protocols.rpc.operations import Caller, Operations, operation_name
from dms_resources.manager import open_manager

from ..home.home import Home
from .administration import LocalAdministration, administration_operations
from .revocations import Revocations, revocation_operations

__all__ = ["ask_ledger", "open_ledger", "watch_ledger"]

Answer = TypeVar("Answer", bound=Struct)


def ask_ledger(home: Home, machine: str | None, request: Struct, answer_type: type[Answer]) -> Answer:
    """The answer to one request; `machine` is remembered when there is one. Raises what `open_ledger` raises."""

    async def answer() -> Answer:
        async with open_ledger(home, machine) as (operations, owner):
            found = await operations[operation_name(type(request))].handler(request, owner)
            assert isinstance(found, answer_type)
            return found

    return trio.run(answer)


def watch_ledger(home: Home, request: Struct, tell: Callable[[Answer], None]) -> None:
    """Tells the events that answer a request. Raises what `open_ledger` raises."""

    async def tell_events() -> None:
        async with (
            open_ledger(home, None) as (operations, owner),
            operations[operation_name(type(request))].handler(request, owner) as events,
        ):
            async for event in events:
                tell(event)

    trio.run(tell_events)


@asynccontextmanager
async def open_ledger(home: Home, machine: str | None) -> AsyncIterator[tuple[Operations, Caller]]:
    """The operations of the owner of this home, and the caller who may use them, while the block runs.

    `machine` (`--machine`) is remembered when the block ends well. Raises IdentityError, MachineFileError,
    StorageError, and `LedgerInUseError` when another process has the ledger.
    """
    identity = load_or_create_identity(home.key_path)
    measured = await trio.to_thread.run_sync(home.machine, machine)
    async with open_manager(home.ledger_path, measured) as manager:
        administration = LocalAdministration(manager, identity.peer_id)
        revocations = Revocations(home.revocations_path)
        operations = administration_operations(administration) | revocation_operations(revocations)
        yield operations, Caller(identity.peer_id, local=True)
        # Only when what the owner wanted was done.
        home.remember_machine(machine, measured)
