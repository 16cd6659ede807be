"""mDNS with real datagrams: over loopback, and between two network namespaces if the machine allows that."""

from __future__ import annotations

import gc
import logging
import os
import random
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from dms_host import HardenedHost, dial, host_addresses, open_host
from dms_host.keys.identity import new_identity
from dms_peer.discovery.mdns import MDNSPeers, _Heard, open_mdns
from dms_protocols.messages.bid import EnsembleRequest, NodeRequest

PEERS = [new_identity(bytes([number]) * 32).peer_id for number in range(1, 9)]


def request(*excluded: str) -> EnsembleRequest:
    return EnsembleRequest(
        id="e", nonce=1, deadline=2e9, request=(NodeRequest(node_id="n"),), peer_exclusion=tuple(excluded)
    )


def record(*strings: str, name: str = "x", ttl: float = 120) -> _Heard:
    text = b"".join(bytes([len(string)]) + string.encode() for string in strings)
    return _Heard(name, text, ttl)


def address(number: int, host: str = "192.0.2.1") -> str:
    return f"/ip4/{host}/tcp/4001/p2p/{PEERS[number]}"


@pytest.fixture
async def peers() -> MDNSPeers:
    return MDNSPeers(PEERS[0], trio.current_time())


async def test_two_on_one_machine_find_each_other_and_say_goodbye(multicast: str, server: HardenedHost) -> None:
    async with open_mdns(PEERS[1], interfaces=[multicast]) as listening:
        async with open_mdns(server.get_id().to_base58(), host_addresses(server), interfaces=[multicast]):
            with trio.fail_after(20):
                while server.get_id().to_base58() not in listening.peers():
                    await listening.wait_changed()
                async with listening.candidates(request()) as candidates:
                    found = [one async for one in candidates if one.peer_id == server.get_id().to_base58()]
            (one,) = found
            assert (one.source, one.addrs, one.free) == ("mdns", host_addresses(server), None)
        with trio.fail_after(20):
            while one.peer_id in listening.peers():  # noqa: ASYNC110  # leaving is not announced
                await trio.sleep(0.01)


async def test_two_hosts_find_and_reach_each_other(multicast: str) -> None:
    async def find(own: HardenedHost, other: HardenedHost) -> None:
        async with open_mdns(own.get_id().to_base58(), host_addresses(own), interfaces=[multicast]) as mdns:
            wanted = other.get_id().to_base58()
            while wanted not in mdns.peers():
                await mdns.wait_changed()
            assert await dial(own, mdns.peers()[wanted][0]) == wanted
            found.append(wanted)
            while len(found) < 2:  # noqa: ASYNC110  # until the other has found this one
                await trio.sleep(0.01)

    found: list[str] = []
    async with (
        open_host(new_identity(), ["/ip4/127.0.0.1/tcp/0"]) as one,
        open_host(new_identity(), ["/ip4/127.0.0.1/tcp/0"]) as other,
    ):
        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(find, one, other)
                nursery.start_soon(find, other, one)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[socket.socket]:
    """The sockets that zeroconf opens."""
    sockets: list[socket.socket] = []

    class Noted(socket.socket):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            if self.type == socket.SOCK_DGRAM:
                sockets.append(self)

    monkeypatch.setattr(socket, "socket", Noted)
    return sockets


async def test_no_socket_is_left_open_where_no_interface_can_be_used(
    opened: list[socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def wait_deaf(mdns: MDNSPeers) -> None:
        async with mdns.candidates(request()) as candidates:
            assert [one async for one in candidates] == []

    before = set(threading.enumerate())
    # It fails midway, because no host has this address (RFC 5737).
    async with open_mdns(PEERS[0], [address(0)], interfaces=["203.0.113.1"]) as mdns:
        await wait_deaf(mdns)
        assert mdns._deaf
    assert opened
    assert {one.fileno() for one in opened} == {-1}
    opened.clear()
    # It continues without an interface that joins no multicast group.
    monkeypatch.setattr("zeroconf._utils.net.add_multicast_member", lambda *_: False)
    async with open_mdns(PEERS[0], [address(0)], interfaces=["127.0.0.1"]) as mdns:
        await wait_deaf(mdns)
        assert mdns._deaf
    assert opened
    assert {one.fileno() for one in opened} == {-1}
    assert not {one for one in set(threading.enumerate()) - before if "trio" not in one.name.lower()}


async def test_a_machine_without_that_network_costs_a_line_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        # An address that no host has (RFC 5737).
        async with (
            open_mdns(PEERS[0], [address(0)], interfaces=["203.0.113.1"]) as mdns,
            mdns.candidates(request()) as candidates,
        ):
            # It does not wait for an answer that cannot arrive.
            with trio.fail_after(1.5):
                assert [one async for one in candidates] == []
    gc.collect()
    lines = [entry.getMessage() for entry in caplog.records if entry.name.startswith("dms_peer")]
    assert len(lines) == 1
    assert "mDNS" in lines[0]


async def test_an_error_and_a_cancellation_come_out_as_they_are(multicast: str) -> None:
    with pytest.raises(ZeroDivisionError):
        async with open_mdns(PEERS[0], [address(0)], interfaces=[multicast]):
            raise ZeroDivisionError
    with trio.CancelScope() as scope:
        async with open_mdns(PEERS[0], [address(0)], interfaces=[multicast]):
            scope.cancel()
            await trio.sleep_forever()
    assert scope.cancelled_caught


async def test_only_what_could_be_dialled_is_taken(peers: MDNSPeers) -> None:
    peers.heard(
        record(
            "other=thing",
            f"dnsaddr={address(1)}",
            f"dnsaddr=/ip4/192.0.2.1/udp/4001/quic-v1/p2p/{PEERS[1]}",
            "dnsaddr=nonsense",
            f"dnsaddr={address(1, '192.0.2.2')}",
        )
    )
    assert peers.peers() == {PEERS[1]: (address(1), address(1, "192.0.2.2"))}
    # This peer itself, and a record that names two peers.
    peers.heard(record(f"dnsaddr={address(0)}", name="y"))
    peers.heard(record(f"dnsaddr={address(2)}", f"dnsaddr={address(3)}", name="z"))
    assert set(peers.peers()) == {PEERS[1]}


async def test_what_is_heard_holds_for_its_time(peers: MDNSPeers, autojump_clock: Any) -> None:
    peers.heard(record(f"dnsaddr={address(1)}", ttl=120))
    await trio.sleep(100)
    peers.heard(record(f"dnsaddr={address(1)}", ttl=120))
    await trio.sleep(100)
    assert set(peers.peers()) == {PEERS[1]}
    await trio.sleep(21)
    assert peers.peers() == {}
    peers.heard(record(f"dnsaddr={address(1)}"))
    peers.heard(record(f"dnsaddr={address(1)}", ttl=0))
    assert peers.peers() == {}


async def test_nobody_takes_a_peers_own_word_from_it(peers: MDNSPeers) -> None:
    peers.heard(record(f"dnsaddr={address(1)}", name="its own"))
    peers.heard(record(f"dnsaddr={address(1, '192.0.2.66')}", name="of somebody else"))
    assert set(peers.peers()[PEERS[1]]) == {address(1), address(1, "192.0.2.66")}


async def test_no_record_holds_for_ever(peers: MDNSPeers, autojump_clock: Any) -> None:
    peers.heard(record(f"dnsaddr={address(1)}", ttl=2**32 - 1))
    await trio.sleep(4501)
    assert peers.peers() == {}


async def test_a_flood_pushes_out_the_oldest(peers: MDNSPeers) -> None:
    for number in range(300):
        peers.heard(record(*(f"dnsaddr={address(1, f'192.0.2.{one}')}" for one in range(20)), name=str(number)))
    assert len(peers._entries) == 256
    assert next(iter(peers._entries)) == "44"
    assert len(peers.peers()[PEERS[1]]) == 16


async def test_just_after_the_start_candidates_wait_for_answers(peers: MDNSPeers, autojump_clock: Any) -> None:
    async def answer() -> None:
        for number in (1, 2, 1):
            await trio.sleep(0.25)
            peers.heard(record(f"dnsaddr={address(number)}", name=str(number)))
        await trio.sleep(1)
        peers.heard(record(f"dnsaddr={address(3)}", name="late"))

    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(answer)
        async with peers.candidates(request(PEERS[4])) as candidates:
            found = [(one.peer_id, trio.current_time() - began) async for one in candidates]
        assert found == [(PEERS[1], 0.25), (PEERS[2], 0.5)]
        assert trio.current_time() == began + 1
    # Later there is no wait.
    async with peers.candidates(request(PEERS[2])) as candidates:
        assert {one.peer_id async for one in candidates} == {PEERS[1], PEERS[3]}
    assert trio.current_time() == began + 1.75


async def test_where_nobody_answers_the_second_question_is_waited_for(peers: MDNSPeers, autojump_clock: Any) -> None:
    await trio.sleep(5)
    peers.asked()
    began = trio.current_time()
    async with peers.candidates(request()) as candidates:
        assert [one async for one in candidates] == []
    assert trio.current_time() == began + 2


@given(text=st.binary(max_size=600), ttl=st.floats(0, 1e9))
def test_no_record_can_do_harm(text: bytes, ttl: float) -> None:
    async def hear() -> None:
        MDNSPeers(PEERS[0], 0).heard(_Heard("x", text, ttl))
        MDNSPeers(PEERS[0], 0).heard(_Heard("x", b"\x30dnsaddr=" + text, ttl))

    trio.run(hear)


# Two network namespaces

SCRIPT = """
import sys, trio
from dms_peer.discovery.mdns import open_mdns
from dms_host import dial, host_addresses, open_host
from dms_host.keys.identity import new_identity

async def main():
    own, other = (new_identity(bytes([int(number)]) * 32) for number in sys.argv[1:])
    async with open_host(own, ["/ip4/0.0.0.0/tcp/0"]) as host:
        async with open_mdns(own.peer_id, host_addresses(host)) as mdns:
            while other.peer_id not in mdns.peers():
                await mdns.wait_changed()
            print(await dial(host, mdns.peers()[other.peer_id][0]), flush=True)
            # Until the other one has found this one, too.
            await trio.to_thread.run_sync(sys.stdin.read)

trio.run(main)
"""


@pytest.fixture
def namespaces() -> Iterator[tuple[str, str]]:
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("network namespaces need root and the program ip")
    ends = tuple(f"dms{random.randrange(10**6)}{side}" for side in "ab")
    commands = [f"ip netns add {end}" for end in ends]
    commands.append(f"ip link add {ends[0]} netns {ends[0]} type veth peer name {ends[1]} netns {ends[1]}")
    for number, end in enumerate(ends, start=1):
        commands.append(f"ip -n {end} addr add 198.51.100.{number}/24 dev {end}")
        commands.append(f"ip -n {end} link set {end} up")
    try:
        for command in commands:
            done = subprocess.run(command.split(), capture_output=True, text=True, check=False)
            if done.returncode:
                pytest.skip(f"this machine makes no network namespaces: {command}: {done.stderr.strip()}")
        yield ends[0], ends[1]
    finally:
        for end in ends:
            subprocess.run(["ip", "netns", "delete", end], capture_output=True, check=False)


def test_two_network_namespaces_find_each_other_by_mdns_alone(namespaces: tuple[str, str]) -> None:
    paths = os.pathsep.join(str(Path(__file__).parents[3] / room) for room in ("peer", "protocols", "resources"))
    programs = [
        subprocess.Popen(
            ["ip", "netns", "exec", name, sys.executable, "-c", SCRIPT, str(own), str(other)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": paths},
        )
        for name, own, other in zip(namespaces, (1, 2), (2, 1), strict=True)
    ]
    try:
        found = [program.stdout.readline().strip() for program in programs if program.stdout]
        assert found == [PEERS[1], PEERS[0]]
    finally:
        for program in programs:
            try:
                program.communicate(timeout=30)
            except subprocess.TimeoutExpired:
                program.kill()
                program.communicate()
    assert [program.returncode for program in programs] == [0, 0]
