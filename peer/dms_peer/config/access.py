"""Who may do what, and how peers share this one, as a file of the owner's, in YAML (docs/access.md)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeVar

from msgspec import Struct
from msgspec.structs import replace

from dms_protocols.rpc.access import ANYONE, AccessRule, AccessRules
from dms_protocols.rpc.limits import Share, Shares

from .yaml_fields import Field, parse_fields, read_file, read_peer_id

__all__ = ["OPERATIONS", "OwnerAccess", "parse_access", "read_access_file"]

OPERATIONS: Final = (
    "free", "onboarded", "allocated", "machine", "usage", "watch",
    "bid_request", "commit", "renew", "allocate", "release", "list",
)  # fmt: skip
"""What other peers can ask for, and rules can be made for."""

_CODE: Final = "bad_access"
_MOST_PEERS: Final = 4096
_MOST_TRUSTED: Final = 64
_HIGHEST: Final = 10**9
_LONGEST: Final = 30 * 86400.0
_RULES: Final = {"anyone": ANYONE, "nobody": AccessRule(), "token": AccessRule(token=True)}

Value = TypeVar("Value")


class OwnerAccess(Struct, frozen=True, kw_only=True):
    """The owner's rules and shares."""

    rules: AccessRules = AccessRules()
    shares: Shares = Shares()


def read_access_file(path: Path) -> OwnerAccess:
    """Reads a file of rules. Raises DocumentError `bad_access`. Blocks on disk."""
    return parse_access(read_file(path, _CODE), str(path))


def parse_access(content: bytes, name: str) -> OwnerAccess:
    """Reads rules; `name` is what errors call them.

    Raises DocumentError `bad_access`, which names line, column and field, and nothing else, whatever the bytes are.
    """
    fields = parse_fields(content, name, _CODE).fields(("operations", "others", "trusted", "shares"))
    rules = AccessRules(
        operations=_read(fields, "operations", _operations, {}),
        others=_read(fields, "others", _rule, ANYONE),
        trusted=_read(fields, "trusted", lambda one: tuple(map(read_granter, one.items(_MOST_TRUSTED))), ()),
    )
    return OwnerAccess(rules=rules, shares=_read(fields, "shares", _shares, Shares()))


def read_granter(field: Field) -> str:
    """The id of a peer whose key is the id itself, so that nobody needs to be asked for it."""
    from dms_host.keys.identity import public_key_of

    peer_id = read_peer_id(field)
    if public_key_of(peer_id) is None:
        field.fail("is not the id of an Ed25519 key", "write one that begins with 12D3KooW")
    return peer_id


def _read(fields: dict[str, Field], name: str, read: Callable[[Field], Value], default: Value) -> Value:
    return read(fields[name]) if name in fields else default


def _operations(field: Field) -> dict[str, AccessRule]:
    return {name: _rule(one) for name, one in field.fields(OPERATIONS).items()}


def _rule(field: Field) -> AccessRule:
    if field.is_mapping:
        fields = field.fields(("peers", "token"))
        peers = _peers(fields["peers"]) if "peers" in fields else ()
        return AccessRule(peers=frozenset(peers), token=_read(fields, "token", Field.flag, False))
    return _RULES[field.choice(tuple(_RULES))]


def _peers(field: Field) -> tuple[str, ...]:
    return tuple(map(read_peer_id, field.items(_MOST_PEERS)))


def _shares(field: Field) -> Shares:
    fields = field.fields(Shares.__struct_fields__)
    usual = Shares()
    return Shares(
        peer=_read(fields, "peer", lambda one: _share(one, usual.peer), usual.peer),
        total=_read(fields, "total", lambda one: _share(one, usual.total), usual.total),
        assured_requests=_read(fields, "assured_requests", _number, usual.assured_requests),
        assured_bids=_read(fields, "assured_bids", _number, usual.assured_bids),
        assured_bytes=_read(fields, "assured_bytes", _bytes, usual.assured_bytes),
        assured_operations=_read(fields, "assured_operations", _number, usual.assured_operations),
        assured_streams=_read(fields, "assured_streams", _number, usual.assured_streams),
        remembered=_read(fields, "remembered", _number, usual.remembered),
    )


def _share(field: Field, usual: Share) -> Share:
    readers: dict[str, Callable[[Field], float]] = {
        "bytes_in_flight": _bytes,
        "capacity": lambda one: one.whole(1, 1000),
        "longest_ttl": lambda one: one.duration(1, _LONGEST),
    }
    found = {name: readers.get(name, _number)(one) for name, one in field.fields(Share.__struct_fields__).items()}
    for rate in ("requests", "bids"):
        # Who lowers a rate means it from the first second on.
        if rate in found and f"{rate}_burst" not in found:
            found[f"{rate}_burst"] = min(getattr(usual, f"{rate}_burst"), 2 * found[rate])
    return replace(usual, **found)


def _number(field: Field) -> int:
    return field.whole(1, _HIGHEST)


def _bytes(field: Field) -> int:
    size = field.size()
    if size < 1:
        field.fail("is nothing", "write 64KiB or more")
    return size
