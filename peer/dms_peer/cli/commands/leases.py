"""dms-peer leases"""

from __future__ import annotations

from functools import partial
from typing import Annotated

import typer

from ..options.common import (
    DebugOption,
    FullOption,
    HomeOption,
    JSONOption,
    TokenOption,
    home_at,
)
from ..output import show_answer

__all__ = ["leases"]


def leases(
    offline: Annotated[
        bool, typer.Option("--offline", help="Show what is known in this home, and query no provider.")
    ] = False,
    full: FullOption = False,
    token: TokenOption = None,
    home: HomeOption = None,
    as_json: JSONOption = False,
    debug: DebugOption = False,
) -> int:
    """Show the leases that this home holds at all providers.

    Ends with 1 when a provider did not answer. Example: dms-peer leases
    """
    from ..remote import list_leases
    from ..tables.leases import show_home_leases

    report = list_leases(home_at(home), offline=offline, token=token)
    show_answer(as_json, partial(show_home_leases, full=full), report)
    return 1 if report.unanswered else 0
