"""The errors of the machine and the ledger.

    ResourcesError
    ├── AmountError            "bad_amount"      an invalid amount
    ├── MachineFileError       "bad_machine"     an invalid description of a machine
    ├── MachineInUseError      "machine_in_use"  peers of other homes offer the same resources
    ├── UsageUnknownError      "usage_unknown"   the machine's use has not been sampled yet
    ├── RequestError           the request cannot be granted: see `refusals`
    ├── LeaseError             the id, the holder or the state of a lease does not match
    │   ├── ConflictError      "conflict"        the same id with other contents
    │   ├── NotCommittedError  "not_committed"   no commitment has that id
    │   ├── NotAllocatedError  "not_allocated"   no allocation has that id
    │   ├── ExpiredError       "expired"         the deadline passed; another lease may have the capacity
    │   ├── EvictedError       "evicted"         the owner ended the lease; the message has the reason
    │   ├── EndedError         "ended"           the lease was released; its id cannot be used again
    │   ├── StaleFenceError    "stale_fence"     the fencing number is not the lease's
    │   └── NotHolderError     "not_holder"      the lease belongs to another holder
    ├── OnboardingError        "onboarding"      more than the machine has, or less than is promised
    ├── EventsGoneError        "events_gone"     not all events after that number are kept
    ├── StillPromisedError     "still_promised"  offboarding while leases exist
    └── StorageError           "storage"         the disk failed; nothing was promised
        ├── LedgerInUseError   "ledger_in_use"   another process has the ledger open
        ├── LedgerDamagedError "ledger_damaged"  the file fails its integrity check
        └── LedgerVersionError "ledger_version"  a newer program has written the file

Every error has a stable `code`. The protocols pass it on unchanged.
"""

from __future__ import annotations

from typing import ClassVar

__all__ = [
    "AmountError",
    "ConflictError",
    "EndedError",
    "EventsGoneError",
    "EvictedError",
    "ExpiredError",
    "LeaseError",
    "LedgerDamagedError",
    "LedgerInUseError",
    "LedgerVersionError",
    "MachineFileError",
    "MachineInUseError",
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
    """The base of all errors: a message for people, a stable `code` for programs, and a `hint` if the user can do
    something.
    """

    code: ClassVar[str] = "resources"

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class AmountError(ResourcesError, ValueError):
    """An invalid size, number of cores or duration. `value` is the text or number."""

    code = "bad_amount"

    def __init__(self, message: str, *, value: str = "", hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.value = value


class MachineFileError(ResourcesError):
    """The description of a machine cannot be read, or is invalid."""

    code = "bad_machine"


class MachineInUseError(ResourcesError):
    """The running peers of this machine's homes would together offer more than it has."""

    code = "machine_in_use"


class UsageUnknownError(ResourcesError):
    """The machine's use was requested before its first sample."""

    code = "usage_unknown"


class LeaseError(ResourcesError):
    """The state or the holder of a lease is not what the caller expects. `lease_id` names the lease."""

    code = "lease"

    def __init__(self, message: str, *, lease_id: str, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.lease_id = lease_id


class ConflictError(LeaseError):
    """The same id was used with other contents."""

    code = "conflict"


class NotCommittedError(LeaseError):
    """No commitment has this id."""

    code = "not_committed"


class NotAllocatedError(LeaseError):
    """No allocation has this id."""

    code = "not_allocated"


class ExpiredError(LeaseError):
    """The deadline of the commitment passed before this request."""

    code = "expired"


class EndedError(LeaseError):
    """The lease of this id was released. The id cannot be used again."""

    code = "ended"


class EvictedError(LeaseError):
    """The owner of the machine ended this lease. The message has the owner's reason."""

    code = "evicted"


class StaleFenceError(LeaseError):
    """The fencing number is not the lease's: the request is about an earlier lease."""

    code = "stale_fence"


class NotHolderError(LeaseError):
    """The lease belongs to another holder."""

    code = "not_holder"


class OnboardingError(ResourcesError):
    """Onboarding more than the machine has, or less than is promised. `problems` has a sentence for each."""

    code = "onboarding"

    def __init__(self, problems: tuple[str, ...], *, hint: str = "") -> None:
        super().__init__("; ".join(problems), hint=hint)
        self.problems = problems


class EventsGoneError(ResourcesError):
    """The ledger does not have all events after the requested number. The reader has to list the leases again."""

    code = "events_gone"


class StillPromisedError(ResourcesError):
    """Offboarding while leases exist. `lease_ids` names some of the leases; `count` is their number."""

    code = "still_promised"

    def __init__(self, message: str, *, lease_ids: tuple[str, ...], count: int, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.lease_ids = lease_ids
        self.count = count


class StorageError(ResourcesError):
    """The ledger's storage failed. The change did not take place."""

    code = "storage"


class LedgerInUseError(StorageError):
    """Another process has this ledger open."""

    code = "ledger_in_use"


class LedgerDamagedError(StorageError):
    """The ledger's file fails its integrity check. The file was not changed."""

    code = "ledger_damaged"


class LedgerVersionError(StorageError):
    """A newer version of this program has written the ledger, or the file is no ledger."""

    code = "ledger_version"
