"""dms-peer offboard"""

from __future__ import annotations

from typing import Annotated

import typer

from ..options.common import DebugOption, HomeOption, JSONOption, home_at
from ..output import comment, show_answer

__all__ = ["offboard"]


def offboard(
    drain: Annotated[
        bool, typer.Option("--drain", help="Take nothing new, and first wait until all leases have ended.")
    ] = False,
    home: HomeOption = None,
    as_json: JSONOption = False,
    debug: DebugOption = False,
) -> None:
    """Offer nothing to the network any more.

    Refused while leases have not ended, or their jobs still run: see `dms-peer drain` and `dms-peer evict`.
    Example: dms-peer offboard --drain
    """
    from ...owner.client import withdraw_offer
    from ..tables.owner import show_offer

    try:
        answer = withdraw_offer(home_at(home), drain=drain, tell=_tell)
    except KeyboardInterrupt:
        comment("the drain goes on: nothing new is taken; `dms-peer drain --cancel` ends it")
        raise
    show_answer(as_json, show_offer, answer)


def _tell(leases: int) -> None:
    if leases:
        comment(f"draining: {leases} {'lease has' if leases == 1 else 'leases have'} not ended yet")
