"""Errors of the peer room.

Every error says what is wrong (`message`), what to do about it (`hint`) and carries a stable lower_snake_case `code`
that scripts may rely on. Whose fault it is decides the class; whether a retry helps is said by the class too.

    PeerError
    ├── IdentityError   the key file: ours to repair, a retry does not help
    ├── AddressError    an address that nobody can dial or listen on: the caller's to correct
    ├── ListenError     the operating system refused a listen address
    ├── ProtocolError   a protocol cannot be attached to this host
    ├── DialError       the other peer could not be reached or did not agree: a retry may help
    ├── EnvelopeError   signed bytes that prove nothing: never retried
    └── RefusedError    a peer does not bid, and says why
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dms_protocols.messages.bid import Refusal

__all__ = [
    "AddressError",
    "DialError",
    "EnvelopeError",
    "IdentityError",
    "ListenError",
    "PeerError",
    "ProtocolError",
    "RefusedError",
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
    """The key file cannot be used.

    Codes: `key_missing`, `key_unreadable`, `key_exposed`, `key_foreign`, `key_damaged`, `key_unwritable`.
    """

    def __init__(self, code: str, path: str, message: str, hint: str) -> None:
        super().__init__(code, message, hint)
        self.path = path


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
    `protocol_not_supported`, `stream_failed`, `no_address`, `backing_off`, `denied`, `relay_failed`, `closed`.
    """

    def __init__(self, code: str, address: str, message: str, hint: str, retry_after: float | None = None) -> None:
        super().__init__(code, message, hint)
        self.address = address
        self.retry_after = retry_after


class EnvelopeError(PeerError):
    """Signed bytes were not accepted. Codes: `bad_envelope`, `bad_signature`, `wrong_type`."""


class RefusedError(PeerError):
    """A peer would not take the job; `refusal` names every dimension that falls short. The code is the refusal's."""

    def __init__(self, peer_id: str, refusal: Refusal) -> None:
        super().__init__(refusal.code, f"{peer_id} refuses: {refusal.message}")
        self.peer_id = peer_id
        self.refusal = refusal
