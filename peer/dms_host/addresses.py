"""Addresses: reading what a user writes, and naming what other peers can dial."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import ip_address

from libp2p.abc import IHost
from libp2p.peer.id import ID
from libp2p.utils.address_validation import expand_wildcard_address
from multiaddr import Multiaddr  # type: ignore[import-untyped]  # it has no types

from .errors import AddressError

__all__ = [
    "PeerAddress",
    "announced_addresses",
    "host_addresses",
    "is_loopback",
    "parse_listen_address",
    "parse_peer_address",
]

EXAMPLE = "an address looks like /ip4/192.0.2.7/tcp/4001/p2p/12D3KooW..."
LISTEN_EXAMPLE = "a listen address looks like /ip4/0.0.0.0/tcp/4001"
WILDCARDS = {"/ip4/0.0.0.0/": "/ip4/127.0.0.1/", "/ip6/::/": "/ip6/::1/"}
HOST_PROTOCOLS = ("ip4", "ip6", "dns", "dns4", "dns6")
# What may follow the host.
DIRECT = ["tcp", "p2p"]
RELAYED = ["tcp", "p2p", "p2p-circuit", "p2p"]
# The most addresses that a peer announces.
_MOST_ANNOUNCED = 8


@dataclass(frozen=True, slots=True)
class PeerAddress:
    """Where a peer listens (`kind` of HOST_PROTOCOLS, host, TCP port), its peer id, and the text that said so.

    With a `relay_id`, that relay listens there, and the peer is reached through it.
    """

    text: str
    kind: str
    host: str
    port: int
    peer_id: ID
    relay_id: ID | None = None

    @property
    def relayed(self) -> bool:
        """Whether the peer is reached through a relay."""
        return self.relay_id is not None

    @property
    def relay(self) -> PeerAddress:
        """The address of the relay itself. Raises ValueError if there is none."""
        if self.relay_id is None:
            raise ValueError(f"{self.text} leads through no relay")
        text = f"{self.transport}/p2p/{self.relay_id.to_base58()}"
        return PeerAddress(text, self.kind, self.host, self.port, self.relay_id)

    @property
    def transport(self) -> Multiaddr:
        """The address that listens, without a peer id."""
        return Multiaddr(f"/{self.kind}/{self.host}/tcp/{self.port}")


def parse_peer_address(text: str) -> PeerAddress:
    """Read a multiaddr of the form /ip4|ip6|dns|dns4|dns6/HOST/tcp/PORT/p2p/PEER_ID. Raises AddressError.

    A peer behind a relay is .../p2p/RELAY_ID/p2p-circuit/p2p/PEER_ID.
    """
    parts = _parts(text, EXAMPLE)
    names = [name for name, _ in parts]
    if len(names) >= 2 and "p2p" not in names:
        raise AddressError(
            f"{text} does not say which peer is there",
            code="no_peer_id",
            address=text,
            hint="append /p2p/ and its peer id",
        )
    if names[0] not in HOST_PROTOCOLS or names[1:] not in (DIRECT, RELAYED):
        raise AddressError(
            f"cannot dial {text}: only TCP is supported", code="unsupported_address", address=text, hint=EXAMPLE
        )
    host, port, listener, peer = parts[0][1], int(parts[1][1]), ID.from_string(parts[2][1]), parts[-1][1]
    if len(parts) == len(DIRECT) + 1:
        return PeerAddress(text, names[0], host, port, listener)
    return PeerAddress(text, names[0], host, port, ID.from_string(peer), listener)


def parse_listen_address(text: str) -> Multiaddr:
    """Read a multiaddr of the form /ip4|ip6/ADDRESS/tcp/PORT. Raises AddressError."""
    names = [name for name, _ in _parts(text, LISTEN_EXAMPLE)]
    if names not in (["ip4", "tcp"], ["ip6", "tcp"]):
        raise AddressError(
            f"cannot listen on {text}: only TCP is supported",
            code="unsupported_address",
            address=text,
            hint=LISTEN_EXAMPLE,
        )
    return Multiaddr(text)


def _parts(text: str, example: str) -> list[tuple[str, str]]:
    try:
        if parts := [(protocol.name, str(value)) for protocol, value in Multiaddr(text).items()]:
            return parts
    except Exception as error:
        # Each of the library's codecs raises its own error.
        raise AddressError(f"{text!r} is no multiaddr", code="bad_address", address=text, hint=example) from error
    raise AddressError("the address is empty", code="bad_address", address=text, hint=example)


def host_addresses(host: IHost) -> tuple[str, ...]:
    """The addresses that other peers can dial, with this host's peer id; a wildcard becomes the machine's addresses.

    Addresses behind relays where the host has a reservation come last.
    """
    peer_id = host.get_id().to_base58()
    found = (concrete for address in host.get_transport_addrs() for concrete in _concrete(str(address)))
    relayed: tuple[str, ...] = getattr(host, "relayed_addresses", ())
    return tuple(dict.fromkeys([*(f"{address}/p2p/{peer_id}" for address in found), *relayed]))


def _concrete(address: str) -> list[str]:
    for wildcard, loopback in WILDCARDS.items():
        if address.startswith(wildcard):
            others = map(str, expand_wildcard_address(Multiaddr(address)))
            # The library leaves loopback out, which always works on this machine.
            return [*(other for other in others if other != address), address.replace(wildcard, loopback, 1)]
    return [address]


def announced_addresses(addrs: Sequence[str]) -> tuple[str, ...]:
    """The addresses (multiaddrs) of a peer that others can use: loopback only if there is nothing else."""
    others = [address for address in addrs if not is_loopback(address)]
    return tuple(others or addrs)[:_MOST_ANNOUNCED]


def is_loopback(address: str) -> bool:
    """Whether the address leads nowhere but to the machine itself."""
    _, _, host, *_ = (*address.split("/"), "", "", "")
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
