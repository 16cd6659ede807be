"""The owner's terms as a file: prices, place, executors, peers and policies, in YAML (docs/policies.md).

Prices are read exactly, as millionths of a unit for an hour.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, TypeVar
from urllib.parse import urlsplit

from msgspec import Struct

from dms_protocols.bidding.policies import AsyncPolicy, PeerList
from dms_protocols.bidding.prices import PricesPerHour
from dms_protocols.bidding.service import BidTerms
from dms_protocols.messages.bid import Place

from ..policies.settings import EndpointSettings, EntryPointSettings, ExecutableSettings, PolicySettings
from .yaml_fields import Field, parse_fields, read_file, read_peer_id, read_place

__all__ = ["OwnerTerms", "parse_terms", "read_terms_file"]

_CODE: Final = "bad_terms"
_PRICES: Final = ("core", "ram_gib", "disk_gib", "gpu", "vram_gib", "bid")
_HIGHEST_PRICE: Final = 10**15
_MOST_PEERS: Final = 4096
_MOST_EXECUTORS: Final = 64
_MOST_POLICIES: Final = 8
# All of them together have to leave a requester time to wait for the answer.
_LONGEST_BUDGET: Final = 10.0
_SHORTEST_BUDGET: Final = 0.01

Value = TypeVar("Value")


class OwnerTerms(Struct, frozen=True, kw_only=True):
    """On what terms an owner bids.

    `executors` None takes whatever is asked for, `valid_seconds` is how long a bid is valid.
    """

    location: Place | None = None
    executors: tuple[str, ...] | None = None
    privileged_docker: bool = False
    valid_seconds: float = 300.0
    prices: PricesPerHour | None = None
    peers: PeerList = PeerList()
    policies: tuple[PolicySettings, ...] = ()

    def bid_terms(self, policies: Sequence[AsyncPolicy]) -> BidTerms:
        """The same for what bids; `policies` are those of the settings, opened."""
        return BidTerms(
            executors=None if self.executors is None else frozenset(self.executors),
            privileged_docker=self.privileged_docker,
            location=self.location,
            valid_seconds=self.valid_seconds,
            # The fewer, the faster a bid is.
            policies=(
                *([self.peers] if self.peers != PeerList() else []),
                *([self.prices] if self.prices else []),
            ),
            async_policies=tuple(policies),
        )


def read_terms_file(path: Path) -> OwnerTerms:
    """Reads a file of terms. Raises DocumentError `bad_terms`. Blocks on disk."""
    return parse_terms(read_file(path, _CODE), str(path), path.absolute().parent)


def parse_terms(content: bytes, name: str, folder: Path) -> OwnerTerms:
    """Reads terms; `name` is what errors call them, programs with a relative path are looked for in `folder`.

    Raises DocumentError `bad_terms`, which names line, column and field, and nothing else, whatever the bytes are.
    """
    fields = parse_fields(content, name, _CODE).fields(OwnerTerms.__struct_fields__)
    return OwnerTerms(
        location=_read(fields, "location", read_place, None),
        executors=_read(fields, "executors", lambda one: one.texts(_MOST_EXECUTORS), None),
        privileged_docker=_read(fields, "privileged_docker", Field.flag, False),
        valid_seconds=_read(fields, "valid_seconds", lambda one: one.duration(1, 86400), 300.0),
        prices=_read(fields, "prices", _prices, None),
        peers=_read(fields, "peers", _peers, PeerList()),
        policies=_read(fields, "policies", lambda one: _policies(one, folder), ()),
    )


def _read(fields: dict[str, Field], name: str, read: Callable[[Field], Value], default: Value) -> Value:
    return read(fields[name]) if name in fields else default


def _prices(field: Field) -> PricesPerHour:
    fields = field.fields(("currency", *_PRICES), needed=("currency",))
    micros = {name: fields[name].micros(_HIGHEST_PRICE) for name in _PRICES if name in fields}
    return PricesPerHour(currency=fields["currency"].text(), **micros)


def _peers(field: Field) -> PeerList:
    fields = field.fields(("allow", "deny"))

    def peers(one: Field) -> frozenset[str]:
        return frozenset(map(read_peer_id, one.items(_MOST_PEERS)))

    nobody: frozenset[str] = frozenset()
    allow = _read(fields, "allow", peers, nobody)
    if "allow" in fields and not allow:
        fields["allow"].fail("names nobody", "leave it out to bid for everybody; `dms-peer offboard` bids for nobody")
    return PeerList(allow=allow, deny=_read(fields, "deny", peers, nobody))


def _policies(field: Field, folder: Path) -> tuple[PolicySettings, ...]:
    policies = tuple(_policy(one, folder) for one in field.items(_MOST_POLICIES))
    if sum(policy.budget for policy in policies) > _LONGEST_BUDGET:
        field.fail(f"together they may take more than {_LONGEST_BUDGET:g} s", "give them smaller budgets")
    return policies


def _policy(field: Field, folder: Path) -> PolicySettings:
    kinds = ("python", "command", "url")
    fields = field.fields((*kinds, "budget", "max_concurrent"))
    chosen = [kind for kind in kinds if kind in fields]
    if len(chosen) != 1:
        field.fail("is not one policy", f"write one of {', '.join(kinds)}")
    bounds = {
        name: value
        for name, value in (
            ("budget", _read(fields, "budget", lambda one: one.duration(_SHORTEST_BUDGET, _LONGEST_BUDGET), None)),
            ("max_concurrent", _read(fields, "max_concurrent", lambda one: one.whole(1, 64), None)),
        )
        if value is not None
    }
    if "python" in fields:
        return EntryPointSettings(name=fields["python"].text(), **bounds)  # type: ignore[arg-type]
    if "command" in fields:
        command = _command(fields["command"], folder)
        return ExecutableSettings(command=command, folder=str(folder), **bounds)  # type: ignore[arg-type]
    return EndpointSettings(url=_url(fields["url"]), **bounds)  # type: ignore[arg-type]


def _command(field: Field, folder: Path) -> tuple[str, ...]:
    """The program by its absolute path, and its arguments."""
    parts = field.items(64)
    if not parts:
        field.fail("names no program", "write [./policy, argument]")
    name, *arguments = (part.text(longest=1024) for part in parts)
    path = shutil.which(folder / name if os.sep in name else name)
    if path is None:
        parts[0].fail(f"{name} is no program that can be run", "write its path, and make it executable")
    return os.path.abspath(path), *arguments


def _url(field: Field) -> str:
    text = field.text(longest=1024)
    try:
        url = urlsplit(text)
        known = url.scheme in ("http", "https") and bool(url.hostname) and (url.port is None or url.port > 0)
    except ValueError:
        known = False
    if not known or not text.isascii() or " " in text:
        field.fail("is no address of an endpoint", "write http://127.0.0.1:8080/policy")
    if "@" in url.netloc or url.fragment:
        field.fail("has a user name or a fragment", "leave them out")
    return text
