"""What callers may have outstanding at this peer: how large a part of what is onboarded, and for how long.

A stranger is a caller that the access rules do not list and that sends no token. What strangers at the same address
have outstanding is added up, because one machine can have any number of peer ids.
"""

from __future__ import annotations

from dms_resources.components import OnboardedResources
from dms_resources.ledger.accounts import Account, Allowance, HolderShare
from dms_resources.ledger.charging import too_long
from dms_resources.manager import ResourceManager
from dms_resources.units import GIB

from .rpc.limits import Share, Shares
from .rpc.operations import Caller

__all__ = ["OutstandingShares"]

_WHOLE = 1000
# Strangers always get at least this much: in a smaller part of a small offer no job could run.
_LEAST_MILLICORES = 1000
_LEAST_BYTES = GIB
_STRANGERS = "all peers at one address, unknown to the owner,"


class OutstandingShares:
    """The shares of a peer's callers. Callers on this machine's own socket are limited by the machine alone."""

    def __init__(self, manager: ResourceManager, shares: Shares) -> None:
        self._manager = manager
        self._shares = shares
        self._onboarded: OnboardedResources | None = None
        self._share = self._share_of(None)
        self._strangers: tuple[OnboardedResources | None, Allowance] | None = None

    def of(self, caller: Caller) -> HolderShare | None:
        """What this caller, and what all callers together, may have outstanding. None if there is no limit."""
        if caller.local:
            return None
        onboarded = self._manager.get_onboarded_resources()
        if onboarded is not self._onboarded:
            self._onboarded, self._share = onboarded, self._share_of(onboarded)
        return self._share

    def accounts(self, caller: Caller) -> tuple[Account, ...]:
        """The accounts to which a lease of this caller is charged: its grants or, for a stranger, the account of its
        address.
        """
        if caller.grants is not None:
            return caller.grants.accounts
        if caller.local or caller.known or self._shares.stranger_capacity == _WHOLE:
            return ()
        allowance = self._strangers_allowance()
        return (Account(id=f"strangers at {caller.group or caller.peer_id}", allowance=allowance, shared=_STRANGERS),)

    def _strangers_allowance(self) -> Allowance:
        onboarded = self._manager.get_onboarded_resources()
        if self._strangers is None or onboarded is not self._strangers[0]:
            self._strangers = (onboarded, _stranger_allowance(self._shares.stranger_capacity, onboarded))
        return self._strangers[1]

    def check_ttl(self, ttl: float, caller: Caller) -> None:
        """Raise ShareError if a commitment of this caller may not last for `ttl` seconds more."""
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
        # The ledger itself never commits more than what is onboarded.
        return Allowance(leases=share.commitments)
    return Allowance(
        millicores=_part(onboarded.cpu.cores.millicores, share),
        ram=_part(onboarded.ram.size, share),
        disk=_part(onboarded.disk.size, share),
        vram=_part(sum(gpu.vram for gpu in onboarded.gpus), share),
        leases=share.commitments,
    )


def _stranger_allowance(thousandths: int, onboarded: OnboardedResources | None) -> Allowance:
    if onboarded is None:
        return Allowance()
    gpus = sorted((gpu.vram for gpu in onboarded.gpus), reverse=True)
    count = max(1, len(gpus) * thousandths // _WHOLE)

    def part(amount: int, least: int) -> int:
        return max(least, amount * thousandths // _WHOLE)

    return Allowance(
        millicores=part(onboarded.cpu.cores.millicores, _LEAST_MILLICORES),
        ram=part(onboarded.ram.size, _LEAST_BYTES),
        disk=part(onboarded.disk.size, _LEAST_BYTES),
        gpus=count,
        vram=sum(gpus[:count]),
    )


def _part(amount: int, share: Share) -> int:
    return amount * share.capacity // _WHOLE
