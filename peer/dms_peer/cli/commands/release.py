"""dms-peer release"""

from __future__ import annotations

from typing import Annotated

import typer

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
    show_answer(as_json, show_release, release_lease(home_at(home), peer, lease_id, fence, token))
    return 0
