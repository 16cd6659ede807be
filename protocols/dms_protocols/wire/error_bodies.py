"""The one place where errors become the body of an answer."""

from __future__ import annotations

from typing import Any

import msgspec

from dms_resources.demands import Shortage
from dms_resources.errors import LeaseError, OnboardingError, ResourcesError, StillPromisedError
from dms_resources.refusals import AccountError, InsufficientError, RequestError, ShareError

from ..errors import BusyError, MessageError, ProtocolError, RemoteError
from .conversion import from_map, to_bytes
from .envelope import Encoded

__all__ = ["ErrorBody", "encode_error_body", "error_body"]

_MESSAGE_LENGTH = 500


class ErrorBody(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What an error says on the wire: a stable `code`, a message for people, and what is known besides.

    `retry_after` is in seconds; `shortages` has every dimension that falls short; `index` is the position, in a request
    for several, of the one that failed; `path` the field that is wrong; `hint` what can be done about it.
    """

    code: str
    message: str
    retry_after: float | None = None
    shortages: tuple[Shortage, ...] = ()
    index: int | None = None
    path: str = ""
    lease_id: str = ""
    problems: tuple[str, ...] = ()
    hint: str = ""


def error_body(error: ProtocolError | ResourcesError) -> ErrorBody:
    """What the wire says about an error of ours or of the ledger's."""
    return ErrorBody(code=error.code, message=error.message[:_MESSAGE_LENGTH], **_details(error))


def encode_error_body(error: ProtocolError | ResourcesError) -> Encoded:
    """The same, encoded."""
    return to_bytes(error_body(error))


def _details(error: ProtocolError | ResourcesError) -> dict[str, Any]:
    match error:
        case InsufficientError():
            return {"shortages": error.shortages, "retry_after": error.retry_after, "index": error.index}
        case ShareError():
            return {"problems": error.problems, "retry_after": error.retry_after, "hint": error.hint}
        case AccountError():
            return {"problems": error.problems, "hint": error.hint}
        case RequestError():
            return {"retry_after": error.retry_after, "hint": error.hint}
        case LeaseError():
            return {"lease_id": error.lease_id, "hint": error.hint}
        case OnboardingError():
            return {"problems": error.problems, "hint": error.hint}
        case StillPromisedError():
            return {"problems": error.lease_ids, "hint": error.hint}
        case ResourcesError():
            return {"hint": error.hint}
        case BusyError():
            return {"retry_after": error.retry_after}
        case RemoteError():
            return _relayed(error)
        case MessageError():
            return {"path": error.path or ""}
        case _:
            return {}


def _relayed(error: RemoteError) -> dict[str, Any]:
    """What another peer said of its error, where it has the form of an error of ours."""
    try:
        body = from_map({**error.details, "code": error.code, "message": error.message}, ErrorBody)
    except MessageError:
        return {"retry_after": error.retry_after}
    return {field: getattr(body, field) for field in body.__struct_fields__ if field not in ("code", "message")}
