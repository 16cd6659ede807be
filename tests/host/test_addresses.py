"""Addresses: which ones are read, why others are refused, and which ones a host announces."""

from __future__ import annotations

import pytest
from libp2p.identity.identify.identify import _mk_identify_protobuf
from multiaddr import Multiaddr

from dms_host import AddressError, host_addresses, new_identity, open_host
from dms_host import addresses as module
from dms_host.addresses import announced_addresses, parse_listen_address, parse_peer_address

PEER = new_identity(bytes(32)).peer_id
AT = f"/p2p/{PEER}"


@pytest.mark.parametrize("host", ["/ip4/192.0.2.7", "/ip6/2001:db8::1", "/dns4/node", "/dns/node.example.org"])
def test_an_address_over_tcp_is_read(host: str) -> None:
    target = parse_peer_address(f"{host}/tcp/4001{AT}")
    assert (f"/{target.kind}/{target.host}", target.port, target.peer_id.to_base58()) == (host, 4001, PEER)


def test_the_older_name_of_p2p_is_read() -> None:
    assert parse_peer_address(f"/ip4/192.0.2.7/tcp/4001/ipfs/{PEER}").text == f"/ip4/192.0.2.7/tcp/4001{AT}"


REFUSED = {
    f"/ip4/node.example.org/tcp/4001{AT}": ("bad_address", "node.example.org is not an IPv4 address", "/dns4/NAME"),
    f"/ip6/192.0.2.7/tcp/4001{AT}": ("bad_address", "192.0.2.7 is not an IPv6 address", "/dns4/NAME"),
    f"/ip6/[2001:db8::1]/tcp/4001{AT}": ("bad_address", "[2001:db8::1] is not an IPv6 address", "without brackets"),
    f"/ip4/192.0.2.7/tcp/70000{AT}": ("bad_address", "70000 is not a port", "1 to 65535"),
    f"/ip4/192.0.2.7/tcp/http{AT}": ("bad_address", "http is not a port", "1 to 65535"),
    f"/ip4/192.0.2.7/tcp/{'9' * 5000}{AT}": ("bad_address", "is not a port", "1 to 65535"),
    "/ip4/192.0.2.7/tcp/4001/p2p/nobody": ("bad_address", "nobody is not a peer id", "12D3KooW"),
    "": ("bad_address", "", ""),
    f"/dns4/ws/tcp/4001{AT}": ("bad_address", "invalid multiaddr", "looks like"),
    "192.0.2.7:4001": ("bad_address", "invalid multiaddr", "looks like"),
    "/ip4/192.0.2.7/tcp/4001": ("no_peer_id", "does not say which peer", "append /p2p/"),
    f"/ip4/192.0.2.7/tcp/4001/ws{AT}": ("unsupported_address", "WebSocket is not supported", "looks like"),
    f"/ip4/192.0.2.7/tcp/443/wss{AT}": ("unsupported_address", "WebSocket is not supported", "looks like"),
    f"/ip4/192.0.2.7/udp/4001/quic-v1{AT}": ("unsupported_address", "UDP is not supported", "looks like"),
    f"/dnsaddr/bootstrap.example.org{AT}": ("unsupported_address", "dnsaddr is not supported", "looks like"),
    AT: ("unsupported_address", "names a peer, but not where it listens", "looks like"),
    f"/ip4/0.0.0.0/tcp/4001{AT}": ("unsupported_address", "an address to listen on", "when it starts"),
    f"/ip6/::/tcp/4001{AT}": ("unsupported_address", "an address to listen on", "when it starts"),
    f"/ip4/192.0.2.7/tcp/0{AT}": ("unsupported_address", "an address to listen on", "when it starts"),
    f"/ip6/fe80::1/tcp/4001{AT}": ("unsupported_address", "a link-local address needs a zone", "mDNS"),
    f"/ip6/fe80::1%eth0/tcp/4001{AT}": ("unsupported_address", "zones of IPv6 addresses", "looks like"),
    f"/ip6zone/eth0/ip6/fe80::1/tcp/4001{AT}": ("unsupported_address", "zones of IPv6 addresses", "looks like"),
}


@pytest.mark.parametrize(("text", "said"), REFUSED.items(), ids=[text[:40] or "nothing" for text in REFUSED])
def test_what_is_refused_is_refused_for_its_reason(text: str, said: tuple[str, str, str]) -> None:
    with pytest.raises(AddressError) as caught:
        parse_peer_address(text)
    code, message, hint = said
    assert caught.value.code == code
    assert message in caught.value.message
    assert hint in caught.value.hint


@pytest.mark.parametrize("text", ["/ip4/0.0.0.0/tcp/4001/ws", "/dns4/example.org/tcp/4001", "/ip4/0.0.0.0/udp/4001"])
def test_a_host_listens_on_ip_addresses_over_tcp_alone(text: str) -> None:
    with pytest.raises(AddressError) as caught:
        parse_listen_address(text)
    assert caught.value.code == "unsupported_address"
    assert parse_listen_address("/ip4/0.0.0.0/tcp/0") == Multiaddr("/ip4/0.0.0.0/tcp/0")


def test_eight_bridges_of_containers_hide_no_address_that_others_need(monkeypatch) -> None:
    monkeypatch.setattr(module, "_default_route_sources", lambda: frozenset({"192.168.1.20"}))
    bridges = [f"/ip4/172.{number}.0.1/tcp/4001" for number in range(17, 27)]
    relayed = f"/ip4/198.51.100.7/tcp/4001/p2p/{PEER}/p2p-circuit/p2p/{PEER}"
    own = ["/ip4/192.168.1.20/tcp/4001", "/ip4/8.8.8.8/tcp/4001", relayed]
    others = ["/ip4/127.0.0.1/tcp/4001", "/ip6/fe80::1/tcp/4001"]
    assert announced_addresses([*others, *bridges, relayed, *own[:2]]) == (*own, *bridges[:5])


def test_loopback_is_told_where_there_is_nothing_else() -> None:
    assert announced_addresses(["/ip4/127.0.0.1/tcp/4001"]) == ("/ip4/127.0.0.1/tcp/4001",)


async def test_identify_tells_no_wildcard() -> None:
    async with open_host(new_identity(), ["/ip4/0.0.0.0/tcp/0"]) as host:
        told = [str(Multiaddr(raw)) for raw in _mk_identify_protobuf(host, None).listen_addrs]
        assert told
        assert not [address for address in told if address.startswith("/ip4/0.0.0.0/")]
        known = [address.partition("/p2p/")[0] for address in host_addresses(host)]
        assert {address.partition("/p2p/")[0] for address in told} <= set(known)
