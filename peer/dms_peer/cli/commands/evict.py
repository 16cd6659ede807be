"""dms-peer evict"""

from __future__ import annotations

from typing import Annotated

import typer

from ..options.common import DebugOption, FullOption, HomeOption, JSONOption, duration, home_at
from ..output import show_answer

__all__ = ["evict"]


def evict(
    lease: Annotated[
        list[str] | None,
        typer.Argument(metavar="[LEASE]...", help="Leases by id, or by the beginning of an id.", show_default=False),
    ] = None,
    holder: Annotated[
        str | None, typer.Option("--holder", metavar="PEER", help="All leases of this peer (an id or its beginning).")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="All leases.")] = False,
    notice: Annotated[
        float | None,
        typer.Option(
            "--notice",
            parser=duration,
            metavar="TIME",
            help="End them after this time, such as 10m; a repeat gives no more time.",
            show_default="0, at once",
        ),
    ] = None,
    reason: Annotated[
        str, typer.Option("--reason", metavar="TEXT", help="What the holders are told, at most 200 characters.")
    ] = "",
    full: FullOption = False,
    home: HomeOption = None,
    as_json: JSONOption = False,
    debug: DebugOption = False,
) -> None:
    """End leases of any state, whether the peer runs or not.

    Their holders are told `evicted` and the reason. A job gets the owner's grace to end; its lease counts until then.
    Example: dms-peer evict 3f2a91c0 --notice 10m --reason maintenance
    """
    from functools import partial

    from ...owner.client import evict_leases
    from ...owner.messages import EvictRequest
    from ..tables.owner import show_eviction

    chosen = [bool(lease), holder is not None, everything]
    if sum(chosen) != 1:
        raise typer.BadParameter("name leases, or give --holder PEER, or --all")
    if not reason.isprintable() or len(reason) > 200:
        raise typer.BadParameter("a reason is one line of at most 200 characters", param_hint="--reason")
    request = EvictRequest(
        leases=tuple(lease or ()), holder=holder, everything=everything, reason=reason, notice=notice or 0.0
    )
    show_answer(as_json, partial(show_eviction, full=full), evict_leases(home_at(home), request))
