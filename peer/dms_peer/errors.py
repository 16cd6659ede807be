"""Errors of the peer room.

Every error says what is wrong (`message`), what to do about it (`hint`) and carries a stable lower_snake_case `code`
that scripts may rely on. Whose fault it is decides the class; whether a retry helps is said by the class too.

    PeerError           the base of the host's errors too (dms_host.errors)
    ├── UsageError      a command line that makes no sense: the caller's to correct
    ├── AbortedError    the user does not want it after all
    ├── StoppedError    a signal ended it
    ├── DocumentError   a file that somebody wrote: theirs to correct at the line that is named
    ├── PolicyError     the owner's plug-in cannot be started, or did not decide
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
    "PeerError",
    "PolicyError",
    "RefusedError",
    "StoppedError",
    "UsageError",
]


PeerError = HostError
"""Something the peer could not do; the host's errors are among them, so that one `except` catches both."""


class UsageError(PeerError):
    """A command line that makes no sense. Code: `usage`."""


class AbortedError(PeerError):
    """The user was asked and said no. Code: `aborted`."""


class StoppedError(PeerError):
    """A signal has ended what ran; `number` is the signal's. Code: `stopped`."""

    def __init__(self, number: int) -> None:
        # Every command loads this module, and next to none is ended by a signal.
        import signal

        super().__init__(f"stopped by {signal.Signals(number).name}", code="stopped")
        self.number = number


class DocumentError(PeerError):
    """A file that cannot be used; `line` and `column` (from 1) and `field` say where it is wrong.

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
    """A peer would not take the job; `refusal` names every dimension that falls short. The code is the refusal's."""

    def __init__(self, peer_id: str, refusal: Refusal) -> None:
        super().__init__(f"{peer_id} refuses: {refusal.message}", code=refusal.code)
        self.peer_id = peer_id
        self.refusal = refusal
