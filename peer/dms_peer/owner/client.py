"""The commands' access to the peer of a home: through its socket if it runs, otherwise by opening the ledger itself.

All functions block. A command that only queries the running peer loads no more than it needs for that.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Final, TypeVar

from msgspec import Struct

from dms_protocols.rpc.blocking_client import BlockingClient
from dms_resources.components import MachineResources
from dms_resources.errors import LedgerInUseError
from dms_resources.ledger.leases import EndedLease

from ..errors import PeerError, UsageError
from ..home.home import MEASURED, RETRY_INTERVAL, Home
from .messages import (
    AuditAnswer,
    AuditRequest,
    CancelDrainAnswer,
    CancelDrainRequest,
    DrainAnswer,
    DrainEvent,
    DrainRequest,
    EvictAnswer,
    EvictRequest,
    HistoryAnswer,
    HistoryRequest,
    HistoryRow,
    OffboardRequest,
    OnboardAnswer,
    OnboardRequest,
    PeersAnswer,
    PeersRequest,
    ReleaseLeaseRequest,
    RevocationsAnswer,
    RevocationsRequest,
    RevokeAnswer,
    RevokeRequest,
    StartDrainRequest,
    StatusAnswer,
    StatusRequest,
)
from .offers import Offer
from .socket_file import connect
from .start_marker import is_starting

__all__ = [
    "ask",
    "await_drained",
    "cancel_drain",
    "evict_leases",
    "onboard_resources",
    "read_hardware",
    "read_history",
    "read_machine_of",
    "read_peers",
    "read_revocations",
    "read_status",
    "release_own_lease",
    "revoke_grants",
    "run_audit",
    "start_drain",
    "watch",
    "withdraw_offer",
]

Answer = TypeVar("Answer", bound=Struct)
Result = TypeVar("Result")

_TIMEOUT: Final = 30.0
# Requests that change nothing. They create no key, no ledger and no directory.
_READING: Final = (StatusRequest, HistoryRequest, RevocationsRequest)


def ask(home: Home, request: Struct, answer_type: type[Answer], machine: str | None = None) -> Answer:
    """The answer of the peer of this home, running or not. `machine` is the owner's `--machine`.

    Raises IdentityError, MachineFileError, PeerError, `LedgerInUseError` if a process that does not answer has the
    ledger, RemoteError with the error of a running peer, and what the ledger raises if no peer runs.
    """

    reads = isinstance(request, _READING) or (isinstance(request, AuditRequest) and not request.repair)

    def in_ledger() -> Answer:
        from .offline import answer_without_ledger, ask_ledger

        if reads and not home.ledger_path.exists():
            return answer_without_ledger(home, answer_type)
        return ask_ledger(home, machine, request, answer_type, create=not reads)

    return _reach(home, lambda peer: peer.call(request, answer_type, timeout=_TIMEOUT), in_ledger, reads=reads)


def watch(
    home: Home,
    request: Struct,
    event_type: type[Answer],
    tell: Callable[[Answer], None],
    until: float = float("inf"),
) -> None:
    """Call `tell` with each event at the peer of this home, until there are no more.

    Raises DeadlineExceededError at `until` (of `time.monotonic`), and what `ask` raises.
    """

    def in_peer(peer: BlockingClient) -> None:
        for event in peer.watch(request, event_type, timeout=_TIMEOUT, until=until):
            tell(event)

    def in_ledger() -> None:
        from .offline import watch_ledger

        watch_ledger(home, request, tell)

    _reach(home, in_peer, in_ledger)


def _reach(
    home: Home, in_peer: Callable[[BlockingClient], Result], in_ledger: Callable[[], Result], *, reads: bool = False
) -> Result:
    """Query the running peer, otherwise the ledger. A request that only `reads` creates no home and waits
    for no start.
    """
    _prepare(home, reads=reads)
    deadline = time.monotonic() + home.patience
    while True:
        connection = connect(home.socket_path)
        if connection is not None:
            with connection:
                return in_peer(BlockingClient(connection))
        if is_starting(home.start_path):
            if reads or time.monotonic() > deadline:
                raise PeerError(
                    f"the peer of {home.path} is starting", code="starting", hint="try again in some seconds"
                )
            time.sleep(RETRY_INTERVAL)
            continue
        try:
            return in_ledger()
        except LedgerInUseError:
            # A peer that is starting answers soon, and another command ends soon.
            if time.monotonic() > deadline:
                raise
            time.sleep(RETRY_INTERVAL)


def _prepare(home: Home, *, reads: bool) -> None:
    """Create the home; for a request that only `reads`, check whether it exists.

    Raises PeerError `bad_home`, and `no_peer` if there is nothing to read.
    """
    if not reads or (home.path.exists() and not home.path.is_dir()):
        home.prepare()
    elif not (
        home.key_path.exists() or home.ledger_path.exists() or home.socket_path.exists() or is_starting(home.start_path)
    ):
        raise PeerError(
            f"there is no peer in {home.path}",
            code="no_peer",
            hint="choose another --home; `dms-peer onboard` and `dms-peer run` make a peer",
        )
    else:
        home.prepare()


def read_status(home: Home) -> StatusAnswer:
    """What is onboarded, promised and free, and the holders. Raises what `ask` raises."""
    return ask(home, StatusRequest(), StatusAnswer)


def read_peers(home: Home, limit: int = 100) -> PeersAnswer:
    """The peers that the running peer knows, or that the last one saved; none in a home without a peer.

    Raises PeerError.
    """
    if home.path.exists():
        home.prepare()
    connection = connect(home.socket_path)
    if connection is not None:
        with connection:
            return BlockingClient(connection).call(PeersRequest(limit=limit), PeersAnswer, timeout=_TIMEOUT)
    # Loaded only if no peer runs, because querying a peer must not take the time of this import.
    from ..discovery.peers_file import PeersFile
    from .peer_list import known_row, list_peers

    now = time.time()
    # Loading the file creates another one, for its lock.
    known = PeersFile(home.peers_path).load() if home.peers_path.exists() else {}
    rows = {peer_id: known_row(peer, now) for peer_id, peer in known.items()}
    return list_peers([rows], (), limit=limit, running=False)


def onboard_resources(home: Home, offer: Offer, machine: str | None = None, *, dry_run: bool = False) -> OnboardAnswer:
    """Offer a part of the machine. A dry run only checks. Raises what `ask` raises."""
    expected = None
    if machine is not None and machine != MEASURED:
        expected = home.machine(machine)
    return ask(home, OnboardRequest(offer=offer, machine=expected, dry_run=dry_run), OnboardAnswer, machine)


def withdraw_offer(home: Home, *, drain: bool, tell: Callable[[int], None]) -> OnboardAnswer:
    """Offer nothing any more. With `drain`, first wait until all leases have ended; `tell` gets the number of leases
    left.
    """
    if drain:
        watch(home, DrainRequest(), DrainEvent, lambda event: tell(event.leases))
    return ask(home, OffboardRequest(), OnboardAnswer)


def evict_leases(home: Home, request: EvictRequest) -> EvictAnswer:
    """End leases for the owner. Raises what `ask` raises."""
    return ask(home, request, EvictAnswer)


def release_own_lease(home: Home, lease: str) -> EndedLease:
    """End a lease of this home's ledger as its holder would. Raises what `ask` raises."""
    return ask(home, ReleaseLeaseRequest(lease=lease), EndedLease)


def start_drain(home: Home, *, evict: bool, notice: float) -> DrainAnswer:
    """Accept no new commitments. With `evict`, all leases end `notice` seconds from now. Raises what `ask` raises."""
    return ask(home, StartDrainRequest(evict=evict, notice=notice), DrainAnswer)


def await_drained(home: Home, tell: Callable[[int], None], until: float) -> None:
    """Wait until all leases of the running peer have ended, at most until `until` (of `time.monotonic`). Reports each
    change.

    Raises DeadlineExceededError at that time, and what `ask` raises.
    """
    watch(home, DrainRequest(), DrainEvent, lambda event: tell(event.leases), until=until)


def cancel_drain(home: Home) -> CancelDrainAnswer:
    """Accept new commitments again. Raises what `ask` raises."""
    return ask(home, CancelDrainRequest(), CancelDrainAnswer)


def read_history(home: Home, limit: int) -> HistoryAnswer:
    """The newest entries of the history, from as many answers as necessary."""
    entries: list[HistoryRow] = []
    while len(entries) < limit:
        before = entries[-1].number if entries else None
        page = ask(home, HistoryRequest(limit=min(1000, limit - len(entries)), before=before), HistoryAnswer)
        entries += page.entries
        if not page.entries:
            break
    return HistoryAnswer(entries=tuple(entries))


def run_audit(home: Home, *, repair: bool) -> AuditAnswer:
    """Compares the ledger with its file and the operating system. Raises what `ask` raises."""
    return ask(home, AuditRequest(repair=repair), AuditAnswer)


def revoke_grants(home: Home, grants: tuple[str, ...], reason: str) -> RevokeAnswer:
    """Revoke grants by the ids of their blocks. Raises UsageError and what `ask` raises."""
    for grant in grants:
        if not re.fullmatch(r"[0-9a-f]{32}", grant):
            raise UsageError(f"{grant[:64]!r} is no id of a grant", code="usage", hint="see `dms-peer token inspect`")
    if not reason.isprintable() or len(reason) > 200:
        raise UsageError("the reason is not one line of at most 200 characters", code="usage", hint="write it shorter")
    return ask(home, RevokeRequest(grants=grants, reason=reason), RevokeAnswer)


def read_revocations(home: Home) -> RevocationsAnswer:
    """The grants that were revoked last. Raises what `ask` raises."""
    return ask(home, RevocationsRequest(), RevocationsAnswer)


def read_hardware(home: Home, machine: str | None) -> MachineResources:
    """What the machine has, or what the file describes. Raises MachineFileError."""
    return home.machine(MEASURED if machine is None else machine)


def read_machine_of(home: Home, machine: str | None) -> MachineResources:
    """The machine of this home: the given, the remembered, or otherwise the measured one. Raises MachineFileError."""
    home.prepare()
    return home.machine(machine)
