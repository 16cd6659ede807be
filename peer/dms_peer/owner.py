"""The owner's way to their peer: through its socket when it runs, else by opening the ledger itself."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager

import trio

from dms_resources.components import MachineResources
from dms_resources.errors import LedgerInUseError

from .administration import (
    Administration,
    AuditAnswer,
    AuditRequest,
    HistoryAnswer,
    HistoryRequest,
    HistoryRow,
    LocalAdministration,
    OfferAnswer,
    OnboardRequest,
    RemoteAdministration,
    StatusAnswer,
)
from .home import MEASURED, RETRY_INTERVAL, Home
from .identity import load_or_create_identity
from .local_socket import connect_socket
from .offers import Offer

__all__ = [
    "audit",
    "offboard",
    "onboard",
    "open_administration",
    "read_hardware",
    "read_history",
    "read_machine_of",
    "read_status",
]


@asynccontextmanager
async def open_administration(home: Home, machine: str | None = None) -> AsyncIterator[Administration]:
    """Reaches the peer of this home, running or not; `machine` is the owner's `--machine`.

    Raises IdentityError, MachineFileError, PeerError, and `LedgerInUseError` when the home is held by a process that
    does not answer.
    """
    home.prepare()
    deadline = trio.current_time() + home.patience
    async with AsyncExitStack() as stack:
        while True:
            client = await stack.enter_async_context(connect_socket(home.socket_path))
            if client is not None:
                yield RemoteAdministration(client)
                return
            try:
                administration, measured = await _open_ledger(stack, home, machine)
                break
            except LedgerInUseError:
                # A peer that is starting answers soon; another command is done soon.
                if trio.current_time() > deadline:
                    raise
                await trio.sleep(RETRY_INTERVAL)
        yield administration
        # Only when what the owner wanted was done.
        home.remember_machine(machine, measured)


async def _open_ledger(
    stack: AsyncExitStack, home: Home, machine: str | None
) -> tuple[LocalAdministration, MachineResources]:
    # Only where no peer runs: asking one must not cost the time to load all this.
    from dms_resources.manager import open_manager

    identity = load_or_create_identity(home.key_path)
    measured = await trio.to_thread.run_sync(home.machine, machine)
    manager = await stack.enter_async_context(open_manager(home.ledger_path, measured))
    return LocalAdministration(manager, identity.peer_id), measured


async def read_status(home: Home) -> StatusAnswer:
    """What is onboarded, promised and free, and to whom. Raises what `open_administration` raises."""
    async with open_administration(home) as administration:
        return await administration.status()


async def onboard(home: Home, offer: Offer, machine: str | None = None, *, dry_run: bool = False) -> OfferAnswer:
    """Offers a part of the machine; a dry run only checks. Raises what `open_administration` and the ledger raise."""
    expected = None
    if machine is not None and machine != MEASURED:
        expected = await trio.to_thread.run_sync(home.machine, machine)
    async with open_administration(home, machine) as administration:
        return await administration.onboard(OnboardRequest(offer=offer, machine=expected, dry_run=dry_run))


async def offboard(home: Home, *, drain: bool, tell: Callable[[int], None]) -> OfferAnswer:
    """Offers nothing any more; with `drain` waits first until all has ended, and `tell` hears how much is left."""
    async with open_administration(home) as administration:
        if drain:
            await administration.drain(tell)
        return await administration.offboard()


async def read_history(home: Home, limit: int) -> HistoryAnswer:
    """The newest entries of the history, across as many answers as it takes."""
    async with open_administration(home) as administration:
        entries: list[HistoryRow] = []
        while len(entries) < limit:
            before = entries[-1].number if entries else None
            page = await administration.history(HistoryRequest(limit=min(1000, limit - len(entries)), before=before))
            entries += page.entries
            if not page.entries:
                break
        return HistoryAnswer(entries=tuple(entries))


async def audit(home: Home, *, repair: bool) -> AuditAnswer:
    """Compares the ledger with its file and the operating system. Raises what `open_administration` raises."""
    async with open_administration(home) as administration:
        return await administration.audit(AuditRequest(repair=repair))


async def read_hardware(home: Home, machine: str | None) -> MachineResources:
    """What the machine has, or what the file says that it has. Raises MachineFileError."""
    return await trio.to_thread.run_sync(home.machine, MEASURED if machine is None else machine)


async def read_machine_of(home: Home, machine: str | None) -> MachineResources:
    """The machine of this home: as given, as remembered, else as measured. Raises MachineFileError."""
    home.prepare()
    return await trio.to_thread.run_sync(home.machine, machine)
