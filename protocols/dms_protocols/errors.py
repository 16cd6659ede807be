"""The errors of the wire, each with the stable code that the other side sees.

::

    ProtocolError                    code
    ├── FrameError                   bad_frame, frame_too_large    the stream cannot be used any more
    ├── CBORError                    bad_cbor                      the frame holds no acceptable CBOR map
    ├── MessageError                 bad_message                   a field is missing, or of a wrong type or value
    ├── UnknownOperationError        unknown_operation
    ├── BusyError                    busy                          a retry helps, after `retry_after` seconds
    ├── DeadlineExceededError        deadline_exceeded             a retry may help
    ├── ConnectionLostError          connection_lost               a retry on another stream may help
    ├── AnswerTooLargeError          answer_too_large              request less
    ├── EnvelopeError                bad_envelope, bad_signature
    ├── BidError                     not_your_bid, not_my_bid, bid_expired, bad_bid
    ├── AccessError                  forbidden, token_required, token_invalid, token_expired, token_revoked,
    │                                token_not_for_this, token_not_yours, token_not_here
    ├── AdvertError                  bad_advert, advert_expired, advert_ahead, old_advert, not_your_advert
    ├── BroadcastError               bad_broadcast, broadcast_expired, not_waiting, delivered_already
    ├── JobError                     no_job, job_conflict, job_refused, no_executor, executor_unavailable,
    │                                job_not_running, port_closed
    ├── InternalError                internal                      a fault of the side that answers
    └── RemoteError                  whatever code the other side sent

The errors of the ledger keep their own hierarchy in `dms_resources`. `dms_protocols.wire.error_bodies` is the one place
where errors of both kinds become the body of an answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

__all__ = [
    "AccessError",
    "AdvertError",
    "AnswerTooLargeError",
    "BidError",
    "BroadcastError",
    "BusyError",
    "CBORError",
    "ConnectionLostError",
    "DeadlineExceededError",
    "EnvelopeError",
    "FrameError",
    "InternalError",
    "JobError",
    "MessageError",
    "ProtocolError",
    "RemoteError",
    "UnknownOperationError",
]


class ProtocolError(Exception):
    """The base of all errors of the protocols. `code` is stable; the message is for people."""

    default_code: ClassVar[str] = "internal"

    def __init__(self, message: str, *, code: str | None = None, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.code = code or self.default_code


class FrameError(ProtocolError):
    """No further frames of the byte stream can be read. The stream has to be closed."""

    default_code = "bad_frame"


class CBORError(ProtocolError):
    """The bytes are not exactly one map in the subset of CBOR that the protocols allow."""

    default_code = "bad_cbor"


class MessageError(ProtocolError):
    """A field of a message is missing or invalid. `path` names the field if it is known."""

    default_code = "bad_message"

    def __init__(self, message: str, *, path: str | None = None) -> None:
        super().__init__(message)
        self.path = path


class UnknownOperationError(ProtocolError):
    """The protocol does not have this operation."""

    default_code = "unknown_operation"


class BusyError(ProtocolError):
    """A limit is reached. A retry after `retry_after` seconds may succeed."""

    default_code = "busy"

    def __init__(self, message: str, *, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class DeadlineExceededError(ProtocolError):
    """The answer did not arrive in time. It is unknown whether the operation took place."""

    default_code = "deadline_exceeded"


class ConnectionLostError(ProtocolError):
    """The stream ended before the answer arrived. It is unknown whether the operation took place."""

    default_code = "connection_lost"


class AnswerTooLargeError(ProtocolError):
    """The answer would exceed the size of a frame."""

    default_code = "answer_too_large"


class EnvelopeError(ProtocolError):
    """A signed envelope cannot be read (`bad_envelope`), or its signature is invalid (`bad_signature`)."""

    default_code = "bad_envelope"


class BidError(ProtocolError):
    """A bid has a valid signature but cannot be used: `not_your_bid`, `not_my_bid`, `bid_expired` or `bad_bid`."""

    default_code = "bad_bid"


class AccessError(ProtocolError):
    """The owner does not allow the request of this caller.

    `forbidden`: no token would help. `token_required`: a token would help. The other codes are about the token that was
    sent: `token_invalid` (changed, not understood, or granted by a peer that is not trusted here), `token_expired`,
    `token_revoked`, `token_not_for_this` (for another operation), `token_not_yours` (for other peers), `token_not_here`
    (for other providers). `token_exceeded` is an error of the ledger, which knows what is outstanding under a token.
    """

    default_code = "forbidden"


class AdvertError(ProtocolError):
    """An advert is not accepted: `bad_advert` (it names another than its signer, or is too large), `advert_expired`,
    `advert_ahead` (issued in the future), `old_advert` (a later one is known) or `not_your_advert`."""

    default_code = "bad_advert"


class BroadcastError(ProtocolError):
    """A broadcast request is not accepted (`bad_broadcast`, `broadcast_expired`), or an answer to one is not accepted
    (`not_waiting`, `delivered_already`).
    """

    default_code = "bad_broadcast"


class JobError(ProtocolError):
    """A job, or a request about one, is refused.

    `no_job` (none on this lease), `job_conflict` (another job is on it), `job_refused` (the owner's settings do not
    allow it), `no_executor` (the provider has none of this name), `executor_unavailable` (it does not answer now),
    `job_not_running`, `port_closed` (nothing listens there, or the job does not name the port).
    """

    default_code = "no_job"


class InternalError(ProtocolError):
    """The answering side has a fault. Its log has the details."""

    default_code = "internal"


class RemoteError(ProtocolError):
    """The other side answered with an error. `details` is the whole error map."""

    def __init__(self, message: str, *, code: str, details: Mapping[str, Any]) -> None:
        super().__init__(message, code=code)
        self.details = details

    @property
    def retry_after(self) -> float | None:
        """Seconds after which a retry may succeed; None if the other side did not say."""
        value = self.details.get("retry_after")
        return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None

    def __str__(self) -> str:
        return f"{self.message} ({self.code})"
