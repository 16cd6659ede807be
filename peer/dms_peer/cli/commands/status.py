"""dms-peer status"""

from __future__ import annotations

from ..fast_path import show_own_status
from ..options.common import DebugOption, FullOption, HomeOption, JSONOption, home_at

__all__ = ["status"]


def status(
    home: HomeOption = None, full: FullOption = False, as_json: JSONOption = False, debug: DebugOption = False
) -> None:
    """Show what this machine offers, what is promised to whom, and what is free.

    Example: dms-peer status --full
    """
    show_own_status(home_at(home), as_json, full)
