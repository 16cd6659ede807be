"""Converts errors into what a user of the command line sees: one line or one JSON object, and an exit code."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from msgspec import Struct

from dms_host.errors import AddressError
from dms_protocols.errors import ProtocolError as WireError
from dms_protocols.errors import RemoteError
from dms_protocols.wire.conversion import to_map
from dms_protocols.wire.error_bodies import error_body
from dms_resources.errors import AmountError, ResourcesError

from ..errors import DocumentError, PeerError, RefusedError, StoppedError, UsageError
from ..requesting.errors import ReservationError
from ..text import printable

__all__ = [
    "Failure",
    "describe_failure",
]

_OTHER: Final = 1
_USAGE: Final = 2
# A peer answered with a refusal; nothing has failed.
_REFUSED: Final = 3
# Below an error at most this many lines are shown. --json shows all.
_MOST_LINES: Final = 8

# The codes of errors of a peer that are refusals.
_REFUSALS: Final = frozenset(
    {
        "draining",
        "excluded",
        "executor",
        "forbidden",
        "hold_limit",
        "insufficient",
        "location",
        "not_onboarded",
        "physical",
        "policy",
        "ports",
        "resources",
        "share_exceeded",
        "token_exceeded",
        "window",
    }
)
# The codes of a reservation that failed only because peers refused, or because there were none.
_NOT_RESERVED: Final = frozenset({"no_peers", "no_bids", "no_assignment", "not_taken"})

# Hints for errors that have none of their own.
_HINTS: Final = {
    "busy": "try again in a moment",
    "connection_lost": "see whether the peer still runs, then try again",
    "deadline_exceeded": "try again; it is unknown whether the operation took place",
    "draining": "ask another peer",
    "ended": "ask for a new bid",
    "evicted": "the owner of the peer ended it; ask for a new bid, there or at another peer",
    "expired": "ask for a new bid",
    "bid_expired": "ask for a new bid",
    "insufficient": "ask for less, or ask another peer",
    "resources": "ask for less, or ask another peer",
    "ambiguous": "`dms-peer status --full` shows the ids in full",
    "not_your_bid": "use the --home whose key asked for the bid",
    "not_my_bid": "commit it with the peer that made it",
    "other_machine": "stop the peer, or leave --machine out",
    "not_holder": "use the --home whose key took the lease",
    "bad_envelope": "ask the peer for a new bid",
    "bad_signature": "ask the peer for a new bid",
    "forbidden": "ask the peer's owner for permission, or ask another peer",
    "token_required": "ask the peer's owner for a token, and pass it with --token",
    "token_invalid": "ask the peer that gave it to you for a new one",
    "token_expired": "ask the peer that gave it to you for a new one",
    "token_revoked": "ask the peer that gave it to you for a new one",
    "token_not_for_this": "see `dms-peer token inspect`",
    "token_not_yours": "use the --home whose key the token is for",
    "token_not_here": "ask the peers that the token is for",
    "unknown_operation": "the peer may be an older version",
}


class Failure(Struct, frozen=True):
    """A failure: a map with at least `code` and `message`, and the exit code.

    `said` has further lines for people.
    """

    error: dict[str, Any]
    exit_code: int
    said: tuple[str, ...] = ()

    @property
    def line(self) -> str:
        """What is wrong and what to do about it, in one line without control characters."""
        hint = self.error.get("hint") or _HINTS.get(self.error["code"], "")
        message = str(self.error["message"]).rstrip(".")
        return printable(f"{message}; {hint}" if hint else message)


def describe_failure(error: BaseException) -> Failure:
    """What a user sees of an error. An unexpected error has the code `internal`."""
    for cause in _leaves(error):
        known = _known(cause)
        if known is not None:
            return known
    text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return _failure(
        "internal", f"unexpected failure: {text}", "run the command again with --debug and report what it shows"
    )


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _leaves(inner)
    else:
        yield error


def _known(error: BaseException) -> Failure | None:
    match error:
        case UsageError() | AddressError():
            return _failure(error.code, error.message, error.hint, exit_code=_USAGE)
        case AmountError():
            return _failure(error.code, error.message, error.hint, exit_code=_USAGE)
        case RefusedError():
            refusal = to_map(error.refusal)
            return Failure({**refusal, "message": error.message, "peer_id": error.peer_id}, _REFUSED)
        case DocumentError():
            place = {"line": error.line, "column": error.column, "field": error.field}
            return Failure({**_failure(error.code, error.message, error.hint).error, **place}, _OTHER)
        case StoppedError():
            return _failure(error.code, error.message, error.hint, exit_code=128 + error.number)
        case ReservationError():
            return _unreserved(error)
        case PeerError():
            return _failure(error.code, error.message, error.hint)
        case RemoteError():
            exit_code = _REFUSED if error.code in _REFUSALS else _OTHER
            return Failure({"code": error.code, "message": error.message, **error.details}, exit_code)
        case WireError() | ResourcesError():
            return Failure(to_map(error_body(error)), _OTHER)
        case KeyboardInterrupt():
            return Failure({"code": "interrupted", "message": "interrupted"}, 130)
        case OSError() if error.strerror:
            name = f"{error.filename}: " if error.filename else ""
            return _failure("os_error", f"{name}{error.strerror}", "check the path and its permissions")
    return None


def _unreserved(error: ReservationError) -> Failure:
    said = [f"{reason.node_id}: {line}" for reason in error.reasons for line in reason.said()]
    if len(said) > _MOST_LINES:
        said[_MOST_LINES - 1 :] = [f"{len(said) - _MOST_LINES + 1} further lines are in the output of --json"]
    reasons = [to_map(reason) for reason in error.reasons]
    return Failure(
        {**_failure(error.code, error.message, error.hint).error, "reasons": reasons},
        _REFUSED if error.code in _NOT_RESERVED else _OTHER,
        tuple(map(printable, said)),
    )


def _failure(code: str, message: str, hint: str, *, exit_code: int = _OTHER) -> Failure:
    # A file name may have bytes that are not UTF-8, which JSON cannot contain.
    message, hint = (text.encode("utf-8", "replace").decode() for text in (message, hint))
    return Failure({"code": code, "message": message} | ({"hint": hint} if hint else {}), exit_code)
