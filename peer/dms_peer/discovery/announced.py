"""The addresses that a peer tells to others."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import ip_address
from typing import Final

__all__ = ["announced_addresses", "is_loopback"]

_MOST: Final = 8


def announced_addresses(addrs: Sequence[str]) -> tuple[str, ...]:
    """Of a peer's addresses (multiaddrs) those that others can use: loopback only where there is nothing else."""
    others = [address for address in addrs if not is_loopback(address)]
    return tuple(others or addrs)[:_MOST]


def is_loopback(address: str) -> bool:
    """Whether the address leads nowhere but to the machine itself."""
    _, _, host, *_ = (*address.split("/"), "", "", "")
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
