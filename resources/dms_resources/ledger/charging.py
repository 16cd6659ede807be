"""Checks that each request of a decision, together with those before it, stays within the allowances."""

from __future__ import annotations

from ..components import Resources
from ..refusals import AccountError, GrantExpiredError, ShareError
from .accounts import NOTHING, Allowance, HolderShare, Outstanding, Sums
from .leases import Lease, LeaseRequest

__all__ = ["Charges", "outlasting", "too_long"]


class Charges:
    """The sums as they would be after the requests that were charged so far. The sums of the ledger do not change.

    Only an increase is checked: a commitment that replaces its hold is not refused if the share was lowered meanwhile.
    `next_end` is the time in seconds until the next commitment ends, or None.
    """

    def __init__(self, sums: Sums, next_end: float | None = None) -> None:
        self._sums = sums
        self._next_end = next_end
        self._everything = sums.everything
        self._holders: dict[str, Outstanding] = {}
        self._accounts: dict[str, Outstanding] = {}

    def charge(self, request: LeaseRequest, resources: Resources, wall: float, before: Lease | None = None) -> None:
        """Charge a request that would get these resources. `before` is the lease that it replaces.

        Raises AccountError or ShareError.
        """
        if request.until is not None and wall + request.ttl > request.until:
            raise outlasting(request.ttl, request.until - wall)
        if request.share is not None and request.ttl > request.share.longest_ttl:
            raise too_long(request.ttl, request.share.longest_ttl)
        accounts = self._charged_accounts(request, resources, before)
        if before is None and request.share is not None:
            self._charge_share(request.share, request.holder, resources)
        self._accounts |= accounts

    def _charged_accounts(
        self, request: LeaseRequest, resources: Resources, before: Lease | None
    ) -> dict[str, Outstanding]:
        charged: dict[str, Outstanding] = {}
        for account in request.accounts:
            if before is not None and account.id in before.accounts:
                continue
            outstanding = self._accounts.get(account.id) or self._sums.by_account.get(account.id, NOTHING)
            charged[account.id] = outstanding = outstanding.plus(resources, 1)
            problems = account.allowance.exceeded_by(outstanding)
            if problems and account.shared:
                raise self._too_much(account.shared, problems, account.allowance, resources)
            if problems:
                raise AccountError(f"more than the grant {account.id} allows: {'; '.join(problems)}", problems=problems)
        return charged

    def _charge_share(self, share: HolderShare, holder: str, resources: Resources) -> None:
        own = (self._holders.get(holder) or self._sums.by_holder.get(holder, NOTHING)).plus(resources, 1)
        everything = self._everything.plus(resources, 1)
        for allowance, outstanding, whose in (
            (share.holder, own, "one peer"),
            (share.everybody, everything, "all peers together"),
        ):
            problems = allowance.exceeded_by(outstanding)
            if problems:
                raise self._too_much(whose, problems, allowance, resources)
        self._holders[holder], self._everything = own, everything

    def _too_much(
        self, whose: str, problems: tuple[str, ...], allowance: Allowance, resources: Resources
    ) -> ShareError:
        # If a request alone exceeds the allowance, no other lease that ends would help.
        wait = None if allowance.exceeded_by(NOTHING.plus(resources, 1)) else self._next_end
        return ShareError(f"more than {whose} may have: {'; '.join(problems)}", problems=problems, retry_after=wait)


def too_long(ttl: float, longest: float) -> ShareError:
    """The error of a commitment for a longer time than the owner allows."""
    sentence = f"it would last {ttl:.0f} s, {longest:.0f} s are allowed"
    return ShareError(sentence, problems=(sentence,))


def outlasting(ttl: float, left: float) -> AccountError:
    """The error of a commitment that would outlast the grants to which it is charged; they end in `left` seconds."""
    if left <= 0:
        sentence = f"the grant ended {-left:.0f} s ago"
        return GrantExpiredError(sentence, problems=(sentence,))
    sentence = f"it would last {ttl:.0f} s but the grant ends in {max(0.0, left):.0f} s"
    return AccountError(sentence, problems=(sentence,))
