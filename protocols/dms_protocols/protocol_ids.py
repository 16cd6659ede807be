"""The protocol ids under which libp2p offers these protocols, each with its semantic version.

A provider serves every version that it knows, side by side. A client offers all versions that it knows, the newest
first, and multistream-select chooses the first that the provider has. A client that speaks 1.1 and a provider of 1.0
use 1.0, and vice versa. The difference between two versions of bids is in one place (`bidding.versions`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, TypeVar

__all__ = [
    "ALLOCATION_PROTOCOL",
    "ALLOCATION_PROTOCOL_1_1",
    "BID_DELIVERY_PROTOCOL",
    "BID_PROTOCOL",
    "BID_PROTOCOL_1_1",
    "JOB_PROTOCOL",
    "KADEMLIA_PROTOCOL",
    "PEERS_PROTOCOL",
    "RESOURCES_PROTOCOL",
    "TUNNEL_PROTOCOL",
    "ProtocolID",
    "newest_first",
    "newest_of_each",
    "versions_of",
]

RESOURCES_PROTOCOL: Final = "/dms/resources/1.0.0"
"""Queries: what a peer has, what is free and what is in use."""
BID_PROTOCOL: Final = "/dms/bid/1.0.0"
"""Bid requests and signed bids."""
BID_PROTOCOL_1_1: Final = "/dms/bid/1.1.0"
"""Bids, with request digests that do not depend on how a number is encoded."""
ALLOCATION_PROTOCOL: Final = "/dms/allocation/1.0.0"
"""Leases: commit, renew, allocate, release and list."""
ALLOCATION_PROTOCOL_1_1: Final = "/dms/allocation/1.1.0"
"""The same, with allocations that end unless they are renewed, and with reported evictions."""
JOB_PROTOCOL: Final = "/dms/job/1.0.0"
"""Jobs on leases: start, status, watch, logs and stop."""
TUNNEL_PROTOCOL: Final = "/dms/tunnel/1.0.0"
"""Connections to ports of jobs."""
PEERS_PROTOCOL: Final = "/dms/peers/1.0.0"
"""The exchange of capacity adverts."""
BID_DELIVERY_PROTOCOL: Final = "/dms/bid-delivery/1.0.0"
"""Answers to broadcast bid requests."""
KADEMLIA_PROTOCOL: Final = "/dms/kad/1.0.0"
"""libp2p's kad-dht under a prefix of its own, separate from the public IPFS network."""

_KNOWN: Final = (
    RESOURCES_PROTOCOL,
    BID_PROTOCOL,
    BID_PROTOCOL_1_1,
    ALLOCATION_PROTOCOL,
    ALLOCATION_PROTOCOL_1_1,
    JOB_PROTOCOL,
    TUNNEL_PROTOCOL,
    PEERS_PROTOCOL,
    BID_DELIVERY_PROTOCOL,
)
_NUMBER: Final = r"(0|[1-9][0-9]{0,8})"
_FORM: Final = re.compile(rf"(/.+)/{_NUMBER}\.{_NUMBER}\.{_NUMBER}")

Served = TypeVar("Served")


@dataclass(frozen=True, slots=True, order=True)
class ProtocolID:
    """The name of a protocol and its semantic version. Of two with the same name, the newer version is greater."""

    name: str
    major: int
    minor: int
    patch: int

    @classmethod
    def parse(cls, text: str) -> ProtocolID:
        """Read "/dms/bid/1.0.0". Raises ValueError for text of another form."""
        found = _FORM.fullmatch(text)
        if found is None:
            raise ValueError(f"{text!r} is no protocol id with a version")
        return cls(found[1], *map(int, found.groups()[1:]))

    def __str__(self) -> str:
        return f"{self.name}/{self.major}.{self.minor}.{self.patch}"


def newest_first(protocols: Iterable[str]) -> list[str]:
    """Versions of one protocol in the order in which a client offers them. Raises ValueError like `parse`."""
    return sorted(protocols, key=ProtocolID.parse, reverse=True)


def versions_of(protocol: str) -> list[str]:
    """All versions of this protocol that this package speaks, the newest first. An unknown protocol id is returned
    alone.
    """
    name = protocol.rpartition("/")[0]
    return newest_first(known for known in _KNOWN if known.rpartition("/")[0] == name) or [protocol]


def newest_of_each(served: Mapping[str, Served]) -> dict[str, Served]:
    """The newest version of each served protocol, for streams on which no version is negotiated."""
    newest: dict[str, str] = {}
    for protocol in sorted(served, key=ProtocolID.parse):
        newest[ProtocolID.parse(protocol).name] = protocol
    return {protocol: served[protocol] for protocol in newest.values()}
