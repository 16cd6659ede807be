"""Reads the owner's access rules: which peers may request which operations, and each peer's share (docs/access.md)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from dms_protocols.rpc.access import ANYONE, AccessRule, AccessRules
from dms_protocols.rpc.limits import Share, Shares

from .yaml_fields import Field, parse_fields, read_file, read_peer_id

__all__ = ["OPERATIONS", "OUT_OF_THE_BOX", "OwnerAccess", "parse_access", "read_access", "read_access_file"]

OPERATIONS: Final = (
    "free", "onboarded", "allocated", "machine", "usage", "watch",
    "bid_request", "commit", "renew", "allocate", "release", "list",
    "job_start", "job_status", "job_watch", "job_logs", "job_stop", "tunnel",
)  # fmt: skip
"""The operations of the protocols. Each can have a rule."""

_CODE: Final = "bad_access"
_MOST_PEERS: Final = 4096
_MOST_TRUSTED: Final = 64
_HIGHEST: Final = 10**9
_LONGEST: Final = 30 * 86400.0
_RULES: Final = {"anyone": ANYONE, "nobody": AccessRule(), "token": AccessRule(token=True)}


OUT_OF_THE_BOX: Final = Shares(stranger_capacity=250)
"""The default shares: a quarter of the offer for all strangers at one address together."""


class OwnerAccess(Struct, frozen=True, kw_only=True):
    """The owner's access rules, and the shares of peers."""

    rules: AccessRules = AccessRules()
    shares: Shares = OUT_OF_THE_BOX


def read_access_file(path: Path) -> OwnerAccess:
    """Reads an access file. Raises DocumentError `bad_access`. Blocks on disk."""
    return parse_access(read_file(path, _CODE), str(path))


def parse_access(content: bytes, name: str) -> OwnerAccess:
    """Reads access rules from bytes; `name` is their name in errors. Raises DocumentError `bad_access` only."""
    return read_access(parse_fields(content, name, _CODE))


def read_access(field: Field) -> OwnerAccess:
    """Reads access rules. Raises DocumentError."""
    fields = field.fields(("operations", "others", "trusted", "shares"))
    rules = AccessRules(
        operations=fields.get("operations", _operations, {}),
        others=fields.get("others", _rule, ANYONE),
        trusted=fields.get("trusted", lambda one: tuple(map(read_granter, one.items(_MOST_TRUSTED))), ()),
    )
    return OwnerAccess(rules=rules, shares=fields.get("shares", _shares, OUT_OF_THE_BOX))


def read_granter(field: Field) -> str:
    """Reads the id of an Ed25519 key: such an id contains its key, so tokens can be verified offline."""
    from dms_host.keys.identity import public_key_of

    peer_id = read_peer_id(field)
    if public_key_of(peer_id) is None:
        field.fail("is not the id of an Ed25519 key", "write an id that begins with 12D3KooW")
    return peer_id


def _operations(field: Field) -> dict[str, AccessRule]:
    return {name: _rule(one) for name, one in field.fields(OPERATIONS).entries.items()}


def _rule(field: Field) -> AccessRule:
    if field.is_mapping:
        fields = field.fields(("anyone", "peers", "token"))
        return AccessRule(
            anyone=fields.get("anyone", Field.flag, False),
            peers=frozenset(fields.get("peers", _peers, ())),
            token=fields.get("token", Field.flag, False),
        )
    return _RULES[field.choice(tuple(_RULES))]


def _peers(field: Field) -> tuple[str, ...]:
    return tuple(map(read_peer_id, field.items(_MOST_PEERS)))


def _shares(field: Field) -> Shares:
    fields = field.fields(Shares.__struct_fields__)
    usual = OUT_OF_THE_BOX
    peer = fields.get("peer", lambda one: _share(one, usual.peer), usual.peer)
    # If the owner sets the capacity of each peer, it applies to strangers too.
    strangers = usual.stranger_capacity if peer.capacity == usual.peer.capacity else peer.capacity
    return Shares(
        peer=peer,
        total=fields.get("total", lambda one: _share(one, usual.total), usual.total),
        stranger_capacity=fields.get("stranger_capacity", lambda one: one.whole(1, 1000), strangers),
        assured_requests=fields.get("assured_requests", _number, usual.assured_requests),
        assured_bids=fields.get("assured_bids", _number, usual.assured_bids),
        assured_bytes=fields.get("assured_bytes", _bytes, usual.assured_bytes),
        assured_operations=fields.get("assured_operations", _number, usual.assured_operations),
        assured_streams=fields.get("assured_streams", _number, usual.assured_streams),
        remembered=fields.get("remembered", _number, usual.remembered),
    )


def _share(field: Field, usual: Share) -> Share:
    readers: dict[str, Callable[[Field], float]] = {
        "bytes_in_flight": _bytes,
        "capacity": lambda one: one.whole(1, 1000),
        "longest_ttl": lambda one: one.duration(1, _LONGEST),
    }
    found = {
        name: readers.get(name, _number)(one) for name, one in field.fields(Share.__struct_fields__).entries.items()
    }
    for rate in ("requests", "bids"):
        # A lowered rate has to apply from the first second, so it lowers the burst too.
        if rate in found and f"{rate}_burst" not in found:
            found[f"{rate}_burst"] = min(getattr(usual, f"{rate}_burst"), 2 * found[rate])
    return replace(usual, **found)


def _number(field: Field) -> int:
    return field.whole(1, _HIGHEST)


def _bytes(field: Field) -> int:
    size = field.size()
    if size < 1:
        field.fail("must be more than 0", "write such as 64KiB")
    return size
