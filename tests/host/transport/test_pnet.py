"""A private network: its members can communicate, and others get no further than the first bytes."""

from __future__ import annotations

import base64
import os
import secrets
from pathlib import Path

import pytest
import trio
from libp2p.io.utils import read_exactly
from libp2p.peer.peerinfo import info_from_p2p_addr
from multiaddr import Multiaddr
from nacl.bindings import crypto_secretbox
from trio.testing import memory_stream_pair

from dms_host import HostLimits, dial, host_addresses, open_host, open_stream
from dms_host.addresses import parse_peer_address
from dms_host.errors import DialError, IdentityError
from dms_host.keys.identity import new_identity
from dms_host.keys.swarm_key import create_swarm_key, load_swarm_key
from dms_host.transport.pnet import GREETING, OtherNetworkError, ProtectedConnection, hsalsa20, xsalsa20

LOOPBACK = "/ip4/127.0.0.1/tcp/0"
PING = "/ipfs/ping/1.0.0"
KEY = bytes(range(32))
# No test waits for this timeout.
PATIENT = HostLimits(handshake_timeout=60)


# The cipher


def test_the_derived_key_is_the_published_one() -> None:
    """D. J. Bernstein, "Cryptography in NaCl", section 8: the second key of its example."""
    first = bytes.fromhex("1b27556473e985d462cd51197a9a46c76009549eac6474f206c4ee0844f68389")
    nonce = bytes.fromhex("69696ee955b62b73cd62bda875fc73d6")
    assert hsalsa20(first, nonce).hex() == "dc908dda0b9344a953629b733820778880f3ceb421bb61b91cbd4c3e66256ce4"


def test_the_cipher_is_that_of_libsodium() -> None:
    for size in (0, 1, 63, 64, 65, 1000):
        key, nonce, text = secrets.token_bytes(32), secrets.token_bytes(24), secrets.token_bytes(size)
        # A secret box is an authenticator of 16 bytes, and the text under the stream from its 32nd byte on.
        box = crypto_secretbox(text, nonce, key)[16:]
        cipher = xsalsa20(key, nonce)
        cipher.encrypt(bytes(32))
        assert b"".join(cipher.encrypt(text[i : i + 7]) for i in range(0, size, 7)) == box


# The connection


class Wire:
    """A raw connection over a memory stream, which returns at most `piece` bytes at once."""

    is_initiator = True

    def __init__(self, stream, piece: int) -> None:
        self.stream = stream
        self.piece = piece

    async def write(self, data: bytes) -> None:
        await self.stream.send_all(data)

    async def read(self, n: int | None = None) -> bytes:
        return await self.stream.receive_some(min(n or self.piece, self.piece))


def wires(piece: int = 65536) -> tuple[Wire, Wire]:
    left, right = memory_stream_pair()
    return Wire(left, piece), Wire(right, piece)


@pytest.mark.parametrize("piece", [1, 7, 65536])
async def test_members_read_what_members_write(piece: int) -> None:
    left, right = wires(piece)
    ours, theirs = ProtectedConnection(left, KEY), ProtectedConnection(right, KEY)
    said = GREETING + secrets.token_bytes(1000)
    await ours.write(said[:5])
    await ours.write(said[5:])
    heard = b""
    while len(heard) < len(said):
        heard += await theirs.read(50)
    assert heard == said


async def test_two_connections_never_use_the_same_stream() -> None:
    sent = []
    for _ in range(2):
        left, right = wires()
        await ProtectedConnection(left, KEY).write(GREETING)
        sent.append(await right.read())
    assert [len(one) for one in sent] == [24 + len(GREETING)] * 2
    assert sent[0][:24] != sent[1][:24]
    assert sent[0][24:] != sent[1][24:]


@pytest.mark.parametrize("piece", [1, 65536])
async def test_another_key_is_noticed_with_the_first_bytes(piece: int) -> None:
    left, right = wires(piece)
    await ProtectedConnection(left, bytes(32)).write(GREETING)
    theirs = ProtectedConnection(right, KEY)
    # One byte in 256 is right by chance, but not all of them.
    with pytest.raises(OtherNetworkError), trio.fail_after(5):
        await read_exactly(theirs, len(GREETING))


@pytest.mark.parametrize("piece", [1, 65536])
async def test_no_key_is_noticed_with_the_greeting(piece: int) -> None:
    left, right = wires(piece)
    await left.write(GREETING)
    with pytest.raises(OtherNetworkError), trio.fail_after(5):
        await ProtectedConnection(right, KEY).read(1)


# Hosts


async def assert_talking(caller, host) -> None:
    peer_id = await dial(caller, host_addresses(host)[0])
    async with await open_stream(caller, peer_id, [PING]) as stream:
        await stream.send_all(bytes(32))
        assert await stream.receive_some() == bytes(32)


async def test_members_talk() -> None:
    async with open_host(new_identity(), [LOOPBACK], psk=KEY) as host, open_host(new_identity(), psk=KEY) as caller:
        await assert_talking(caller, host)


async def test_the_librarys_own_dial_stays_inside_too() -> None:
    async with open_host(new_identity(), [LOOPBACK], psk=KEY) as host, open_host(new_identity(), psk=KEY) as caller:
        await caller.connect(info_from_p2p_addr(Multiaddr(host_addresses(host)[0])))
        await assert_talking(caller, host)


@pytest.mark.parametrize(("ours", "theirs"), [(KEY, bytes(32)), (KEY, None), (None, KEY)])
async def test_others_are_refused_at_once(ours, theirs, eventually) -> None:
    async with (
        open_host(new_identity(), [LOOPBACK], PATIENT, psk=ours) as host,
        open_host(new_identity(), limits=PATIENT, psk=theirs) as caller,
    ):
        # Long before any timeout, on both sides.
        with pytest.raises(DialError) as caught, trio.fail_after(5):
            await dial(caller, host_addresses(host)[0], deadline=60)
        assert caught.value.code in ("wrong_network", "handshake_failed")
        with trio.fail_after(5):
            await eventually(lambda: not host.swarm.inbound_handshakes)
        assert host.get_connected_peers() == caller.get_connected_peers() == []
        # The host continues.
        async with open_host(new_identity(), psk=ours) as member:
            await assert_talking(member, host)


async def test_a_stranger_sees_noise_and_is_hung_up_on(eventually) -> None:
    async with open_host(new_identity(), [LOOPBACK], PATIENT, psk=KEY) as host:
        target = parse_peer_address(host_addresses(host)[0])
        async with await trio.open_tcp_stream(target.host, target.port) as stranger:
            await stranger.send_all(GREETING)
            heard = b""
            with trio.fail_after(5):
                while data := await stranger.receive_some():
                    heard += data
        assert b"multistream" not in heard


async def test_a_host_outside_hangs_up_on_what_it_cannot_read() -> None:
    async with open_host(new_identity(), [LOOPBACK], PATIENT) as host:
        target = parse_peer_address(host_addresses(host)[0])
        async with await trio.open_tcp_stream(target.host, target.port) as member:
            # The first byte of a nonce may look like the length of a line that never arrives.
            await member.send_all(bytes([120]) + secrets.token_bytes(43))
            with trio.fail_after(5):
                while await member.receive_some():
                    pass


async def test_a_stranger_that_says_nothing_costs_a_handshake_and_its_timeout(eventually) -> None:
    limits = HostLimits(handshake_timeout=0.3, max_inbound_handshakes=1)
    async with open_host(new_identity(), [LOOPBACK], limits, psk=KEY) as host:
        target = parse_peer_address(host_addresses(host)[0])
        async with await trio.open_tcp_stream(target.host, target.port) as stranger:
            await eventually(lambda: host.swarm.inbound_handshakes == 1)
            with trio.fail_after(5):
                while await stranger.receive_some():
                    pass
        await eventually(lambda: not host.swarm.inbound_handshakes)


async def test_a_key_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="32 bytes, not 31"):
        async with open_host(new_identity(), psk=bytes(31)):
            pytest.fail("a short key")


# The key file


def refused(path: Path) -> IdentityError:
    with pytest.raises(IdentityError) as caught:
        load_swarm_key(path)
    assert str(path) in caught.value.message
    assert caught.value.hint
    return caught.value


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(0o600)
    return path


def test_a_key_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "network" / "swarm.key"
    key = create_swarm_key(path)
    assert len(key) == 32
    assert load_swarm_key(path) == key
    assert path.read_text() == f"/key/swarm/psk/1.0.0/\n/base16/\n{key.hex()}\n"
    assert path.stat().st_mode & 0o777 == 0o600
    with pytest.raises(IdentityError) as caught:
        create_swarm_key(path)
    assert caught.value.code == "key_exists"
    assert load_swarm_key(path) == key


@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
def test_keys_of_other_programs_are_read(tmp_path: Path, end: str) -> None:
    lines = ("/key/swarm/psk/1.0.0/", "/base16/", KEY.hex().upper())
    assert load_swarm_key(write(tmp_path / "swarm.key", (end or "\n").join(lines) + end)) == KEY
    lines = ("/key/swarm/psk/1.0.0/", "/base64/", base64.b64encode(KEY).decode())
    assert load_swarm_key(write(tmp_path / "swarm.key", (end or "\n").join(lines) + end)) == KEY


@pytest.mark.parametrize(
    "text",
    [
        "",
        "nonsense",
        "/key/swarm/psk/1.0.0/\n/base16/\n",
        f"/key/swarm/psk/2.0.0/\n/base16/\n{KEY.hex()}\n",
        f"/key/swarm/psk/1.0.0/\n/base32/\n{KEY.hex()}\n",
        f"/key/swarm/psk/1.0.0/\n/base16/\n{KEY.hex()[:-2]}\n",
        f"/key/swarm/psk/1.0.0/\n/base16/\n{KEY.hex()[:-2]}zz\n",
        f"/key/swarm/psk/1.0.0/\n/base64/\n{KEY.hex()[:-1]}*\n",
        "/key/swarm/psk/1.0.0/\n/base16/\n\N{LATIN SMALL LETTER E WITH ACUTE}\n",
    ],
)
def test_what_is_no_key_is_refused(tmp_path: Path, text: str) -> None:
    assert refused(write(tmp_path / "swarm.key", text)).code == "key_damaged"


def test_a_key_that_others_can_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "swarm.key"
    assert refused(path).code == "key_missing"
    create_swarm_key(path)
    path.chmod(0o640)
    assert refused(path).code == "key_exposed"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_key_of_another_user_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "swarm.key"
    create_swarm_key(path)
    os.chown(path, 12345, -1)
    assert refused(path).code == "key_foreign"
