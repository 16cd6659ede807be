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
    ├── AnswerTooLargeError          answer_too_large              ask for less
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

The errors of the ledger keep their own hierarchy in `dms_resources`; `dms_protocols.wire.error_bodies` is the one place
where both become the body of an answer.
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
    """The base of all errors that a protocol raises; `code` is stable, the message is for people."""

    default_code: ClassVar[str] = "internal"

    def __init__(self, message: str, *, code: str | None = None, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.code = code or self.default_code


class FrameError(ProtocolError):
    """Further frames of the byte stream cannot be read; it has to be closed."""

    default_code = "bad_frame"


class CBORError(ProtocolError):
    """The bytes are not one map of the CBOR that this wire allows."""

    default_code = "bad_cbor"


class MessageError(ProtocolError):
    """A field of a message is missing or invalid; `path` names the field where it is known."""

    default_code = "bad_message"

    def __init__(self, message: str, *, path: str | None = None) -> None:
        super().__init__(message)
        self.path = path


class UnknownOperationError(ProtocolError):
    """The protocol does not have this operation."""

    default_code = "unknown_operation"


class BusyError(ProtocolError):
    """Too much runs already; a retry after `retry_after` seconds may succeed."""

    default_code = "busy"

    def __init__(self, message: str, *, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class DeadlineExceededError(ProtocolError):
    """No answer came in time; whether the operation took place is unknown."""

    default_code = "deadline_exceeded"


class ConnectionLostError(ProtocolError):
    """The stream ended before the answer; whether the operation took place is unknown."""

    default_code = "connection_lost"


class AnswerTooLargeError(ProtocolError):
    """The answer would not fit into a frame."""

    default_code = "answer_too_large"


class EnvelopeError(ProtocolError):
    """A signed envelope cannot be read (`bad_envelope`) or its signature does not hold (`bad_signature`)."""

    default_code = "bad_envelope"


class BidError(ProtocolError):
    """A bid is genuine but cannot be used here: `not_your_bid`, `not_my_bid`, `bid_expired` or `bad_bid`."""

    default_code = "bad_bid"


class AccessError(ProtocolError):
    """The owner does not let this caller do that.

    `forbidden`: not with any token; `token_required`: not without one. Of the token that came: `token_invalid`
    (changed, not understood, or granted by a peer that is not trusted here), `token_expired`, `token_revoked`,
    `token_not_for_this` (another operation), `token_not_yours` (for other peers), `token_not_here` (for other
    providers). The ledger knows what is outstanding under a token: `token_exceeded` is one of its errors.
    """

    default_code = "forbidden"


class AdvertError(ProtocolError):
    """An advert is not accepted: `bad_advert` (it names another than its signer, or is too large), `advert_expired`,
    `advert_ahead` (issued in the future), `old_advert` (a later one is known) or `not_your_advert`."""

    default_code = "bad_advert"


class BroadcastError(ProtocolError):
    """A broadcast request (`bad_broadcast`, `broadcast_expired`) or an answer to one (`not_waiting`,
    `delivered_already`) that is not accepted."""

    default_code = "bad_broadcast"


class JobError(ProtocolError):
    """What stands against a job, or against what is requested of one.

    `no_job` (none on this lease), `job_conflict` (another job is on it), `job_refused` (the owner's settings do not
    allow it), `no_executor` (the provider has none of this name), `executor_unavailable` (it does not answer now),
    `job_not_running`, `port_closed` (nothing listens there, or the job does not name the port).
    """

    default_code = "no_job"


class InternalError(ProtocolError):
    """The side that answers has a fault; its log has the details."""

    default_code = "internal"


class RemoteError(ProtocolError):
    """The other side answered with an error; `details` is the whole error map as it came."""

    def __init__(self, message: str, *, code: str, details: Mapping[str, Any]) -> None:
        super().__init__(message, code=code)
        self.details = details

    @property
    def retry_after(self) -> float | None:
        """Seconds after which a retry may succeed, where the other side said so."""
        value = self.details.get("retry_after")
        return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None

    def __str__(self) -> str:
        return f"{self.message} ({self.code})"
