"""Lists of peers and address ranges that may or may not connect, in both directions."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

import base58

__all__ = ["ConnectionGater", "address_group", "end_site"]

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network


@dataclass(frozen=True, slots=True)
class ConnectionGater:
    """Peer ids and address ranges (CIDR, or one address) that are allowed or denied.

    If nothing is listed as allowed, everything is allowed. A denied peer or address is denied even if it is also
    allowed. An IPv4 address that arrives over an IPv6 socket counts as IPv4. Raises ValueError for an invalid peer id
    or range.
    """

    allow_peers: frozenset[str] = frozenset()
    deny_peers: frozenset[str] = frozenset()
    allow_addresses: tuple[str, ...] = ()
    deny_addresses: tuple[str, ...] = ()
    _allowed: tuple[Network, ...] = field(init=False, repr=False, compare=False)
    _denied: tuple[Network, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Read the lists, which may be given as any iterable."""
        put = object.__setattr__
        for name in ("allow_peers", "deny_peers"):
            peers = frozenset(getattr(self, name))
            _check_peers(peers)
            put(self, name, peers)
        for name, read in (("allow_addresses", "_allowed"), ("deny_addresses", "_denied")):
            ranges = tuple(getattr(self, name))
            put(self, name, ranges)
            put(self, read, tuple(_network(text) for text in ranges))

    def allows_peer(self, peer_id: str) -> bool:
        """Whether the peer with this id may connect or be dialled."""
        return peer_id not in self.deny_peers and (not self.allow_peers or peer_id in self.allow_peers)

    def allows_address(self, address: str) -> bool:
        """Whether this IP address may connect or be dialled. Other text is allowed if no range is listed as allowed."""
        if not self._allowed and not self._denied:
            return True
        ip = _address(address)
        if ip is None:
            return not self._allowed
        denied = any(ip in network for network in self._denied)
        return not denied and (not self._allowed or any(ip in network for network in self._allowed))


def address_group(address: str) -> str:
    """The group of addresses that counts as one machine: an IPv4 address, or the /64 network of an IPv6 address."""
    ip = _address(address)
    if isinstance(ip, IPv6Address):
        return str(IPv6Network((ip, 64), strict=False))
    return address if ip is None else str(ip)


def end_site(address: str) -> str:
    """The addresses of one customer of a network: the /48 network of an IPv6 address (RFC 6177), otherwise empty."""
    ip = _address(address)
    return str(IPv6Network((ip, 48), strict=False)) if isinstance(ip, IPv6Address) else ""


def _address(text: str) -> Address | None:
    try:
        # A link-local address may name its interface.
        ip = ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return (ip.ipv4_mapped or ip) if isinstance(ip, IPv6Address) else ip


def _network(text: str) -> Network:
    network = ip_network(text.strip(), strict=False)
    if isinstance(network, IPv6Network) and network.prefixlen >= 96:
        mapped = network.network_address.ipv4_mapped
        if mapped is not None:
            return ip_network((mapped, network.prefixlen - 96))
    return network


def _check_peers(peers: Iterable[str]) -> None:
    for peer in peers:
        try:
            multihash = base58.b58decode(peer)
        except ValueError:
            multihash = b""
        if len(multihash) < 2 or len(multihash) != multihash[1] + 2:
            raise ValueError(f"{peer!r} is not a peer id, which looks like 12D3KooW...")
