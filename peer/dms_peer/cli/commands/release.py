"""dms-peer release"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from msgspec.structs import asdict

from ...errors import PeerError
from ...home.home import Home
from ..options.common import (
    DebugOption,
    FenceOption,
    HomeOption,
    JSONOption,
    TokenOption,
    home_at,
    lease_at,
)
from ..output import show_answer

if TYPE_CHECKING:
    from ...requesting.reports import PeerEndedLease

__all__ = ["release"]


def release(
    lease: Annotated[
        list[str] | None,
        typer.Argument(metavar="[PEER] LEASE", help="The lease, by its id or the start of one that `leases` shows."),
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Release all leases of this home, at all peers.")] = False,
    fence: FenceOption = None,
    token: TokenOption = None,
    home: HomeOption = None,
    as_json: JSONOption = False,
    debug: DebugOption = False,
) -> int:
    """Release a lease, committed or allocated, or all of them.

    Without PEER: a lease that this home holds, else one of its own ledger, which its owner may release for the holder
    (`evict` tells the holder why).

    With --all, ends with 1 when a lease was not released. Example: dms-peer release 3f2a9c1b
    """
    from ..remote import release_all, release_lease
    from ..tables.common import show_release
    from ..tables.leases import show_released

    if everything == bool(lease):
        raise typer.BadParameter("give one lease ([PEER] LEASE), or --all")
    if everything:
        if fence is not None:
            raise typer.BadParameter("--fence is for one lease")
        report = release_all(home_at(home), token)
        show_answer(as_json, show_released, report)
        return 1 if report.failed else 0
    peer, lease_id = lease_at(lease or [])
    try:
        show_answer(as_json, show_release, release_lease(home_at(home), peer, lease_id, fence, token))
    except PeerError as error:
        if error.code != "unknown_lease" or peer is not None or fence is not None:
            raise
        ended = _released_here(home_at(home), lease_id)
        if ended is None:
            raise
        show_answer(as_json, show_release, ended)
    return 0


def _released_here(home: Home, lease_id: str) -> PeerEndedLease | None:
    """The lease of this home's own ledger, released as its holder would; None where there is none."""
    from ...owner.client import read_status, release_own_lease
    from ...requesting.reports import PeerEndedLease

    if not home.ledger_path.exists():
        return None
    status = read_status(home)
    if not any(one.lease_id.startswith(lease_id) for one in status.leases):
        return None
    return PeerEndedLease(**asdict(release_own_lease(home, lease_id)), peer_id=status.peer_id)
