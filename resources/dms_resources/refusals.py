"""Why a request is not granted; asking again unchanged may help later.

RequestError
├── InsufficientError  "insufficient"    with every dimension that falls short
│   └── PhysicalError  "physical"        the ledger has it, the machine is short of it now
├── DrainingError      "draining"        no new commitments while the machine drains
├── NotOnboardedError  "not_onboarded"   the owner offers nothing
├── WindowError        "window"          it would outlive what the owner's windows allow
├── HoldLimitError     "hold_limit"      more held than the owner allows for bids
├── ShareError         "share_exceeded"  more outstanding than the owner allows one holder, or all
└── AccountError       "token_exceeded"  more outstanding than a grant allows, or for longer
    └── GrantExpiredError "token_expired"   the grant has ended
"""

from __future__ import annotations

from .demands import Shortage
from .errors import ResourcesError

__all__ = [
    "AccountError",
    "DrainingError",
    "GrantExpiredError",
    "HoldLimitError",
    "InsufficientError",
    "NotOnboardedError",
    "PhysicalError",
    "RequestError",
    "ShareError",
    "WindowError",
]


class RequestError(ResourcesError):
    """The request cannot be granted now.

    `retry_after` is the time in seconds until the next commitment ends or the next window opens; None if nothing is
    known to become free.
    """

    code = "request"

    def __init__(self, message: str, *, retry_after: float | None = None, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.retry_after = retry_after


class InsufficientError(RequestError):
    """Too little is free. `shortages` has every dimension that falls short, with the requested, free and total amount.

    `index` is the position of the demand in a group.
    """

    code = "insufficient"

    def __init__(
        self,
        message: str,
        *,
        shortages: tuple[Shortage, ...],
        retry_after: float | None = None,
        index: int = 0,
    ) -> None:
        super().__init__(message, retry_after=retry_after)
        self.shortages = shortages
        self.index = index


class PhysicalError(InsufficientError):
    """The ledger has free capacity, but the machine itself is short of it now."""

    code = "physical"


class DrainingError(RequestError):
    """The owner drains this machine: jobs continue, new commitments are refused."""

    code = "draining"


class NotOnboardedError(RequestError):
    """The owner offers no resources of this machine."""

    code = "not_onboarded"


class WindowError(RequestError):
    """The commitment would last longer than the owner's window, or no window is open."""

    code = "window"


class HoldLimitError(RequestError):
    """Holds are not allowed here, or this holder or all holders together hold as much as the owner allows."""

    code = "hold_limit"


class ShareError(RequestError):
    """The holder, or all holders together, would have more outstanding than the owner allows. `problems` has a clause
    for each dimension.
    """

    code = "share_exceeded"

    def __init__(self, message: str, *, problems: tuple[str, ...], retry_after: float | None = None) -> None:
        super().__init__(message, retry_after=retry_after, hint="release what is not needed, or ask for less")
        self.problems = problems


class AccountError(RequestError):
    """More would be outstanding than a grant allows, or for longer. `problems` has a clause for each dimension.

    The code names a token because grants are sent as tokens.
    """

    code = "token_exceeded"

    def __init__(self, message: str, *, problems: tuple[str, ...]) -> None:
        super().__init__(message, hint="release what is not needed, or ask for less")
        self.problems = problems


class GrantExpiredError(AccountError):
    """The grant has ended, after the token was checked or while the lease waited for its renewal."""

    code = "token_expired"
