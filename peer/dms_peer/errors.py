"""Errors of the peer.

Every error says what is wrong (`message`) and what to do about it (`hint`), and has a stable lower_snake_case `code` on
which scripts may rely.

    PeerError           the base of the host's errors too (dms_host.errors)
    ├── UsageError      an invalid command line
    ├── AbortedError    the user answered no
    ├── StoppedError    a signal ended the command
    ├── OutputError     standard output or standard error cannot be written
    ├── DocumentError   a file that a person wrote is invalid at the line that it names
    ├── PolicyError     the owner's policy plug-in cannot be started, or did not decide
    └── RefusedError    a peer does not bid, and says why
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dms_host.errors import HostError

if TYPE_CHECKING:
    from dms_protocols.messages.bid import Refusal

__all__ = [
    "AbortedError",
    "DocumentError",
    "OutputError",
    "PeerError",
    "PolicyError",
    "RefusedError",
    "StoppedError",
    "UsageError",
]


PeerError = HostError
"""An operation of the peer failed. The host's errors are of this class too, so that one `except` catches both."""


class UsageError(PeerError):
    """An invalid command line. Code: `usage`."""


class AbortedError(PeerError):
    """The user answered a question with no. Code: `aborted`."""


class StoppedError(PeerError):
    """A signal ended the command; `number` is the signal's. Code: `stopped`."""

    def __init__(self, number: int) -> None:
        # Every command loads this module, but few are ended by a signal.
        import signal

        super().__init__(f"stopped by {signal.Signals(number).name}", code="stopped")
        self.number = number


class OutputError(PeerError):
    """Standard output or standard error cannot be written: the disk is full, or it is closed. Code: `output_failed`."""


class DocumentError(PeerError):
    """A file that cannot be used. `line` and `column` (from 1) and `field` say where it is invalid.

    Codes: `bad_config`, `bad_ensemble`, `bad_terms`, `bad_access`, `bad_limits`.
    """

    def __init__(self, message: str, *, code: str, hint: str = "", line: int, column: int, field: str) -> None:
        super().__init__(message, code=code, hint=hint)
        self.line = line
        self.column = column
        self.field = field


class PolicyError(PeerError):
    """The owner's policy plug-in cannot be used. Codes: `policy_unusable`, `policy_failed`."""


class RefusedError(PeerError):
    """A peer does not bid. `refusal` names every dimension that falls short. The code is the refusal's."""

    def __init__(self, peer_id: str, refusal: Refusal) -> None:
        super().__init__(f"{peer_id} refuses: {refusal.message}", code=refusal.code)
        self.peer_id = peer_id
        self.refusal = refusal
