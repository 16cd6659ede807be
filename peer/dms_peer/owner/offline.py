"""Answers the owner in place of a running peer, by opening the ledger."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final, TypeVar

import trio
from msgspec import Struct
from msgspec.structs import asdict

from dms_host.keys.identity import load_identity, load_or_create_identity
from dms_protocols.rpc.operations import Caller, Operations, operation_name
from dms_resources.components import CPU, RAM, Disk, FreeResources, Resources
from dms_resources.machine.registry import Registration
from dms_resources.machine.usage import free_now
from dms_resources.manager import open_manager
from dms_resources.units import Cores

from .. import __version__
from ..home.home import Home
from .administration import LocalAdministration, administration_operations
from .messages import AuditAnswer, HistoryAnswer, RevocationsAnswer, StatusAnswer
from .revocations import Revocations, revocation_operations

__all__ = ["answer_without_ledger", "ask_ledger", "open_ledger", "watch_ledger"]

Answer = TypeVar("Answer", bound=Struct)

# The size of one answer (RevocationsRequest).
_REVOCATIONS: Final = 100


def answer_without_ledger(home: Home, answer_type: type[Answer]) -> Answer:
    """The answer of a home without a ledger: it offers nothing, and nothing has happened. Raises IdentityError."""
    peer_id = load_identity(home.key_path).peer_id
    nothing = Resources(cpu=CPU(cores=Cores(0)), ram=RAM(size=0), disk=Disk(size=0), gpus=())
    free = FreeResources(**asdict(nothing), ports=0, onboarded=False, draining=False, simulated=False)
    revocations = Revocations(home.revocations_path).revocations[::-1]
    answers: tuple[Struct, ...] = (
        StatusAnswer(
            peer_id=peer_id,
            addrs=(),
            running=False,
            simulated=False,
            draining=False,
            onboarded=None,
            free=free,
            committed=nothing,
            allocated=nothing,
            leases=(),
            lease_count=0,
            version=__version__,
        ),
        HistoryAnswer(entries=()),
        AuditAnswer(findings=(), repaired=False),
        RevocationsAnswer(revocations=revocations[:_REVOCATIONS], count=len(revocations)),
    )
    return next(answer for answer in answers if isinstance(answer, answer_type))


def ask_ledger(
    home: Home, machine: str | None, request: Struct, answer_type: type[Answer], *, create: bool = True
) -> Answer:
    """The answer to one request. `machine` is remembered if it is given. Raises what `open_ledger` raises."""

    async def answer() -> Answer:
        async with open_ledger(home, machine, create=create) as (operations, owner):
            found = await operations[operation_name(type(request))].handler(request, owner)
            assert isinstance(found, answer_type)
            return found

    return trio.run(answer)


def watch_ledger(home: Home, request: Struct, tell: Callable[[Answer], None]) -> None:
    """Call `tell` with the events that answer a request. Raises what `open_ledger` raises."""

    async def tell_events() -> None:
        async with (
            open_ledger(home, None) as (operations, owner),
            operations[operation_name(type(request))].handler(request, owner) as events,
        ):
            async for event in events:
                tell(event)

    trio.run(tell_events)


@asynccontextmanager
async def open_ledger(
    home: Home, machine: str | None, *, create: bool = True
) -> AsyncIterator[tuple[Operations, Caller]]:
    """The operations of the owner of this home, and the caller that may use them, while the block runs.

    `machine` (`--machine`) is remembered if the block ends without an error. A missing key is created only with
    `create`. Raises IdentityError, MachineFileError, StorageError, and `LedgerInUseError` if another process has the
    ledger.
    """
    measured = await trio.to_thread.run_sync(home.machine, machine)
    async with open_manager(home.ledger_path, measured) as manager:
        # After the ledger, so that no key is created in an unusable home.
        identity = load_or_create_identity(home.key_path) if create else load_identity(home.key_path)
        free = (None, None) if measured.simulated else await trio.to_thread.run_sync(free_now, home.path)
        registration = None if measured.simulated else Registration(home.path, measured)
        administration = LocalAdministration(manager, identity.peer_id, free_now=free, registration=registration)
        revocations = Revocations(home.revocations_path)
        operations = administration_operations(administration) | revocation_operations(revocations)
        yield operations, Caller(identity.peer_id, local=True)
        # Remembered only if the owner's request succeeded.
        home.remember_machine(machine, measured)
