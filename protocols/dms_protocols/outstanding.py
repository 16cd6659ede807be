"""What callers may have outstanding at this peer: their share of what is onboarded, and for how long."""

from __future__ import annotations

from dms_resources.components import OnboardedResources
from dms_resources.ledger.accounts import Allowance, HolderShare
from dms_resources.ledger.charging import too_long
from dms_resources.manager import ResourceManager

from .rpc.limits import Share, Shares
from .rpc.operations import Caller

__all__ = ["OutstandingShares"]

_WHOLE = 1000


class OutstandingShares:
    """The shares of a peer's callers; those on this machine's own socket have no bounds but the machine's."""

    def __init__(self, manager: ResourceManager, shares: Shares) -> None:
        self._manager = manager
        self._shares = shares
        self._onboarded: OnboardedResources | None = None
        self._share = self._share_of(None)

    def of(self, caller: Caller) -> HolderShare | None:
        """What this caller, and all together, may have outstanding."""
        if caller.local:
            return None
        onboarded = self._manager.get_onboarded_resources()
        if onboarded is not self._onboarded:
            self._onboarded, self._share = onboarded, self._share_of(onboarded)
        return self._share

    def check_ttl(self, ttl: float, caller: Caller) -> None:
        """Raises ShareError when `ttl` seconds more are longer than callers may have."""
        if ttl > self._share.longest_ttl and not caller.local:
            raise too_long(ttl, self._share.longest_ttl)

    def _share_of(self, onboarded: OnboardedResources | None) -> HolderShare:
        return HolderShare(
            holder=_allowance(self._shares.peer, onboarded),
            everybody=_allowance(self._shares.total, onboarded),
            longest_ttl=min(self._shares.peer.longest_ttl, self._shares.total.longest_ttl),
        )


def _allowance(share: Share, onboarded: OnboardedResources | None) -> Allowance:
    if onboarded is None or share.capacity == _WHOLE:
        # The ledger itself keeps to what is onboarded.
        return Allowance(leases=share.commitments)
    return Allowance(
        millicores=_part(onboarded.cpu.cores.millicores, share),
        ram=_part(onboarded.ram.size, share),
        disk=_part(onboarded.disk.size, share),
        vram=_part(sum(gpu.vram for gpu in onboarded.gpus), share),
        leases=share.commitments,
    )


def _part(amount: int, share: Share) -> int:
    return amount * share.capacity // _WHOLE
