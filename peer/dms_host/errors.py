"""Errors of the host.

Every error says what is wrong (`message`) and what to do about it (`hint`), and has a stable lower_snake_case `code` on
which scripts may rely.

    HostError
    ├── IdentityError        a key file cannot be used: the owner repairs it, a retry does not help
    ├── AddressError         an address cannot be dialled or listened on: the caller corrects it
    ├── ListenError          the operating system refused a listen address
    ├── ProtocolTakenError   a protocol is already attached to this host
    ├── DialError            the other peer was not reached or did not agree: a retry may help
    └── BadEnvelopeError     signed bytes prove nothing: a retry does not help
"""

from __future__ import annotations

__all__ = [
    "AddressError",
    "BadEnvelopeError",
    "DialError",
    "HostError",
    "IdentityError",
    "ListenError",
    "ProtocolTakenError",
]


class HostError(Exception):
    """An operation of the host failed. `code` is stable; `message` and `hint` are one line each, for people."""

    def __init__(self, message: str, *, code: str, hint: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class IdentityError(HostError):
    """A key file cannot be used: this peer's key, or the key of a private network.

    Codes: `key_missing`, `key_unreadable`, `key_exposed`, `key_foreign`, `key_damaged`, `key_unwritable`, `key_exists`.
    """

    def __init__(self, message: str, *, code: str, path: str, hint: str = "") -> None:
        super().__init__(message, code=code, hint=hint)
        self.path = path


class AddressError(HostError):
    """An address cannot be used. Codes: `bad_address`, `no_peer_id`, `unsupported_address`."""

    def __init__(self, message: str, *, code: str, address: str, hint: str = "") -> None:
        super().__init__(message, code=code, hint=hint)
        self.address = address


class ListenError(HostError):
    """A listen address was refused. Codes: `address_in_use`, `address_unavailable`, `address_forbidden`."""

    def __init__(self, message: str, *, code: str, address: str, hint: str = "") -> None:
        super().__init__(message, code=code, hint=hint)
        self.address = address


class ProtocolTakenError(HostError):
    """A protocol cannot be attached. Code: `protocol_taken`."""

    def __init__(self, message: str, *, code: str, protocol: str, hint: str = "") -> None:
        super().__init__(message, code=code, hint=hint)
        self.protocol = protocol


class DialError(HostError):
    """A peer was not reached. `address` is what was dialled: a multiaddr, or the peer id of a known peer.

    `retry_after` is the time in seconds after which another attempt makes sense, if known. Codes: `unreachable`,
    `refused`, `timeout`, `wrong_peer`, `handshake_failed`, `self_dial`, `busy`, `not_connected`,
    `protocol_not_supported`, `stream_failed`, `no_address`, `backing_off`, `denied`, `wrong_network`, `relay_failed`,
    `closed`.
    """

    def __init__(
        self, message: str, *, code: str, address: str, hint: str = "", retry_after: float | None = None
    ) -> None:
        super().__init__(message, code=code, hint=hint)
        self.address = address
        self.retry_after = retry_after


class BadEnvelopeError(HostError):
    """Signed bytes were not accepted. Codes: `bad_envelope`, `bad_signature`, `wrong_type`."""
