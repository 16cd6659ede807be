"""Which peers may connect: lists of peers and addresses, checked before the handshake if possible, and limits for one
machine.
"""

from __future__ import annotations

import logging
from contextlib import AsyncExitStack
from functools import partial

import pytest
import trio
import trio.testing
from libp2p.exceptions import BaseLibp2pError
from libp2p.io.exceptions import IOException
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import info_from_p2p_addr
from multiaddr import Multiaddr

from dms_host import ConnectionGater, HostLimits, dial, host_addresses, open_host
from dms_host.addresses import parse_peer_address
from dms_host.errors import DialError
from dms_host.keys.identity import new_identity
from dms_host.swarm.connection_gater import address_group, end_site

LOOPBACK = "/ip4/127.0.0.1/tcp/0"
LOOPBACK6 = "/ip6/::1/tcp/0"
SOMEBODY = new_identity(b"somebody".ljust(32)).peer_id


@pytest.mark.parametrize(
    ("allow", "deny", "address", "allowed"),
    [
        ((), (), "192.0.2.1", True),
        ((), (), "", True),
        ((), ("192.0.2.0/24",), "192.0.2.1", False),
        ((), ("192.0.2.0/24",), "192.0.3.1", True),
        ((), ("192.0.2.7",), "192.0.2.7", False),
        # A range with host bits set counts as the range that contains it.
        ((), ("192.0.2.7/24",), "192.0.2.1", False),
        (("10.0.0.0/8",), (), "10.1.2.3", True),
        (("10.0.0.0/8",), (), "192.0.2.1", False),
        (("10.0.0.0/8",), (), "2001:db8::1", False),
        (("10.0.0.0/8",), (), "", False),
        # A denial overrides.
        (("10.0.0.0/8",), ("10.1.0.0/16",), "10.1.2.3", False),
        (("10.1.2.3",), ("10.0.0.0/8",), "10.1.2.3", False),
        ((), ("2001:db8::/32",), "2001:db8:1::1", False),
        ((), ("2001:db8::/32",), "2001:db9::1", True),
        (("fe80::/10",), (), "fe80::1%eth0", True),
        # IPv4 over an IPv6 socket is IPv4, in the address and in the list.
        ((), ("192.0.2.0/24",), "::ffff:192.0.2.1", False),
        ((), ("::ffff:192.0.2.0/120",), "192.0.2.1", False),
        ((), ("::ffff:192.0.2.0/120",), "192.0.3.1", True),
    ],
)
def test_address_lists(allow, deny, address: str, allowed: bool) -> None:
    assert ConnectionGater(allow_addresses=allow, deny_addresses=deny).allows_address(address) is allowed


def test_peer_lists() -> None:
    other = new_identity().peer_id
    assert ConnectionGater().allows_peer(SOMEBODY)
    assert not ConnectionGater(deny_peers=[SOMEBODY]).allows_peer(SOMEBODY)
    assert ConnectionGater(deny_peers=[SOMEBODY]).allows_peer(other)
    assert ConnectionGater(allow_peers=[SOMEBODY]).allows_peer(SOMEBODY)
    assert not ConnectionGater(allow_peers=[SOMEBODY]).allows_peer(other)
    assert not ConnectionGater(allow_peers=[SOMEBODY], deny_peers=[SOMEBODY]).allows_peer(SOMEBODY)


@pytest.mark.parametrize(
    "lists",
    [
        {"allow_peers": ["nonsense"]},
        {"deny_peers": [SOMEBODY[:-3]]},
        {"allow_addresses": ["256.0.0.0/8"]},
        {"deny_addresses": ["10.0.0.0/33"]},
        {"deny_addresses": ["example.org"]},
    ],
)
def test_lists_that_make_no_sense_are_refused(lists) -> None:
    with pytest.raises(ValueError, match=next(iter(next(iter(lists.values())))).partition("/")[0][:4]):
        ConnectionGater(**lists)


def test_equal_lists_are_equal() -> None:
    assert ConnectionGater(deny_addresses=["10.0.0.0/8"]) == ConnectionGater(deny_addresses=("10.0.0.0/8",))
    assert hash(ConnectionGater(deny_peers=[SOMEBODY])) == hash(ConnectionGater(deny_peers=frozenset([SOMEBODY])))


@pytest.mark.parametrize(
    ("address", "group"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2:ffff::", "2001:db8:1:2::/64"),
        ("2001:db8:1:3::", "2001:db8:1:3::/64"),
        ("fe80::1%eth0", "fe80::/64"),
    ],
)
def test_what_counts_as_one_machine(address: str, group: str) -> None:
    assert address_group(address) == group


@pytest.mark.parametrize(
    ("address", "site"),
    [
        ("2001:db8:7:1::9", "2001:db8:7::/48"),
        ("fe80::1%eth0", "fe80::/48"),
        ("192.0.2.1", ""),
        ("::ffff:192.0.2.1", ""),
    ],
)
def test_what_one_customer_of_a_network_may_have(address: str, site: str) -> None:
    assert end_site(address) == site


# Inbound


async def turned_away(address: str, source: str | None = None) -> bool:
    """Whether a host closes a stranger's connection at once. A host that accepts it sends first."""
    target = parse_peer_address(address)
    stranger = await trio.open_tcp_stream(target.host, target.port, local_address=source)
    async with stranger:
        with trio.fail_after(5):
            return await stranger.receive_some(1) == b""


@pytest.mark.parametrize(("listen", "denied"), [(LOOPBACK, "127.0.0.0/8"), (LOOPBACK6, "::1"), (LOOPBACK6, "::/64")])
async def test_a_denied_address_gets_not_a_byte(listen: str, denied: str) -> None:
    async with open_host(new_identity(), [listen], gate=ConnectionGater(deny_addresses=[denied])) as host:
        assert await turned_away(host_addresses(host)[0])
    async with open_host(new_identity(), [listen], gate=ConnectionGater(allow_addresses=[denied])) as host:
        assert not await turned_away(host_addresses(host)[0])


async def test_a_denied_address_takes_no_slot(caplog) -> None:
    caplog.set_level(logging.DEBUG, "dms_host.swarm.swarm")
    gate = ConnectionGater(deny_addresses=["127.0.0.1"])
    limits = HostLimits(max_inbound_connections=1)
    async with open_host(new_identity(), [LOOPBACK], limits, gate=gate) as host:
        address = host_addresses(host)[0]
        # If all slots are in use, only a check before the slots can be the reason.
        host.swarm.inbound_connections = 1
        assert await turned_away(address)
        assert [record.getMessage() for record in caplog.records] == [
            "turned a connection away: 127.0.0.1 is not allowed"
        ]
        host.swarm.inbound_connections = 0


async def test_a_peer_that_is_not_allowed_gets_as_far_as_noise(noise_attacker) -> None:
    async with open_host(new_identity(), [LOOPBACK], gate=ConnectionGater(allow_peers=[SOMEBODY])) as host:
        async with noise_attacker(host_addresses(host)[0]) as secured:
            with trio.fail_after(5), pytest.raises(IOException):
                await secured.read(1)
        assert host.get_network().get_connections() == []


async def test_only_those_on_the_list_connect(eventually) -> None:
    friend, stranger = new_identity(), new_identity()
    gate = ConnectionGater(allow_peers=[friend.peer_id])
    async with (
        open_host(new_identity(), [LOOPBACK], gate=gate) as host,
        open_host(friend) as welcome,
        open_host(stranger) as unwelcome,
    ):
        with pytest.raises(DialError) as caught:
            await dial(unwelcome, host_addresses(host)[0])
        assert caught.value.code == "handshake_failed"
        await dial(welcome, host_addresses(host)[0])
        await eventually(lambda: host.get_connected_peers() == [ID.from_string(friend.peer_id)])
        assert host.swarm.inbound_connections == 1


async def test_one_machine_does_not_take_all_slots(eventually) -> None:
    async with (
        open_host(new_identity(), [LOOPBACK], HostLimits(max_inbound_per_address=3)) as host,
        AsyncExitStack() as stack,
    ):
        address = host_addresses(host)[0]
        target = parse_peer_address(address)
        for _ in range(3):
            await stack.enter_async_context(await trio.open_tcp_stream(target.host, target.port))
        await eventually(lambda: host.swarm.inbound_connections == 3)
        assert await turned_away(address)
        assert not await turned_away(address, source="127.0.0.2")
        await stack.aclose()
        await eventually(lambda: not host.swarm.inbound_by_address)
        assert not await turned_away(address)


async def test_machines_that_say_nothing_do_not_keep_others_from_shaking_hands(client, eventually) -> None:
    async with (
        open_host(new_identity(), [LOOPBACK], HostLimits(max_inbound_handshakes=4)) as host,
        AsyncExitStack() as stack,
    ):
        target = parse_peer_address(address := host_addresses(host)[0])
        silent = []
        for source in ("127.0.0.2", "127.0.0.3"):
            for _ in range(2):
                stream = await trio.open_tcp_stream(target.host, target.port, local_address=source)
                silent.append(await stack.enter_async_context(stream))
        await eventually(lambda: host.swarm.inbound_handshakes == 4)
        for _ in range(3):
            await dial(client, address)
            for connection in client.get_network().get_connections():
                await connection.close()
        # The oldest connections of the address with the most connections were closed.
        with trio.fail_after(5):
            while await silent[0].receive_some():
                pass
        assert host.swarm.limits_hit["inbound_handshakes"] == 1


async def test_an_address_with_few_handshakes_does_not_give_way_to_one_with_as_many(eventually) -> None:
    async with (
        open_host(new_identity(), [LOOPBACK], HostLimits(max_inbound_handshakes=2)) as host,
        AsyncExitStack() as stack,
    ):
        target = parse_peer_address(address := host_addresses(host)[0])
        for source in ("127.0.0.2", "127.0.0.3"):
            stream = await trio.open_tcp_stream(target.host, target.port, local_address=source)
            await stack.enter_async_context(stream)
        await eventually(lambda: host.swarm.inbound_handshakes == 2)
        for source in ("127.0.0.2", "127.0.0.4"):
            assert await turned_away(address, source=source)
        assert host.swarm.inbound_handshakes == 2


class Silent:
    """A connection that sends nothing until it is closed."""

    def __init__(self, address: str) -> None:
        self.address = address

    async def read(self, n: int | None = None) -> bytes:
        await trio.sleep_forever()
        return b""

    async def write(self, data: bytes) -> None:
        """Accept the data."""

    async def close(self) -> None:
        """Nothing to close."""

    def get_remote_address(self) -> tuple[str, int] | None:
        return self.address, 1


async def test_one_site_with_many_networks_does_not_take_all_slots(nursery, eventually) -> None:
    limits = HostLimits(max_inbound_per_address=2, max_inbound_per_site=3)
    async with open_host(new_identity(), limits=limits) as host:
        swarm = host.swarm

        async def connect(address: str) -> None:
            await swarm._handle_inbound_connection(Silent(address), Multiaddr(LOOPBACK))

        for network in range(5):
            nursery.start_soon(connect, f"2001:db8:7:{network}::1")
        await eventually(lambda: swarm.limits_hit["inbound_per_site"] == 2)
        assert swarm.inbound_connections == 3
        nursery.start_soon(connect, "2001:db8:8::1")
        await eventually(lambda: swarm.inbound_connections == 4)
        nursery.cancel_scope.cancel()


# Outbound


async def refusal(host, address: str) -> DialError:
    with pytest.raises(DialError) as caught:
        await dial(host, address)
    return caught.value


@pytest.fixture
def dialled(monkeypatch) -> list[tuple[str, int]]:
    """The addresses to which sockets are opened. All of them fail."""
    found: list[tuple[str, int]] = []

    async def refuse(host: str, port: int, **options) -> None:
        found.append((host, port))
        raise OSError("no sockets here")

    monkeypatch.setattr(trio, "open_tcp_stream", refuse)
    return found


@pytest.mark.parametrize("listen", [LOOPBACK, LOOPBACK6])
async def test_a_denied_address_is_not_dialled(listen: str, dialled) -> None:
    gate = ConnectionGater(deny_addresses=["127.0.0.0/8", "::1"])
    async with open_host(new_identity(), [listen]) as host, open_host(new_identity(), gate=gate) as caller:
        assert (await refusal(caller, host_addresses(host)[0])).code == "denied"
        with pytest.raises(BaseLibp2pError):
            await caller.connect(info_from_p2p_addr(Multiaddr(host_addresses(host)[0])))
        assert dialled == []
        # With empty lists it would have been allowed.
        await caller.change_gater(ConnectionGater())
        assert (await refusal(caller, host_addresses(host)[0])).code == "unreachable"
        assert len(dialled) == 1


async def test_a_name_leads_to_no_denied_address(server) -> None:
    target = parse_peer_address(host_addresses(server)[0])
    name = f"/dns4/localhost/tcp/{target.port}/p2p/{target.peer_id}"
    async with open_host(new_identity(), gate=ConnectionGater(deny_addresses=["127.0.0.0/8"])) as caller:
        assert (await refusal(caller, name)).code == "denied"


async def test_a_denied_peer_is_not_dialled(server, dialled) -> None:
    gate = ConnectionGater(deny_peers=[server.get_id().to_base58()])
    async with open_host(new_identity(), gate=gate) as caller:
        assert (await refusal(caller, host_addresses(server)[0])).code == "denied"
        assert dialled == []


async def test_the_librarys_own_dial_says_nothing_to_a_denied_peer() -> None:
    heard = bytearray()

    async def listen(stream: trio.SocketStream) -> None:
        async for data in stream:
            heard.extend(data)

    gate = ConnectionGater(deny_peers=[SOMEBODY])
    async with open_host(new_identity(), gate=gate) as caller, trio.open_nursery() as nursery:
        (listener,) = await nursery.start(partial(trio.serve_tcp, listen, 0, host="127.0.0.1"))
        address = f"/ip4/127.0.0.1/tcp/{listener.socket.getsockname()[1]}/p2p/{SOMEBODY}"
        with pytest.raises(BaseLibp2pError):
            await caller.connect(info_from_p2p_addr(Multiaddr(address)))
        await trio.testing.wait_all_tasks_blocked(0.05)
        nursery.cancel_scope.cancel()
    assert heard == b""


# Changing


async def test_a_changed_list_closes_what_it_does_not_allow(server, eventually) -> None:
    async with open_host(new_identity()) as friend, open_host(new_identity()) as foe:
        for host in (friend, foe):
            await dial(host, host_addresses(server)[0])
        await eventually(lambda: len(server.get_connected_peers()) == 2)
        assert await server.change_gater(ConnectionGater(deny_peers=[foe.get_id().to_base58()])) == 1
        await eventually(lambda: not foe.get_connected_peers())
        assert server.get_connected_peers() == [friend.get_id()]
        assert (await refusal(foe, host_addresses(server)[0])).code == "handshake_failed"
        assert await server.change_gater(ConnectionGater(deny_addresses=["127.0.0.1"])) == 1
        await eventually(lambda: not friend.get_connected_peers())
        # In both directions: the lists of the dialling side may change too.
        assert await server.change_gater(ConnectionGater()) == 0
        await dial(friend, host_addresses(server)[0])
        assert await friend.change_gater(ConnectionGater(deny_addresses=["127.0.0.1"])) == 1
        await eventually(lambda: not server.get_connected_peers())


async def test_a_list_that_changes_during_the_handshake_counts(server, client, eventually) -> None:
    upgrade = server.swarm.upgrade_inbound_raw_conn

    async def change_lists_at_the_last_moment(*args):
        connection = await upgrade(*args)
        server.swarm.gate = ConnectionGater(deny_addresses=["127.0.0.1"])
        return connection

    server.swarm.upgrade_inbound_raw_conn = change_lists_at_the_last_moment
    await dial(client, host_addresses(server)[0])
    await eventually(lambda: not server.swarm.inbound_connections)
    await eventually(lambda: not client.get_connected_peers())
