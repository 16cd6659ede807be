"""The names under which libp2p offers these protocols, each with its semantic version."""

from __future__ import annotations

from typing import Final

__all__ = ["ALLOCATION_PROTOCOL", "BID_PROTOCOL", "RESOURCES_PROTOCOL"]

RESOURCES_PROTOCOL: Final = "/dms/resources/1.0.0"
BID_PROTOCOL: Final = "/dms/bid/1.0.0"
ALLOCATION_PROTOCOL: Final = "/dms/allocation/1.0.0"
