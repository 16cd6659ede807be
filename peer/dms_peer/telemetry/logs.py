"""The log of a running peer: one line per event, as key=value or JSON, with a bounded rate.

A record may have `extra={"fields": {...}}`; its message is then the name of the event. Rules:

1. One event is one line: values from peers are quoted, so that they cannot begin a line of their own.
2. Lines that name a peer are limited for each peer and for all peers together. A later line counts those left out.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from dms_protocols.token_bucket import TokenBucket
from dms_resources.bounded_dict import BoundedDict

from ..text import printable

__all__ = ["EventLine", "PeerLimit", "show_warnings", "write_logs"]

_PACKAGES: Final = ("dms_peer", "dms_protocols", "dms_resources")
_PLAIN: Final = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-./:+@%,")
_MOST_PEERS: Final = 1024
_MOST_CHARACTERS: Final = 500


class EventLine(logging.Formatter):
    """Formats a record as one line: `time=... level=... event=... key=value ...`, or one JSON object."""

    def __init__(self, *, as_json: bool) -> None:
        super().__init__()
        self._as_json = as_json

    def format(self, record: logging.LogRecord) -> str:
        """The line without its line end."""
        moment = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        fields: dict[str, Any] = {
            "time": moment.replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info and record.exc_info[0] is not None:
            fields["error"] = f"{record.exc_info[0].__name__}: {record.exc_info[1]}"
        if left_out := getattr(record, "left_out", 0):
            fields["left_out"] = left_out
        bounded = {key: value[:_MOST_CHARACTERS] if isinstance(value, str) else value for key, value in fields.items()}
        if self._as_json:
            return json.dumps(bounded, default=str)
        return " ".join(f"{key}={_quoted(value)}" for key, value in bounded.items())


def _quoted(value: object) -> str:
    text = str(value)
    return text if text and _PLAIN.issuperset(text) else json.dumps(text)


@dataclass(slots=True)
class _PeerLines:
    """The lines that one peer may cause, and how many were left out since the last one."""

    bucket: TokenBucket
    left_out: int = 0


class PeerLimit(logging.Filter):
    """Lets each peer cause `burst` lines at once and `per_second` on average. The field `peer` is its id.

    The peers that were silent for longest are forgotten first. A limit on all lines together applies to peers that
    appear under ever new names.
    """

    def __init__(self, *, burst: int = 20, per_second: float = 1.0, total_per_second: float = 50.0) -> None:
        super().__init__()
        self._burst = burst
        self._per_second = per_second
        self._peers: BoundedDict[str, _PeerLines] = BoundedDict(_MOST_PEERS)
        self._everybody = TokenBucket(total_per_second, 10 * total_per_second, time.monotonic())

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the record is written. Sets `left_out` to the number of lines of its peer that were not."""
        peer = getattr(record, "fields", {}).get("peer")
        if peer is None:
            return True
        now = time.monotonic()
        lines = self._peers.recent(str(peer))
        if lines is None:
            lines = self._peers[str(peer)] = _PeerLines(TokenBucket(self._per_second, self._burst, now))
        if not lines.bucket.take(now) or not self._everybody.take(now):
            lines.left_out += 1
            return False
        record.left_out, lines.left_out = lines.left_out, 0
        return True


_verbosity: str | None = None


def set_verbosity(level: str) -> None:
    """Log at `level` and above from now on, instead of what a command chooses (-v, -q)."""
    global _verbosity
    _verbosity = level
    show_warnings()


def write_logs(level: str = "warning", *, as_json: bool = False) -> None:
    """Write the log of our packages at `level` and above to stderr, one line for each record.

    Other libraries are logged at `warning` and above, whatever the level is.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(EventLine(as_json=as_json))
    handler.addFilter(PeerLimit())
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    for package in _PACKAGES:
        logging.getLogger(package).setLevel((_verbosity or level).upper())


def show_warnings() -> None:
    """Show warnings during a command as one line each, for example about an unreachable bootstrap peer."""
    logging.basicConfig(handlers=[_Warnings(logging.WARNING)], level=logging.WARNING, force=True)
    # It warns of each interface that has no way to the group of mDNS, and works on the others.
    logging.getLogger("zeroconf").setLevel(logging.ERROR)


class _Warnings(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        # `sys.stderr` is looked up each time, because a live display replaces it.
        print(f"dms-peer: {printable(record.getMessage())[:_MOST_CHARACTERS]}", file=sys.stderr)
