"""dms-peer release"""

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

__all__ = ["release"]


def release(
    address: AddressArgument,
    lease_id: LeaseArgument,
    fence: FenceOption = None,
    token: TokenOption = None,
    home: HomeOption = None,
    as_json: JSONOption = False,
    debug: DebugOption = False,
) -> None:
    """Give a lease back, committed or allocated."""
    from ..remote import release_lease
    from ..tables.common import show_release

    run_and_show(as_json, show_release, release_lease, home_at(home), address, lease_id, fence, token)
