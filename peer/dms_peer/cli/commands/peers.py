"""dms-peer peers"""

from __future__ import annotations

from typing import Annotated

import typer

from ..options.common import DebugOption, HomeOption, JSONOption, home_at
from ..output import show_answer

__all__ = ["peers"]


def peers(
    limit: Annotated[int, typer.Option("--limit", min=1, max=1000, help="How many peers.")] = 100,
    home: HomeOption = None,
    as_json: JSONOption = False,
    debug: DebugOption = False,
) -> None:
    """Show the peers that this one knows, what each had free, and how old that is.

    Example: dms-peer peers --json
    """
    from ...owner.client import read_peers
    from ..tables.search import show_peers

    show_answer(as_json, show_peers, read_peers(home_at(home), limit))
