"""dms-peer allocate"""

from __future__ import annotations

from ..options.common import (
    DebugOption,
    FenceOption,
    HomeOption,
    JSONOption,
    LeaseArguments,
    TokenOption,
    home_at,
    lease_at,
)
from ..output import show_answer

__all__ = ["allocate"]


def allocate(
    lease: LeaseArguments,
    fence: FenceOption = None,
    token: TokenOption = None,
    home: HomeOption = None,
    as_json: JSONOption = False,
    debug: DebugOption = False,
) -> None:
    """Turn a commitment into an allocation.

    Example: dms-peer allocate 3f2a9c1b
    """
    from ..remote import allocate_lease
    from ..tables.common import show_lease

    peer, lease_id = lease_at(lease)
    show_answer(as_json, show_lease, allocate_lease(home_at(home), peer, lease_id, fence, token))
