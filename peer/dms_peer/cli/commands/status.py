"""dms-peer status"""

from __future__ import annotations

from ..fast_path import show_own_status
from ..options.common import DebugOption, HomeOption, JSONOption, home_at

__all__ = ["status"]


def status(home: HomeOption = None, as_json: JSONOption = False, debug: DebugOption = False) -> None:
    """Show what is onboarded, promised and free, and to whom."""
    show_own_status(home_at(home), as_json)
