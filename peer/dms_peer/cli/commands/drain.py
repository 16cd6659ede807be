"""dms-peer drain"""

from __future__ import annotations

import time
from typing import Annotated

import typer

from dms_protocols.errors import DeadlineExceededError

from ...errors import PeerError
from ...home.home import Home
from ...owner.messages import DrainAnswer
from ..options.common import DebugOption, HomeOption, JSONOption, duration, home_at
from ..output import comment, show_answer

__all__ = ["drain"]


def drain(
    deadline: Annotated[
        float | None,
        typer.Option(
            "--deadline", parser=duration, metavar="TIME", help="Wait at most this time.", show_default="no limit"
        ),
    ] = None,
    evict: Annotated[
        bool, typer.Option("--evict", help="End what is left at the deadline; without --deadline, end it now.")
    ] = False,
    cancel: Annotated[
        bool, typer.Option("--cancel", help="Take new commitments again; the notices of the drain end.")
    ] = False,
    home: HomeOption = None,
    as_json: JSONOption = False,
    debug: DebugOption = False,
) -> None:
    """Take no new commitments, and wait until all leases have ended.

    The drain goes on when this command is interrupted, until `onboard` or `drain --cancel`. It keeps its deadline,
    also when the peer is restarted.
    With --deadline and without --evict, exit code 1 says that leases are left.
    Example: dms-peer drain --deadline 2h --evict
    """
    from ...owner.client import cancel_drain, start_drain
    from ..tables.owner import show_cancelled_drain, show_drain

    place = home_at(home)
    if cancel:
        if evict or deadline is not None:
            raise typer.BadParameter("--cancel stands alone")
        show_answer(as_json, show_cancelled_drain, cancel_drain(place))
        return
    answer = start_drain(place, evict=evict, notice=deadline or 0.0)
    # A drain that goes on keeps its deadline, also over a restart of the peer.
    until = float("inf") if answer.deadline is None else time.monotonic() + answer.deadline - time.time()
    if answer.leases and answer.running:
        # Evicted leases end at the deadline, and the provider says so a moment later.
        answer = _wait(place, answer, until + 30 if evict else until)
    show_answer(as_json, show_drain, answer)


def _wait(home: Home, answer: DrainAnswer, until: float) -> DrainAnswer:
    from ...owner.client import await_drained

    left = [answer.leases]

    def tell(leases: int) -> None:
        left[0] = leases
        if leases:
            comment(f"draining: {_leases(leases)} not ended yet")

    try:
        await_drained(home, tell, until)
    except KeyboardInterrupt:
        comment("the drain goes on: nothing new is taken; `dms-peer drain --cancel` ends it")
        raise
    except DeadlineExceededError:
        raise PeerError(
            f"{_leases(left[0])} not ended by the deadline",
            code="still_promised",
            hint="the drain goes on; `dms-peer evict --all` ends them, `dms-peer drain --cancel` ends the drain",
        ) from None
    return DrainAnswer(leases=0, evicted=answer.evicted, running=True, deadline=answer.deadline)


def _leases(count: int) -> str:
    return "1 lease has" if count == 1 else f"{count} leases have"
