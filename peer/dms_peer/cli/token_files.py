"""Tokens in files and on the command line: created with the home's key, narrowed, and inspected."""

from __future__ import annotations

import base64
import binascii
import os
import re
import stat
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Final

from msgspec import Struct

from dms_host.keys.identity import load_or_create_identity, public_key_of
from dms_protocols.errors import AccessError
from dms_protocols.tokens.biscuits import MAX_TOKEN_BYTES, attenuate_token, create_token, granter_of, open_token
from dms_protocols.tokens.grants import Grants, GrantTerms

from ..config.access import OPERATIONS
from ..errors import PeerError, UsageError
from ..home.home import Home
from .token_terms import check_narrower, effective_terms

__all__ = [
    "MadeToken",
    "TokenReport",
    "attenuate",
    "create",
    "end_of_grant",
    "inspect",
    "last_grant",
    "named_operations",
    "named_peers",
    "read_token_file",
]

_DAY: Final = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
# Base64 makes four characters of three bytes; there may also be line ends.
_MAX_TEXT: Final = MAX_TOKEN_BYTES * 4 // 3 + 16


class MadeToken(Struct, frozen=True, kw_only=True):
    """A token as text, the `id` of its last block, what it grants, and its file, if any."""

    token: str
    id: str
    grants: Grants
    file: str | None = None


class TokenReport(Struct, frozen=True, kw_only=True):
    """What a token grants, block by block, and what all blocks together grant (`effective`).

    `own`: this home's key granted it. `revoked` are its blocks that this home has revoked.
    """

    grants: Grants
    effective: GrantTerms
    own: bool
    revoked: tuple[str, ...]


def create(home: Home, terms: GrantTerms, output: Path | None) -> MadeToken:
    """A token that this home's key signs. Raises IdentityError and PeerError `bad_token_file`. Blocks on disk."""
    home.prepare()
    identity = load_or_create_identity(home.key_path)
    return _made(create_token(identity.seed, identity.peer_id, terms), output)


def attenuate(token: bytes, terms: GrantTerms, output: Path | None) -> MadeToken:
    """The token with one more block. Needs no key. Blocks on disk.

    Raises UsageError if the terms exceed what the token grants, AccessError and PeerError.
    """
    check_narrower(open_token(token, _granter_key(token)).grants, terms)
    return _made(attenuate_token(token, _granter_key(token), terms), output)


def inspect(home: Home, token: bytes) -> TokenReport:
    """What the token grants, if the peer that it names has signed it. Raises AccessError, IdentityError, PeerError."""
    from ..owner.revocations import Revocations

    grants = open_token(token, _granter_key(token)).grants
    revoked = Revocations(home.revocations_path)
    return TokenReport(
        grants=grants,
        effective=effective_terms(grants),
        own=home.key_path.exists() and load_or_create_identity(home.key_path).peer_id == grants.granted_by,
        revoked=tuple(block.id for block in grants.blocks if block.id in revoked),
    )


def read_token_file(path: Path) -> bytes:
    """The token in a file. Raises PeerError `bad_token_file`. Blocks on disk."""
    try:
        with open(path, "rb") as file:
            text = file.read(_MAX_TEXT + 1)
        if len(text) > _MAX_TEXT:
            raise ValueError("it is too long")
        packed = text.strip()
        return base64.b64decode(packed + b"=" * (-len(packed) % 4), altchars=b"-_", validate=True)
    except (OSError, ValueError, binascii.Error) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise PeerError(
            f"{path} holds no token: {reason}", code="bad_token_file", hint="give the file that `dms-peer token` wrote"
        ) from error


def last_grant(token: bytes) -> str:
    """The id of a token's last block. Revoking it ends this token and all derived from it, and nothing else.

    Raises AccessError.
    """
    return open_token(token, _granter_key(token)).grants.blocks[-1].id


def end_of_grant(until: str | None, lasting: float | None) -> int | None:
    """When a grant ends (Unix seconds): at a written date or time, or this many seconds from now.

    Raises UsageError.
    """
    if lasting is not None:
        return int(time.time() + lasting)
    if until is None:
        return None
    try:
        end = datetime.fromisoformat(until)
        if _DAY.fullmatch(until):
            # The end of that day.
            end = end.replace(hour=23, minute=59, second=59)
        return int(end.timestamp())
    except (ValueError, OverflowError) as error:
        raise UsageError(
            f"invalid time {until!r}", code="usage", hint="write 2026-11-27 or 2026-11-27T18:00"
        ) from error


def named_peers(names: Sequence[str] | None) -> frozenset[str] | None:
    """The named peers; None if there are none. Raises UsageError for an invalid peer id."""
    for name in names or ():
        if public_key_of(name) is None:
            raise UsageError(f"invalid peer id {name!r}", code="usage", hint="write one as `dms-peer status` shows it")
    return frozenset(names) if names else None


def named_operations(names: Sequence[str] | None) -> frozenset[str] | None:
    """The named operations; None if there are none. Raises UsageError for an unknown operation."""
    for name in names or ():
        if name not in OPERATIONS:
            raise UsageError(f"{name!r} is no operation", code="usage", hint=f"use one of {', '.join(OPERATIONS)}")
    return frozenset(names) if names else None


def _granter_key(token: bytes) -> bytes:
    key = public_key_of(granter_of(token))
    if key is None:
        raise AccessError("the token names no peer that could have granted it", code="token_invalid")
    return key


def _made(token: bytes, output: Path | None) -> MadeToken:
    text = base64.urlsafe_b64encode(token).decode().rstrip("=")
    if output is not None:
        _write(output, text)
    grants = open_token(token, _granter_key(token)).grants
    return MadeToken(token=text, id=grants.blocks[-1].id, grants=grants, file=None if output is None else str(output))


def _write(path: Path, text: str) -> None:
    # Anyone who can read a token can use it, unless it names its peers.
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            if stat.S_ISREG(os.fstat(descriptor).st_mode):
                # An older file may have been readable by everybody.
                os.fchmod(descriptor, 0o600)
            file.write(text + "\n")
    except OSError as error:
        raise PeerError(
            f"{path} cannot be written: {error.strerror}", code="bad_token_file", hint="choose another file with -o"
        ) from error
