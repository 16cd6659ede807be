"""Revoked grants: a list in the home, which the running peer checks with every token.

Rules:

1. A revocation is on the disk before it is acknowledged. It is in force from then on, also for all derived grants.
2. If the list cannot be read, the peer does not start, because revoked grants must not become valid again.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import trio

from dms_protocols.errors import ProtocolError
from dms_protocols.rpc.operations import Caller, Operations
from dms_resources.private_files import write_private

from ..errors import PeerError
from ..home.state_files import read_state
from .messages import Revocation, RevocationsAnswer, RevocationsRequest, RevokeAnswer, RevokeRequest

__all__ = ["Revocations", "revocation_operations"]

_LINE: Final = re.compile(r"([0-9a-f]{32}) ([0-9]{1,12})(?: (.*))?")
_ID: Final = re.compile(r"[0-9a-f]{32}")
_MOST: Final = 65_536
_LONGEST_REASON: Final = 200
# Bytes of the list: an id, a time and a reason for each, the reason in UTF-8.
_LARGEST: Final = _MOST * (64 + 4 * _LONGEST_REASON)


class Revocations:
    """The list at `path`, read when this object is made. Raises PeerError `bad_revocations`. Blocks on disk."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        self._path = path
        self._clock = clock
        self._known = _read(path)
        self._turn = trio.Lock()

    def __contains__(self, grant: object) -> bool:
        return grant in self._known

    @property
    def revocations(self) -> tuple[Revocation, ...]:
        """All revoked grants, in the order of their revocation."""
        return tuple(self._known.values())

    async def revoke(self, grants: tuple[str, ...], reason: str) -> None:
        """Add grants by their ids. Grants that are already revoked keep their reason.

        Raises PeerError `bad_revocations` if the list cannot be written. If cancelled, it has taken place as a whole or
        not at all.
        """
        if not all(map(_ID.fullmatch, grants)) or not (reason.isprintable() and len(reason) <= _LONGEST_REASON):
            raise PeerError("a grant or a reason is none", code="bad_revocations", hint="see `dms-peer token inspect`")
        async with self._turn:
            now = int(self._clock())
            added = {grant: Revocation(id=grant, at=now, reason=reason) for grant in grants}
            known = added | self._known
            ordered = {key: known[key] for key in sorted(known, key=lambda one: known[one].at)}
            if len(ordered) > _MOST:
                raise PeerError(
                    f"more than {_MOST} grants were revoked",
                    code="bad_revocations",
                    hint="revoke what they came from instead",
                )
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(_write, self._path, tuple(ordered.values()))
            self._known = ordered


def revocation_operations(revocations: Revocations) -> Operations:
    """The owner's operations on the list."""

    async def revoke(request: RevokeRequest, caller: Caller) -> RevokeAnswer:
        before = len(revocations.revocations)
        try:
            await revocations.revoke(request.grants, request.reason)
        except PeerError as error:
            raise ProtocolError(error.message, code=error.code) from error
        return RevokeAnswer(added=len(revocations.revocations) - before, grants=request.grants)

    async def listed(request: RevocationsRequest, caller: Caller) -> RevocationsAnswer:
        newest = revocations.revocations[::-1]
        return RevocationsAnswer(revocations=newest[: request.limit], count=len(newest))

    operations = Operations()
    operations.slow(RevokeRequest, revoke)
    operations.slow(RevocationsRequest, listed)
    return operations


def _read(path: Path) -> dict[str, Revocation]:
    try:
        lines = read_state(path, _LARGEST).decode().splitlines()
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise _bad(path, f"cannot be read: {getattr(error, 'strerror', None) or error}") from error
    known = {}
    for number, line in enumerate(lines, start=1):
        found = _LINE.fullmatch(line)
        if found is None:
            raise _bad(path, f"has a line {number} that is no revocation")
        known[found[1]] = Revocation(id=found[1], at=int(found[2]), reason=found[3] or "")
    return known


def _write(path: Path, revocations: tuple[Revocation, ...]) -> None:
    text = "".join(f"{one.id} {one.at} {one.reason}".rstrip() + "\n" for one in revocations)
    try:
        write_private(path, text.encode())
    except OSError as error:
        raise _bad(path, f"cannot be written: {error.strerror}") from error


def _bad(path: Path, what: str) -> PeerError:
    return PeerError(f"the list of revoked grants {path} {what}", code="bad_revocations", hint="restore it from a copy")
