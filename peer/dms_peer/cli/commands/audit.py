"""dms-peer audit"""

from __future__ import annotations

from typing import Annotated

import typer

from ..options.common import DebugOption, HomeOption, JSONOption, home_at
from ..output import show_answer

__all__ = ["audit"]


def audit(
    repair: Annotated[
        bool,
        typer.Option(
            "--repair",
            help="End allocations whose processes are gone; reload the ledger where it differs.",
        ),
    ] = False,
    home: HomeOption = None,
    as_json: JSONOption = False,
    debug: DebugOption = False,
) -> None:
    """Compare the ledger with its file and with what the operating system shows. Example: dms-peer audit --repair"""
    from ...owner.client import run_audit
    from ..tables.owner import show_audit

    show_answer(as_json, show_audit, run_audit(home_at(home), repair=repair))
