"""dms-peer history"""

from __future__ import annotations

from typing import Annotated

import typer

from ..options.common import DebugOption, HomeOption, JSONOption, home_at
from ..output import show_answer

__all__ = ["history"]


def history(
    limit: Annotated[int, typer.Option("--limit", min=1, max=100_000, help="How many entries.")] = 50,
    home: HomeOption = None,
    as_json: JSONOption = False,
    debug: DebugOption = False,
) -> None:
    """Show what happened to this machine's resources, newest first."""
    from ...owner.client import read_history
    from ..tables.common import show_history

    show_answer(as_json, show_history, read_history(home_at(home), limit))
