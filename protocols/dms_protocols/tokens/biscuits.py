"""Tokens: grants that holders pass on offline, as Biscuits (https://www.biscuitsec.org).

Rules:

1. A token is signed with the Ed25519 key of the granting peer, which it names. Each provider that trusts this peer can
   check it. A further block is signed with a key from the chain itself, so that a holder can narrow a grant without the
   granting peer.
2. Each statement of a block has one of the forms below. A token with an unknown statement is refused: the statement may
   be a restriction.
3. Conditions (time, operation, peer, provider) are checks of Biscuit itself. Amounts are facts, because only the ledger
   knows what is outstanding.
4. Bytes and blocks are counted before they are parsed, and the authorizer runs within limits. Invalid bytes raise
   AccessError `token_invalid` and nothing else.

::

    granted_by("12D3KooW…");                                          the first block only, exactly once
    limit("millicores", 8000);                                        also ram, disk, gpus, vram, leases
    check if time($time), $time <= 2026-11-27T18:00:00Z;
    check if operation($operation), {"bid_request", "commit"}.contains($operation);
    check if peer($peer), {"12D3KooW…"}.contains($peer);
    check if provider($provider), {"12D3KooW…"}.contains($provider);
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

from dms_resources.ledger.accounts import Allowance

from ..errors import AccessError
from .grants import Grant, Grants, GrantTerms

if TYPE_CHECKING:
    from biscuit_auth import Biscuit, PrivateKey, PublicKey

__all__ = [
    "MAX_TOKEN_BLOCKS",
    "MAX_TOKEN_BYTES",
    "SignedToken",
    "attenuate_token",
    "create_token",
    "grant_id",
    "granter_of",
    "open_token",
]

MAX_TOKEN_BYTES: Final = 8 * 1024
"""The largest token. A larger one is not parsed."""

MAX_TOKEN_BLOCKS: Final = 16
"""The largest number of blocks in a token."""

_MAX_STATEMENTS: Final = 32
_ID_DIGITS: Final = 32
# An Ed25519 signature in hexadecimal; those of P-256 are longer.
_SIGNATURE_DIGITS: Final = 128
_DIMENSIONS: Final = Allowance.__struct_fields__
_NAME: Final = r'"[A-Za-z0-9_]{1,128}"'
_GRANTED_BY: Final = re.compile(rf"granted_by\(({_NAME})\);")
_LIMIT: Final = re.compile(rf'limit\("({"|".join(_DIMENSIONS)})", ([0-9]{{1,18}})\);')
_TIME: Final = re.compile(r"check if time\(\$time\), \$time <= ([0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9:]{8}Z);")
_NAMES: Final = re.compile(
    rf"check if (operation|peer|provider)\(\$\1\), \{{({_NAME}(?:, {_NAME})*)\}}\.contains\(\$\1\);"
)
_TIME_FORM: Final = "%Y-%m-%dT%H:%M:%SZ"
_FIELDS: Final = {"operation": "operations", "peer": "peers", "provider": "providers"}
# Far more than any token within the limits needs, even on a busy machine.
_RUN_LIMITS: Final = {"max_facts": 64, "max_iterations": 16, "max_time": timedelta(milliseconds=200)}


class SignedToken:
    """A token with valid signatures. `grants` is its content."""

    def __init__(self, biscuit: Biscuit, grants: Grants) -> None:
        self._biscuit = biscuit
        self.grants = grants

    def allows(self, *, operation: str, peer: str, provider: str, now: float) -> bool:
        """Whether all checks of all blocks hold, by Biscuit's own authorizer."""
        from biscuit_auth import AuthorizationError, AuthorizerBuilder

        builder = AuthorizerBuilder(
            "operation({operation}); peer({peer}); provider({provider}); time({time}); allow if true;",
            {"operation": operation, "peer": peer, "provider": provider, "time": datetime.fromtimestamp(now, UTC)},
        )
        # The type stubs of the library lack these two.
        limits = builder.limits()  # type: ignore[attr-defined]
        for name, value in _RUN_LIMITS.items():
            setattr(limits, name, value)
        builder.set_limits(limits)  # type: ignore[attr-defined]
        try:
            builder.build(self._biscuit).authorize()
        except AuthorizationError:
            return False
        return True


def create_token(seed: bytes, granted_by: str, terms: GrantTerms) -> bytes:
    """A new token. `seed` is the Ed25519 seed of the peer `granted_by`."""
    from biscuit_auth import BiscuitBuilder

    source = f'granted_by("{granted_by}");\n' + _source(terms)
    return bytes(BiscuitBuilder(source).build(_private_key(seed)).to_bytes())


def attenuate_token(raw: bytes, public_key: bytes, terms: GrantTerms) -> bytes:
    """The token with one more block, which narrows it. `public_key` is that of the granting peer.

    Raises AccessError for a token to which no block can be added.
    """
    from biscuit_auth import BlockBuilder

    token = open_token(raw, public_key)
    if len(token.grants.blocks) >= MAX_TOKEN_BLOCKS:
        raise _invalid(f"it has been passed on {MAX_TOKEN_BLOCKS - 1} times already")
    longer = bytes(token._biscuit.append(BlockBuilder(_source(terms))).to_bytes())
    if len(longer) > MAX_TOKEN_BYTES:
        raise _invalid(f"it would have {len(longer)} bytes, {MAX_TOKEN_BYTES} are allowed")
    return longer


def granter_of(raw: bytes) -> str:
    """The granting peer that a token names. The name is not proven until `open_token` has checked the peer's key.

    Raises AccessError `token_invalid`.
    """
    from biscuit_auth import UnverifiedBiscuit

    _check_size(raw)
    try:
        source = UnverifiedBiscuit.from_base64(base64.urlsafe_b64encode(raw).decode()).block_source(0)
    except Exception as error:
        # The library raises a different error for each stage of reading.
        raise _invalid("it cannot be read") from error
    return _granter(source)


def open_token(raw: bytes, public_key: bytes) -> SignedToken:
    """The token, if the peer with this Ed25519 key granted it. Raises AccessError `token_invalid`."""
    from biscuit_auth import Biscuit

    _check_size(raw)
    try:
        biscuit = Biscuit.from_bytes(raw, _public_key(public_key))
        count = biscuit.block_count()
        sources = [biscuit.block_source(index) for index in range(min(count, MAX_TOKEN_BLOCKS))]
        foreign = any(biscuit.block_external_key(index) is not None for index in range(len(sources)))
        ids = biscuit.revocation_ids
    except Exception as error:
        raise _invalid("it was changed, or is not from whom it says") from error
    if count > MAX_TOKEN_BLOCKS:
        raise _invalid(f"it has {count} blocks, {MAX_TOKEN_BLOCKS} are allowed")
    if foreign:
        raise _invalid("a block is signed by a third party")
    if any(len(one) != _SIGNATURE_DIGITS for one in ids):
        # A valid P-256 signature can be turned into another valid one. The block would then have a second id that is
        # neither revoked nor charged.
        raise _invalid("a block is not signed with an Ed25519 key")
    blocks = tuple(
        Grant(id=grant_id(revocation_id), terms=_terms(source, first=index == 0))
        for index, (source, revocation_id) in enumerate(zip(sources, ids, strict=True))
    )
    return SignedToken(biscuit, Grants(granted_by=_granter(sources[0]), blocks=blocks))


def grant_id(revocation_id: str) -> str:
    """The id of a block: the first 32 hexadecimal digits of the SHA-256 of its signature, Biscuit's revocation id."""
    return hashlib.sha256(bytes.fromhex(revocation_id)).hexdigest()[:_ID_DIGITS]


def _private_key(seed: bytes) -> PrivateKey:
    from biscuit_auth import Algorithm, PrivateKey

    # The type stubs of the library lack the parameter and the value.
    return PrivateKey.from_bytes(seed, Algorithm.Ed25519)  # type: ignore[call-arg,attr-defined]


def _public_key(key: bytes) -> PublicKey:
    from biscuit_auth import Algorithm, PublicKey

    return PublicKey.from_bytes(key, Algorithm.Ed25519)  # type: ignore[call-arg,attr-defined]


def _check_size(raw: bytes) -> None:
    if len(raw) > MAX_TOKEN_BYTES:
        raise _invalid(f"it has {len(raw)} bytes, {MAX_TOKEN_BYTES} are allowed")


def _source(terms: GrantTerms) -> str:
    return "\n".join(_statements(terms)) + "\n"


def _statements(terms: GrantTerms) -> Iterator[str]:
    for dimension in _DIMENSIONS:
        most = getattr(terms.allowance, dimension)
        if most is not None:
            yield f'limit("{dimension}", {most});'
    if terms.expires is not None:
        time = datetime.fromtimestamp(terms.expires, UTC).strftime(_TIME_FORM)
        yield f"check if time($time), $time <= {time};"
    for term, field in _FIELDS.items():
        names = getattr(terms, field)
        if names is not None and not names:
            raise ValueError(f"a grant needs at least one {term}")
        if names is not None:
            listed = ", ".join(f'"{name}"' for name in sorted(names))
            yield f"check if {term}(${term}), {{{listed}}}.contains(${term});"


def _granter(source: str) -> str:
    named = [found[1] for line in source.splitlines() if (found := _GRANTED_BY.fullmatch(line))]
    if len(named) != 1:
        raise _invalid("it does not say who granted it")
    return named[0][1:-1]


def _terms(source: str, *, first: bool) -> GrantTerms:
    lines = source.splitlines()
    if len(lines) > _MAX_STATEMENTS:
        raise _invalid(f"a block has {len(lines)} statements, {_MAX_STATEMENTS} are allowed")
    bounds: dict[str, int] = {}
    names: dict[str, frozenset[str]] = {}
    for line in lines:
        if found := _LIMIT.fullmatch(line):
            _narrow(bounds, found[1], int(found[2]))
        elif found := _TIME.fullmatch(line):
            _narrow(bounds, "expires", _unix(found[1]))
        elif found := _NAMES.fullmatch(line):
            listed = frozenset(name[1:-1] for name in found[2].split(", "))
            field = _FIELDS[found[1]]
            names[field] = names.get(field, listed) & listed
        elif not (first and _GRANTED_BY.fullmatch(line)):
            raise _invalid(f"a block says what is not understood here: {line[:100]!r}")
    expires = bounds.pop("expires", None)
    return GrantTerms(**names, expires=expires, allowance=Allowance(**bounds))


def _narrow(bounds: dict[str, int], name: str, value: int) -> None:
    bounds[name] = min(value, bounds.get(name, value))


def _unix(text: str) -> int:
    try:
        return int(datetime.strptime(text, _TIME_FORM).replace(tzinfo=UTC).timestamp())
    except ValueError:
        raise _invalid(f"a block has a time that is none: {text!r}") from None


def _invalid(why: str) -> AccessError:
    return AccessError(f"the token is invalid: {why}", code="token_invalid")
