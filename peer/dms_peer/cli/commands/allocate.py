"""dms-peer allocate"""

from __future__ import annotations

from ..options.common import (
    AddressArgument,
    DebugOption,
    FenceOption,
    HomeOption,
    JSONOption,
    LeaseArgument,
    TokenOption,
    home_at,
)
from ..output import run_and_show

__all__ = ["allocate"]


def allocate(
    address: AddressArgument,
    lease_id: LeaseArgument,
    fence: FenceOption = None,
    token: TokenOption = None,
    home: HomeOption = None,
    as_json: JSONOption = False,
    debug: DebugOption = False,
) -> None:
    """Turn a commitment into an allocation, which lasts until it is released."""
    from ..remote import allocate_lease
    from ..tables.common import show_lease

    run_and_show(as_json, show_lease, allocate_lease, home_at(home), address, lease_id, fence, token)
