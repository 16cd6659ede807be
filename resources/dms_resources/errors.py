"""What can go wrong in the machine and in the ledger.

    ResourcesError
    ├── AmountError            "bad_amount"      an amount that is none
    ├── MachineFileError       "bad_machine"     a machine description that cannot be read
    ├── UsageUnknownError      "usage_unknown"   the machine's use has not been sampled yet
    ├── RequestError           the request cannot be granted: see `refusals`
    ├── LeaseError             the id, its holder or its state are not what the caller thinks
    │   ├── ConflictError      "conflict"        the same id with other contents
    │   ├── NotCommittedError  "not_committed"   no commitment of that id
    │   ├── NotAllocatedError  "not_allocated"   no allocation of that id
    │   ├── ExpiredError       "expired"         the deadline passed; another lease may have the capacity
    │   ├── EvictedError       "evicted"         the owner ended the lease; the message has the owner's reason
    │   ├── EndedError         "ended"           the id was released; it is not given out again
    │   ├── StaleFenceError    "stale_fence"     a fencing number that is not the lease's
    │   └── NotHolderError     "not_holder"      the lease belongs to another holder
    ├── OnboardingError        "onboarding"      above the machine, or below what is promised
    ├── StillPromisedError     "still_promised"  offboarding while something is promised
    └── StorageError           "storage"         the disk refuses; nothing was promised
        ├── LedgerInUseError   "ledger_in_use"   another process has it open
        ├── LedgerDamagedError "ledger_damaged"  the file fails its integrity check
        └── LedgerVersionError "ledger_version"  written by a newer program

Every error has a stable `code`; the protocols pass it on unchanged.
"""

from __future__ import annotations

from typing import ClassVar

__all__ = [
    "AmountError",
    "ConflictError",
    "EndedError",
    "EvictedError",
    "ExpiredError",
    "LeaseError",
    "LedgerDamagedError",
    "LedgerInUseError",
    "LedgerVersionError",
    "MachineFileError",
    "NotAllocatedError",
    "NotCommittedError",
    "NotHolderError",
    "OnboardingError",
    "ResourcesError",
    "StaleFenceError",
    "StillPromisedError",
    "StorageError",
    "UsageUnknownError",
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


class EvictedError(LeaseError):
    """The owner of the machine ended this lease; the message has the owner's reason."""

    code = "evicted"


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
