"""Converts errors into the body of an answer."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import msgspec

from dms_resources.demands import Shortage
from dms_resources.errors import LeaseError, OnboardingError, ResourcesError, StillPromisedError
from dms_resources.refusals import AccountError, InsufficientError, RequestError, ShareError

from ..errors import BusyError, MessageError, ProtocolError, RemoteError
from .clocks import depends_on_clocks
from .conversion import from_map, to_bytes
from .envelope import Encoded

__all__ = ["ErrorBody", "encode_error_body", "error_body"]

_MESSAGE_LENGTH = 500


class ErrorBody(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An error on the wire: a stable `code`, a message for people, and details.

    `retry_after` is in seconds. `shortages` lists every dimension that falls short. `index` is the position of the
    failed item in a request for several. `path` is the invalid field. `hint` says what to do. `time` is the clock of
    the side that answers (Unix seconds), if clocks that differ may be the cause.
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
    time: float | None = None


def error_body(error: ProtocolError | ResourcesError, clock: Callable[[], float] = time.time) -> ErrorBody:
    """The body for an error of this package or of the ledger. `clock` returns the Unix time."""
    details = _details(error)
    now = clock() if depends_on_clocks(error.code, details.get("path", "")) else None
    return ErrorBody(code=error.code, message=error.message[:_MESSAGE_LENGTH], **(details | {"time": now}))


def encode_error_body(error: ProtocolError | ResourcesError, clock: Callable[[], float] = time.time) -> Encoded:
    """The same, encoded."""
    return to_bytes(error_body(error, clock))


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
            return {"hint": error.hint}


def _relayed(error: RemoteError) -> dict[str, Any]:
    """The error of another peer, as far as it has the form of ours."""
    try:
        body = from_map({**error.details, "code": error.code, "message": error.message}, ErrorBody)
    except MessageError:
        return {"retry_after": error.retry_after}
    return {field: getattr(body, field) for field in body.__struct_fields__ if field not in ("code", "message")}
