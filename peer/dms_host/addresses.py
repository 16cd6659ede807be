"""Addresses: parsing what a user writes, and choosing what other peers can dial."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address

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
    "parse_announced_address",
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
_UNSUPPORTED = {
    "ws": "WebSocket is not supported",
    "wss": "WebSocket is not supported",
    "tls": "TLS is not supported",
    "udp": "UDP is not supported, and neither is QUIC",
    "quic": "QUIC is not supported",
    "quic-v1": "QUIC is not supported",
    "webtransport": "WebTransport is not supported",
    "webrtc-direct": "WebRTC is not supported",
    "dnsaddr": "dnsaddr is not supported; its TXT records (_dnsaddr.NAME) have addresses that may be",
    "unix": "UNIX sockets are not supported",
}
_LAST_PORT = 65535
# The most addresses that a peer announces.
_MOST_ANNOUNCED = 8


@dataclass(frozen=True, slots=True)
class PeerAddress:
    """Where a peer listens (`kind` of HOST_PROTOCOLS, host, TCP port), its peer id, and the original text.

    If there is a `relay_id`, these are the address of that relay, through which the peer is reached.
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
        """The listening address, without a peer id."""
        return Multiaddr(f"/{self.kind}/{self.host}/tcp/{self.port}")


def parse_peer_address(text: str) -> PeerAddress:
    """Read a multiaddr of the form /ip4|ip6|dns|dns4|dns6/HOST/tcp/PORT/p2p/PEER_ID. Raises AddressError.

    A peer behind a relay is .../p2p/RELAY_ID/p2p-circuit/p2p/PEER_ID. The older /ipfs/PEER_ID is read as /p2p/PEER_ID.
    """
    text = text.replace("/ipfs/", "/p2p/")
    _refuse_unsupported(text, "dial", EXAMPLE)
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
        raise _unsupported(f"cannot dial {text}: it is not an address over TCP", text, EXAMPLE)
    host, port, listener, peer = parts[0][1], int(parts[1][1]), ID.from_string(parts[2][1]), parts[-1][1]
    _refuse_listen_only(text, names[0], host, port)
    if len(parts) == len(DIRECT) + 1:
        return PeerAddress(text, names[0], host, port, listener)
    return PeerAddress(text, names[0], host, port, ID.from_string(peer), listener)


def parse_listen_address(text: str) -> Multiaddr:
    """Read a multiaddr of the form /ip4|ip6/ADDRESS/tcp/PORT. Raises AddressError."""
    _refuse_unsupported(text, "listen on", LISTEN_EXAMPLE)
    names = [name for name, _ in _parts(text, LISTEN_EXAMPLE)]
    if names not in (["ip4", "tcp"], ["ip6", "tcp"]):
        raise _unsupported(f"cannot listen on {text}: it is not an IP address with a TCP port", text, LISTEN_EXAMPLE)
    return Multiaddr(text)


def parse_announced_address(text: str, own_id: str) -> str:
    """Read an address under which others reach this host, such as /dns4/NAME/tcp/PORT; returns it with the peer id.

    The peer id may be left out. Raises AddressError, also for the id of another peer.
    """
    if not text.startswith("/"):
        # What is appended below must not make another error of it.
        _parts(text, EXAMPLE)
    named = "/p2p/" in text or "/ipfs/" in text
    address = parse_peer_address(text if named else f"{text.rstrip('/')}/p2p/{own_id}")
    if address.peer_id.to_base58() != own_id:
        raise AddressError(
            f"{text} is the address of another peer",
            code="wrong_peer",
            address=text,
            hint=f"leave out the peer id, or write /p2p/{own_id}",
        )
    return address.text


def _unsupported(message: str, text: str, hint: str) -> AddressError:
    return AddressError(message, code="unsupported_address", address=text, hint=hint)


def _refuse_unsupported(text: str, purpose: str, example: str) -> None:
    """Raise AddressError for what this host does not support, before the library reports a less helpful error."""
    parts = text.split("/")
    names = parts[1::2]
    # The second part is the value of the first.
    for name in (*parts[1:2], *parts[3:]):
        if name in _UNSUPPORTED:
            raise _unsupported(f"cannot {purpose} {text}: {_UNSUPPORTED[name]}", text, example)
    if names[:1] == ["ip6zone"] or "%" in text:
        raise _unsupported(f"cannot {purpose} {text}: zones of IPv6 addresses are not supported", text, example)
    if names == ["p2p"]:
        raise _unsupported(f"{text} names a peer, but not where it listens", text, example)


def _refuse_listen_only(text: str, kind: str, host: str, port: int) -> None:
    if port == 0 or (kind in ("ip4", "ip6") and ip_address(host).is_unspecified):
        hint = "use one of the addresses that the peer prints when it starts"
        raise _unsupported(f"cannot dial {text}: that is an address to listen on", text, hint)
    if kind == "ip6" and ip_address(host).is_link_local:
        hint = "use another address of that peer; on one network, mDNS finds it"
        raise _unsupported(f"cannot dial {text}: a link-local address needs a zone, which is not supported", text, hint)


def _parts(text: str, example: str) -> list[tuple[str, str]]:
    try:
        if parts := [(protocol.name, str(value)) for protocol, value in Multiaddr(text).items()]:
            return parts
    except Exception as error:
        # Each codec of the library raises an error of its own.
        reason, hint = _reason(text) or ("", example)
        message = f"invalid multiaddr {text!r}{reason and ': '}{reason}"
        raise AddressError(message, code="bad_address", address=text, hint=hint) from error
    raise AddressError("the address is empty", code="bad_address", address=text, hint=example)


def _reason(text: str) -> tuple[str, str] | None:
    """Which part of an invalid multiaddr is wrong, and what to do; None if that is not clear."""
    parts = text.split("/")
    for name, value in zip(parts[1::2], parts[2::2], strict=False):
        if name in ("ip4", "ip6") and not _is_ip(value, name):
            family = {"ip4": "IPv4", "ip6": "IPv6"}[name]
            hint = (
                "write it without brackets" if value.startswith("[") else "a name is written as /dns4/NAME or /dns/NAME"
            )
            return f"{value} is not an {family} address", hint
        if name == "tcp" and not (value.isascii() and value.isdigit() and int(value[:6]) <= _LAST_PORT):
            return f"{value} is not a port", f"a port is a number from 1 to {_LAST_PORT}"
        if name == "p2p" and not _is_peer_id(value):
            return f"{value[:80]} is not a peer id", "a peer id looks like 12D3KooW..."
    return None


def _is_peer_id(text: str) -> bool:
    try:
        Multiaddr(f"/p2p/{text}")
    except Exception:
        # Each codec of the library raises an error of its own.
        return False
    return True


def _is_ip(text: str, kind: str) -> bool:
    try:
        return ip_address(text).version == (4 if kind == "ip4" else 6)
    except ValueError:
        return False


def host_addresses(host: IHost) -> tuple[str, ...]:
    """The addresses that other peers can dial, with this host's peer id. A wildcard is replaced by the machine's
    addresses.

    The addresses that the owner announces come first, those behind relays with a reservation last.
    """
    peer_id = host.get_id().to_base58()
    announced: tuple[str, ...] = getattr(host, "announced", ())
    found = (concrete for address in host.get_transport_addrs() for concrete in _concrete(str(address)))
    relayed: tuple[str, ...] = getattr(host, "relayed_addresses", ())
    return tuple(dict.fromkeys([*announced, *(f"{address}/p2p/{peer_id}" for address in found), *relayed]))


def _concrete(address: str) -> list[str]:
    for wildcard, loopback in WILDCARDS.items():
        if address.startswith(wildcard):
            others = map(str, expand_wildcard_address(Multiaddr(address)))
            # The library leaves loopback out, which always works on this machine.
            return [*(other for other in others if other != address), address.replace(wildcard, loopback, 1)]
    return [address]


def announced_addresses(addrs: Sequence[str], first: Sequence[str] = ()) -> tuple[str, ...]:
    """The addresses (multiaddrs) of this host that are most useful to others: at most eight, the best first.

    The order is: those of `first`, which the owner names, the address of the default route, public addresses, addresses
    behind relays, private addresses. Loopback and link-local addresses are included only if there are no others.
    Queries the operating system.
    """
    others = [address for address in addrs if not is_loopback(address) and not _is_link_local(address)]
    sources = _default_route_sources()
    ranked = sorted(others or addrs, key=lambda address: _rank(address, sources))
    return tuple(dict.fromkeys((*first, *ranked)))[:_MOST_ANNOUNCED]


def _rank(address: str, sources: frozenset[str]) -> int:
    ip = _ip(address)
    if "/p2p-circuit" in address:
        return 2
    if ip is not None and str(ip) in sources:
        return 0
    return 1 if ip is None or ip.is_global else 3


def _default_route_sources() -> frozenset[str]:
    """The source addresses of this machine's default routes. It connects a datagram socket, which sends nothing."""
    found = set()
    for family, elsewhere in ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1")):
        with suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((elsewhere, 9))
            found.add(str(probe.getsockname()[0]))
    return frozenset(found)


def is_loopback(address: str) -> bool:
    """Whether the address (a multiaddr) leads only to the machine itself."""
    ip = _ip(address)
    return ip is not None and ip.is_loopback


def _is_link_local(address: str) -> bool:
    ip = _ip(address)
    return ip is not None and ip.is_link_local


def _ip(address: str) -> IPv4Address | IPv6Address | None:
    _, _, host, *_ = (*address.split("/"), "", "", "")
    try:
        return ip_address(host)
    except ValueError:
        return None
