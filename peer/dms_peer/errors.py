"""Errors of the peer room.

Every error says what is wrong (`message`), what to do about it (`hint`) and carries a stable lower_snake_case `code`
that scripts may rely on. Whose fault it is decides the class; whether a retry helps is said by the class too.

    PeerError
    ├── IdentityError   a key file: ours to repair, a retry does not help
    ├── UsageError      a command line that makes no sense: the caller's to correct
    ├── AbortedError    the user does not want it after all
    ├── StoppedError    a signal ended it
    ├── AddressError    an address that nobody can dial or listen on: the caller's to correct
    ├── ListenError     the operating system refused a listen address
    ├── ProtocolError   a protocol cannot be attached to this host
    ├── DialError       the other peer could not be reached or did not agree: a retry may help
    ├── EnvelopeError   signed bytes that prove nothing: never retried
    ├── DocumentError   a file that somebody wrote: theirs to correct at the line that is named
    ├── PolicyError     the owner's plug-in cannot be started, or did not decide
    ├── RefusedError    a peer does not bid, and says why
    ├── StrategyError   a strategy that is not there: the caller's to correct
    └── ReservationError            an ensemble was not taken as a whole, and nothing of it is kept
        └── ReservationLostError    what was taken is lost: it may be somebody else's now
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dms_protocols.messages.bid import Refusal

    from .requesting.reasons import NodeReasons

__all__ = [
    "AbortedError",
    "AddressError",
    "DialError",
    "DocumentError",
    "EnvelopeError",
    "IdentityError",
    "ListenError",
    "PeerError",
    "PolicyError",
    "ProtocolError",
    "RefusedError",
    "ReservationError",
    "ReservationLostError",
    "StoppedError",
    "StrategyError",
    "UsageError",
]


class PeerError(Exception):
    """Something the peer could not do; `code` is stable, `message` and `hint` are one line each for people."""

    def __init__(self, code: str, message: str, hint: str = "") -> None:
        super().__init__(code, message, hint)
        self.code = code
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class IdentityError(PeerError):
    """A key file cannot be used: this peer's own, or the one of a private network.

    Codes: `key_missing`, `key_unreadable`, `key_exposed`, `key_foreign`, `key_damaged`, `key_unwritable`, `key_exists`.
    """

    def __init__(self, code: str, path: str, message: str, hint: str) -> None:
        super().__init__(code, message, hint)
        self.path = path


class UsageError(PeerError):
    """A command line that makes no sense. Code: `usage`."""


class AbortedError(PeerError):
    """The user was asked and said no. Code: `aborted`."""


class StoppedError(PeerError):
    """A signal has ended what ran; `number` is the signal's. Code: `stopped`."""

    def __init__(self, number: int) -> None:
        # Every command loads this module, and next to none is ended by a signal.
        import signal

        super().__init__("stopped", f"stopped by {signal.Signals(number).name}")
        self.number = number


class AddressError(PeerError):
    """Text that is no usable multiaddr. Codes: `bad_address`, `no_peer_id`, `unsupported_address`."""

    def __init__(self, code: str, address: str, message: str, hint: str) -> None:
        super().__init__(code, message, hint)
        self.address = address


class ListenError(PeerError):
    """A listen address was refused. Codes: `address_in_use`, `address_unavailable`, `address_forbidden`."""

    def __init__(self, code: str, address: str, message: str, hint: str) -> None:
        super().__init__(code, message, hint)
        self.address = address


class ProtocolError(PeerError):
    """A protocol cannot be attached. Code: `protocol_taken`."""

    def __init__(self, code: str, protocol: str, message: str, hint: str) -> None:
        super().__init__(code, message, hint)
        self.protocol = protocol


class DialError(PeerError):
    """A peer was not reached; `address` says where it was looked for (a multiaddr, or the peer id of a known peer).

    `retry_after` (seconds) says when a further attempt makes sense, where that is known.
    Codes: `unreachable`, `refused`, `timeout`, `wrong_peer`, `handshake_failed`, `self_dial`, `busy`, `not_connected`,
    `protocol_not_supported`, `stream_failed`, `no_address`, `backing_off`, `denied`, `wrong_network`,
    `relay_failed`, `closed`.
    """

    def __init__(self, code: str, address: str, message: str, hint: str, retry_after: float | None = None) -> None:
        super().__init__(code, message, hint)
        self.address = address
        self.retry_after = retry_after


class EnvelopeError(PeerError):
    """Signed bytes were not accepted. Codes: `bad_envelope`, `bad_signature`, `wrong_type`."""


class DocumentError(PeerError):
    """A file that cannot be used; `line` and `column` (from 1) and `field` say where it is wrong.

    Codes: `bad_ensemble`, `bad_terms`.
    """

    def __init__(self, code: str, message: str, hint: str, *, line: int, column: int, field: str) -> None:
        super().__init__(code, message, hint)
        self.line = line
        self.column = column
        self.field = field


class PolicyError(PeerError):
    """The owner's policy plug-in cannot be used. Codes: `policy_unusable`, `policy_failed`."""


class RefusedError(PeerError):
    """A peer would not take the job; `refusal` names every dimension that falls short. The code is the refusal's."""

    def __init__(self, peer_id: str, refusal: Refusal) -> None:
        super().__init__(refusal.code, f"{peer_id} refuses: {refusal.message}")
        self.peer_id = peer_id
        self.refusal = refusal


class StrategyError(PeerError):
    """A strategy cannot be used; `name` is what was asked for. Codes: `unknown_strategy`, `bad_strategy`."""

    def __init__(self, code: str, name: str, message: str, hint: str) -> None:
        super().__init__(code, message, hint)
        self.name = name


class ReservationError(PeerError):
    """An ensemble was not taken; `reasons` says for each uncovered node what the peers said to it.

    Codes: `no_peers` (nobody was there to ask), `no_bids` (a node that nobody bids on), `no_assignment` (bids on every
    node that cannot be had together), `not_taken` (peers did not keep their bids, until the deadline),
    `not_allocated`.
    """

    def __init__(self, code: str, message: str, hint: str = "", reasons: tuple[NodeReasons, ...] = ()) -> None:
        super().__init__(code, message, hint)
        self.reasons = reasons

    def __str__(self) -> str:
        return "; ".join([super().__str__(), *(reason.describe() for reason in self.reasons if reason.peers)])


class ReservationLostError(ReservationError):
    """A commitment ended while it was needed; `node_ids` names the nodes. Code: `reservation_lost`."""

    def __init__(self, message: str, hint: str, node_ids: tuple[str, ...]) -> None:
        super().__init__("reservation_lost", message, hint)
        self.node_ids = node_ids
