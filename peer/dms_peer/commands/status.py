"""dms-peer status"""

from __future__ import annotations

from .options import DebugOption, HomeOption, JSONOption, home_at
from .output import run_and_show

__all__ = ["status"]


def status(home: HomeOption = None, as_json: JSONOption = False, debug: DebugOption = False) -> None:
    """Show what is onboarded, promised and free, and to whom."""
    from ..owner import read_status
    from ..tables import show_status

    run_and_show(as_json, show_status, read_status, home_at(home))
