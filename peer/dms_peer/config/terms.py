"""Reads the terms on which the owner bids: prices, location, executors, peers, policies (docs/policies.md).

Prices are exact: millionths of the currency unit per hour.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from msgspec import Struct

from dms_protocols.bidding.policies import AsyncPolicy, PeerList
from dms_protocols.bidding.prices import PricesPerHour
from dms_protocols.bidding.service import BidTerms
from dms_protocols.messages.bid import Place

from ..policies.settings import EndpointSettings, EntryPointSettings, ExecutableSettings, PolicySettings
from .yaml_fields import Field, parse_fields, read_file, read_peer_id, read_place

__all__ = ["OwnerTerms", "parse_terms", "read_terms", "read_terms_file"]

_CODE: Final = "bad_terms"
_PRICES: Final = ("core", "ram_gib", "disk_gib", "gpu", "vram_gib", "bid")
_HIGHEST_PRICE: Final = 10**15
_MOST_PEERS: Final = 4096
_MOST_EXECUTORS: Final = 64
_MOST_POLICIES: Final = 8
# Seconds for all policies of one request together. The requester waits for the bid meanwhile.
_LONGEST_BUDGET: Final = 10.0
_SHORTEST_BUDGET: Final = 0.01


class OwnerTerms(Struct, frozen=True, kw_only=True):
    """The terms on which an owner bids, such as how long a bid is valid and which executors the machine has."""

    location: Place | None = None
    executors: tuple[str, ...] = ()
    privileged_docker: bool = False
    valid_seconds: float = 300.0
    prices: PricesPerHour | None = None
    peers: PeerList = PeerList()
    policies: tuple[PolicySettings, ...] = ()

    def bid_terms(self, policies: Sequence[AsyncPolicy]) -> BidTerms:
        """The terms for the bid service. `policies` are the opened policies of the settings."""
        return BidTerms(
            executors=frozenset(self.executors),
            privileged_docker=self.privileged_docker,
            location=self.location,
            valid_seconds=self.valid_seconds,
            # Each policy costs time in every bid, so policies without an effect are left out.
            policies=(
                *([self.peers] if self.peers != PeerList() else []),
                *([self.prices] if self.prices else []),
            ),
            async_policies=tuple(policies),
        )


def read_terms_file(path: Path) -> OwnerTerms:
    """Reads a terms file. Raises DocumentError `bad_terms`. Blocks on disk."""
    return parse_terms(read_file(path, _CODE), str(path), path.absolute().parent)


def parse_terms(content: bytes, name: str, folder: Path) -> OwnerTerms:
    """Reads terms from bytes; `name` is their name in errors. Raises DocumentError `bad_terms`, and nothing else."""
    return read_terms(parse_fields(content, name, _CODE), folder)


def read_terms(field: Field, folder: Path) -> OwnerTerms:
    """Read terms. Programs with a relative path are searched in `folder`. Raises DocumentError."""
    fields = field.fields(OwnerTerms.__struct_fields__)
    return OwnerTerms(
        location=fields.get("location", read_place, None),
        executors=fields.get("executors", lambda one: one.texts(_MOST_EXECUTORS), ()),
        privileged_docker=fields.get("privileged_docker", Field.flag, False),
        valid_seconds=fields.get("valid_seconds", lambda one: one.duration(1, 86400), 300.0),
        prices=fields.get("prices", _prices, None),
        peers=fields.get("peers", _peers, PeerList()),
        policies=fields.get("policies", lambda one: _policies(one, folder), ()),
    )


def _prices(field: Field) -> PricesPerHour:
    fields = field.fields(("currency", *_PRICES), needed=("currency",))
    micros = fields.read_present({name: lambda one: one.micros(_HIGHEST_PRICE) for name in _PRICES})
    return PricesPerHour(currency=fields["currency"].text(), **micros)


def _peers(field: Field) -> PeerList:
    fields = field.fields(("allow", "deny"))

    def peers(one: Field) -> frozenset[str]:
        return frozenset(map(read_peer_id, one.items(_MOST_PEERS)))

    none: frozenset[str] = frozenset()
    allow = fields.get("allow", peers, none)
    if "allow" in fields and not allow:
        fields["allow"].fail("is empty", "remove it to bid for every peer; `dms-peer offboard` stops all bids")
    return PeerList(allow=allow, deny=fields.get("deny", peers, none))


def _policies(field: Field, folder: Path) -> tuple[PolicySettings, ...]:
    policies = tuple(_policy(one, folder) for one in field.items(_MOST_POLICIES))
    if sum(policy.budget for policy in policies) > _LONGEST_BUDGET:
        field.fail(f"the budgets add up to more than {_LONGEST_BUDGET:g} s", "reduce them")
    return policies


def _policy(field: Field, folder: Path) -> PolicySettings:
    kinds = ("python", "command", "url")
    fields = field.fields((*kinds, "budget", "max_concurrent"))
    chosen = [kind for kind in kinds if kind in fields]
    if len(chosen) != 1:
        field.fail("must name exactly one kind of policy", f"write one of {', '.join(kinds)}")
    bounds: dict[str, Any] = fields.read_present(
        {
            "budget": lambda one: one.duration(_SHORTEST_BUDGET, _LONGEST_BUDGET),
            "max_concurrent": lambda one: one.whole(1, 64),
        }
    )
    if "python" in fields:
        return EntryPointSettings(name=fields["python"].text(), **bounds)
    if "command" in fields:
        command = _command(fields["command"], folder)
        return ExecutableSettings(command=command, folder=str(folder), **bounds)
    return EndpointSettings(url=_url(fields["url"]), **bounds)


def _command(field: Field, folder: Path) -> tuple[str, ...]:
    """The absolute path of the program, and its arguments."""
    parts = field.items(64)
    if not parts:
        field.fail("is empty", "write [./policy, argument]")
    name, *arguments = (part.text(longest=1024) for part in parts)
    path = shutil.which(folder / name if os.sep in name else name)
    if path is None:
        parts[0].fail(f"cannot run {name}: no such executable file", "write its path, and make it executable")
    return os.path.abspath(path), *arguments


def _url(field: Field) -> str:
    text = field.text(longest=1024)
    try:
        url = urlsplit(text)
        known = url.scheme in ("http", "https") and bool(url.hostname) and (url.port is None or url.port > 0)
    except ValueError:
        known = False
    if not known or not text.isascii() or " " in text:
        field.fail("is not an HTTP address", "write such as http://127.0.0.1:8080/policy")
    if "@" in url.netloc or url.fragment:
        field.fail("has a user name or a fragment", "remove it")
    return text
