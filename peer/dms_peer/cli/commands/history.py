"""dms-peer history"""

from __future__ import annotations

from functools import partial
from typing import Annotated

import typer

from ..options.common import DebugOption, FullOption, HomeOption, JSONOption, home_at
from ..output import show_answer

__all__ = ["history"]


def history(
    limit: Annotated[int, typer.Option("--limit", min=1, max=100_000, help="Number of entries.")] = 50,
    full: FullOption = False,
    home: HomeOption = None,
    as_json: JSONOption = False,
    debug: DebugOption = False,
) -> None:
    """Show what happened to this machine's resources and leases, newest first.

    Example: dms-peer history --limit 20
    """
    from ...owner.client import read_history
    from ..tables.owner import show_history

    show_answer(as_json, partial(show_history, full=full), read_history(home_at(home), limit))
