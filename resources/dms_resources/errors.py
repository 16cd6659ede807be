"""What can go wrong in the machine and in the ledger.

    ResourcesError
    ├── AmountError            "bad_amount"      an amount that is none
    ├── MachineFileError       "bad_machine"     a machine description that cannot be read
    ├── UsageUnknownError      "usage_unknown"   the machine's use has not been sampled yet
    ├── RequestError           the request cannot be granted; asking again unchanged may help later
    │   ├── InsufficientError  "insufficient"    with every dimension that falls short
    │   │   └── PhysicalError  "physical"        the ledger has it, the machine is short of it now
    │   ├── DrainingError      "draining"        no new commitments while the machine drains
    │   ├── NotOnboardedError  "not_onboarded"   the owner offers nothing
    │   ├── WindowError        "window"          it would outlive what the owner's windows allow
    │   ├── HoldLimitError     "hold_limit"      more held than the owner allows for bids
    │   ├── ShareError         "share_exceeded"  more outstanding than the owner allows one holder, or all
    │   └── AccountError       "token_exceeded"  more outstanding than a grant allows, or for longer
    ├── LeaseError             the id, its holder or its state are not what the caller thinks
    │   ├── ConflictError      "conflict"        the same id with other contents
    │   ├── NotCommittedError  "not_committed"   no commitment of that id
    │   ├── NotAllocatedError  "not_allocated"   no allocation of that id
    │   ├── ExpiredError       "expired"         the deadline passed; the capacity may be somebody else's
    │   ├── EndedError         "ended"           the id was released; it is not given out again
    │   ├── StaleFenceError    "stale_fence"     a fencing number that is not the lease's
    │   └── NotHolderError     "not_holder"      the lease is somebody else's
    ├── OnboardingError        "onboarding"      above the machine, or below what is promised
    ├── StillPromisedError     "still_promised"  offboarding while something is promised
    └── StorageError           "storage"         the disk refuses; nothing was promised
        ├── LedgerInUseError   "ledger_in_use"   another process has it open
        ├── LedgerDamagedError "ledger_damaged"  the file fails its integrity check
        └── LedgerVersionError "ledger_version"  written by a newer program

Every error has a stable `code`; the protocols pass it on unchanged.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from .demands import Shortage

__all__ = [
    "AccountError",
    "AmountError",
    "ConflictError",
    "DrainingError",
    "EndedError",
    "ExpiredError",
    "HoldLimitError",
    "InsufficientError",
    "LeaseError",
    "LedgerDamagedError",
    "LedgerInUseError",
    "LedgerVersionError",
    "MachineFileError",
    "NotAllocatedError",
    "NotCommittedError",
    "NotHolderError",
    "NotOnboardedError",
    "OnboardingError",
    "PhysicalError",
    "RequestError",
    "ResourcesError",
    "ShareError",
    "StaleFenceError",
    "StillPromisedError",
    "StorageError",
    "UsageUnknownError",
    "WindowError",
]


class ResourcesError(Exception):
    """The root: a message for people, a stable `code` for programs, `hint` where something can be done."""

    code: ClassVar[str] = "resources"

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class AmountError(ResourcesError, ValueError):
    """A size, a number of cores or a duration that cannot be one; `value` is what was written."""

    code = "bad_amount"

    def __init__(self, message: str, *, value: str = "", hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.value = value


class MachineFileError(ResourcesError):
    """A machine description that cannot be read or makes no sense."""

    code = "bad_machine"


class UsageUnknownError(ResourcesError):
    """The machine's use was asked for before its first sample."""

    code = "usage_unknown"


class RequestError(ResourcesError):
    """The request cannot be granted now.

    `retry_after` is the time in seconds until the next commitment ends or the next window opens,
    None where nothing is known to come free.
    """

    code = "request"

    def __init__(self, message: str, *, retry_after: float | None = None, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.retry_after = retry_after


class InsufficientError(RequestError):
    """Too little is free; `shortages` has every dimension that falls short with asked, free and total.

    `index` tells which demand of a group fell short.
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
    """The ledger has room but the machine itself is short of it at this time."""

    code = "physical"


class DrainingError(RequestError):
    """The owner drains this machine: what runs goes on, nothing new is taken."""

    code = "draining"


class NotOnboardedError(RequestError):
    """The owner offers nothing of this machine."""

    code = "not_onboarded"


class WindowError(RequestError):
    """The commitment would outlive the owner's window, or none is open."""

    code = "window"


class HoldLimitError(RequestError):
    """Holds are not allowed here, or this holder or all together hold as much as the owner allows."""

    code = "hold_limit"


class ShareError(RequestError):
    """The holder, or all together, would have more outstanding than the owner allows; `problems` has a clause for each
    dimension."""

    code = "share_exceeded"

    def __init__(self, message: str, *, problems: tuple[str, ...], retry_after: float | None = None) -> None:
        super().__init__(message, retry_after=retry_after, hint="release what is not needed, or ask for less")
        self.problems = problems


class AccountError(RequestError):
    """More would be outstanding than a grant allows, or for longer; `problems` has a clause for each dimension.

    A grant comes as a token, hence the code.
    """

    code = "token_exceeded"

    def __init__(self, message: str, *, problems: tuple[str, ...]) -> None:
        super().__init__(message, hint="release what is not needed, or ask for less")
        self.problems = problems


class LeaseError(ResourcesError):
    """A lease that is not in the state, or not with the holder, that the caller thinks; `lease_id` names it."""

    code = "lease"

    def __init__(self, message: str, *, lease_id: str, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.lease_id = lease_id


class ConflictError(LeaseError):
    """The same id was used with other contents."""

    code = "conflict"


class NotCommittedError(LeaseError):
    """No commitment of this id is known."""

    code = "not_committed"


class NotAllocatedError(LeaseError):
    """No allocation of this id is known."""

    code = "not_allocated"


class ExpiredError(LeaseError):
    """The commitment's deadline passed before this was asked."""

    code = "expired"


class EndedError(LeaseError):
    """The lease of this id was released; the id is not given out again."""

    code = "ended"


class StaleFenceError(LeaseError):
    """The fencing number is not the lease's: the caller speaks of an earlier lease."""

    code = "stale_fence"


class NotHolderError(LeaseError):
    """The lease belongs to another holder."""

    code = "not_holder"


class OnboardingError(ResourcesError):
    """Onboarding above the machine or below what is promised; `problems` has a sentence for each."""

    code = "onboarding"

    def __init__(self, problems: tuple[str, ...], *, hint: str = "") -> None:
        super().__init__("; ".join(problems), hint=hint)
        self.problems = problems


class StillPromisedError(ResourcesError):
    """Offboarding while capacity is promised; `lease_ids` names some of the leases, `count` counts them."""

    code = "still_promised"

    def __init__(self, message: str, *, lease_ids: tuple[str, ...], count: int, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.lease_ids = lease_ids
        self.count = count


class StorageError(ResourcesError):
    """The ledger's storage failed: what was asked did not become a promise."""

    code = "storage"


class LedgerInUseError(StorageError):
    """Another process has this ledger open."""

    code = "ledger_in_use"


class LedgerDamagedError(StorageError):
    """The ledger's file fails its integrity check; it was left as it is."""

    code = "ledger_damaged"


class LedgerVersionError(StorageError):
    """The ledger was written by a newer version of this program, or is no ledger."""

    code = "ledger_version"
