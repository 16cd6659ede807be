"""Walk, tables and streams of the DHT, each alone."""

from __future__ import annotations

import hashlib
import random
from contextlib import suppress
from functools import cache
from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from libp2p.kad_dht.pb.kademlia_pb2 import Message
from libp2p.peer.envelope import seal_record
from libp2p.peer.id import ID
from libp2p.peer.peer_record import PeerRecord
from libp2p.peer.peerinfo import PeerInfo
from multiaddr import Multiaddr
from trio.testing import memory_stream_pair

from dms_host.addresses import announced_addresses
from dms_host.keys.identity import new_identity
from dms_peer.discovery.dht.host_view import DhtAddresses, KademliaStream, text_addresses
from dms_peer.discovery.dht.lookup import WIDTH, Walk, peers_in
from dms_peer.discovery.dht.tables import RECORD_TTL, ProvenTable, ProviderRecords
from dms_protocols.adverts.classes import CLASSES


def some_id(number: int) -> ID:
    return ID(b"\x12\x20" + number.to_bytes(32))


ADDRESS = Multiaddr("/ip4/192.0.2.1/tcp/4001")
OWN = some_id(0)


@cache
def position(key: bytes) -> int:
    return int.from_bytes(hashlib.sha256(key).digest())


class Network:
    """Peers that each know some others. Some are dead, some are slow."""

    def __init__(self, size: int, known: int, rng: random.Random, dead: float = 0.0) -> None:
        self.peers = [some_id(number) for number in range(1, size + 1)]
        self.dead = {peer for peer in self.peers[10:] if rng.random() < dead}
        self.asked: list[ID] = []
        self.running = self.most_running = 0
        self.rng = rng
        # As in Kademlia: all of the nearest peers, and some of the others.
        self.tables = {
            peer: [*self.nearest(peer.to_bytes(), 20), *rng.sample(self.peers, known)] for peer in self.peers
        }

    def nearest(self, key: bytes, number: int, among: Any = None) -> list[ID]:
        there = position(key)
        return sorted(among or self.peers, key=lambda peer: position(peer.to_bytes()) ^ there)[:number]

    def ask_for(self, key: bytes) -> Any:
        async def ask(peer: ID) -> Message | None:
            self.asked.append(peer)
            self.running += 1
            self.most_running = max(self.running, self.most_running)
            await trio.sleep(5 if peer in self.dead else self.rng.random() / 10)
            self.running -= 1
            if peer in self.dead:
                return None
            answer = Message(type=Message.FIND_NODE)
            for near in self.nearest(key, 20, self.tables[peer]):
                answer.closerPeers.add(id=near.to_bytes(), addrs=[ADDRESS.to_bytes()])
            return answer

        return ask


async def nothing(answer: Message) -> None:
    pass


@pytest.mark.parametrize("seed", range(5))
async def test_a_walk_reaches_the_closest_peers(seed: int, autojump_clock: Any) -> None:
    network = Network(400, 20, random.Random(seed), dead=0.2)
    key = CLASSES[seed].key
    learned: dict[ID, list[Multiaddr]] = {}
    walk = Walk(key, OWN, network.peers[:5], network.ask_for(key), learned.__setitem__)
    await walk.run(nothing)
    living = [peer for peer in network.nearest(key, 100) if peer not in network.dead][:WIDTH]
    assert len(set(walk.closest) & set(living)) >= WIDTH - 1
    assert 3 <= network.most_running <= 8
    assert len(network.asked) == len(set(network.asked)) <= 64
    assert learned[walk.closest[0]] == [ADDRESS]


async def test_no_more_than_three_are_asked_at_once_while_they_answer(autojump_clock: Any) -> None:
    network = Network(400, 20, random.Random(1))
    await Walk(CLASSES[0].key, OWN, network.peers[:5], network.ask_for(CLASSES[0].key), lambda *_: None).run(nothing)
    assert network.most_running == 3


async def test_the_dead_do_not_hold_up_a_walk(autojump_clock: Any) -> None:
    network = Network(400, 20, random.Random(1))
    key = CLASSES[0].key
    network.dead = set(network.nearest(key, 3))
    first_answer: list[float] = []

    async def note(answer: Message) -> None:
        first_answer.append(trio.current_time() - began)

    start, began = [*network.nearest(key, 3), network.peers[0]], trio.current_time()
    await Walk(key, OWN, start, network.ask_for(key), lambda *_: None).run(note)
    # All three peers that are queried first are silent for five seconds.
    assert first_answer[0] < 2


async def test_a_walk_waits_for_its_reader(autojump_clock: Any) -> None:
    network = Network(200, 30, random.Random(1))
    key = CLASSES[0].key
    walk = Walk(key, OWN, network.peers[:5], network.ask_for(key), lambda peer, addrs: None)

    async def never(answer: Message) -> None:
        await trio.sleep_forever()

    with trio.move_on_after(10):
        await walk.run(never)
    assert len(network.asked) == 3


async def test_a_walk_among_the_dead_ends(autojump_clock: Any) -> None:
    network = Network(200, 30, random.Random(1))
    network.dead = set(network.peers[1:])
    key = CLASSES[0].key
    began = trio.current_time()
    walk = Walk(key, OWN, network.peers[:1], network.ask_for(key), lambda peer, addrs: None)
    await walk.run(nothing)
    assert walk.closest == network.peers[:1]
    assert trio.current_time() - began <= 20
    # There is no peer to begin with.
    await Walk(key, OWN, [], network.ask_for(key), lambda peer, addrs: None).run(nothing)


async def test_those_who_name_ever_new_peers_do_not_keep_a_walk(autojump_clock: Any) -> None:
    numbers = iter(range(10_000, 10**9))
    asked = []

    async def invent(peer: ID) -> Message:
        asked.append(peer)
        answer = Message()
        for _ in range(1000):
            answer.closerPeers.add(id=some_id(next(numbers)).to_bytes())
        return answer

    walk = Walk(b"key", OWN, [some_id(1)], invent, lambda peer, addrs: None)
    await walk.run(nothing)
    assert len(asked) <= 64
    assert len(walk._candidates) <= 256


@given(ids=st.lists(st.binary(max_size=70), max_size=5), addrs=st.lists(st.binary(max_size=30), max_size=12))
def test_whatever_is_named_is_read(ids: list[bytes], addrs: list[bytes]) -> None:
    named = [Message.Peer(id=one, addrs=[*addrs, ADDRESS.to_bytes()]) for one in ids]
    for peer_id, read in peers_in(named, 3):
        assert len(read) <= 8
        text_addresses(peer_id, read)


# Tables


class Host:
    def __init__(self) -> None:
        self.book = DhtAddresses()

    def get_id(self) -> ID:
        return OWN


def test_records_are_of_classes_and_bounded() -> None:
    now = 0.0
    records = ProviderRecords(Host(), None, clock=lambda: now)  # type: ignore[arg-type]
    records.add_provider(b"another key", PeerInfo(some_id(1), [ADDRESS]))
    assert records.size() == 0
    key = CLASSES[0].key
    for number in range(300):
        records.add_provider(key, PeerInfo(some_id(number), [ADDRESS] * 100))
    assert records.size() == 256
    answer = records.get_providers(key)
    assert len({one.peer_id for one in answer}) == len(answer) == 60
    assert all(len(one.addrs) == 8 for one in answer)
    # Every provider may be chosen, except the oldest, which was dropped.
    seen = {one.peer_id for _ in range(100) for one in records.get_providers(key)}
    assert len(seen) == 256
    assert some_id(0) not in seen


def test_records_expire_unless_they_are_announced_again() -> None:
    now = 0.0
    records = ProviderRecords(Host(), None, clock=lambda: now)  # type: ignore[arg-type]
    key = CLASSES[0].key
    records.add_provider(key, PeerInfo(some_id(1), [ADDRESS]))
    records.add_provider(key, PeerInfo(some_id(2), [ADDRESS]))
    now = RECORD_TTL / 2
    records.add_provider(key, PeerInfo(some_id(1), [ADDRESS]))
    now = RECORD_TTL + 1
    assert [one.peer_id for one in records.get_providers(key)] == [some_id(1)]
    assert records.size() == 1
    now = 2 * RECORD_TTL
    assert records.get_providers(key) == []


async def test_the_routing_table_takes_in_who_is_proven_only() -> None:
    table = ProvenTable(Host())  # type: ignore[arg-type]
    peer = PeerInfo(some_id(1), [ADDRESS])
    assert not await table.add_peer(peer, skip_server_mode_check=True)
    assert not await table.add_peer(peer.peer_id)
    assert table.size() == 0
    assert await table.admit(peer)
    assert await table.admit(peer)
    assert table.size() == 1


async def test_the_routing_table_is_bounded_and_prefers_the_old() -> None:
    table = ProvenTable(Host())  # type: ignore[arg-type]
    for number in range(1, 2001):
        await table.admit(PeerInfo(some_id(number), [ADDRESS]))
    assert all(bucket.size() <= 20 for bucket in table.buckets)
    assert len(table.buckets) <= 256
    assert table.peer_in_table(some_id(1))


async def test_one_network_does_not_fill_a_bucket() -> None:
    table = ProvenTable(Host())  # type: ignore[arg-type]
    public = Multiaddr("/ip4/8.8.8.8/tcp/4001")
    taken = [await table.admit(PeerInfo(some_id(number), [public])) for number in range(1, 11)]
    assert taken == [True, True] + [False] * 8


def test_others_cannot_take_a_peers_own_word_from_it() -> None:
    book, one = DhtAddresses(), new_identity(bytes([1]) * 32)
    peer_id = ID.from_string(one.peer_id)
    own = [Multiaddr(f"/ip4/192.0.2.1/tcp/{port}") for port in range(1, 9)]
    assert book.consume_peer_record(seal_record(PeerRecord(peer_id, own[:1]), one.key_pair().private_key), 0)
    for number in range(100):
        book.add_addrs(peer_id, [Multiaddr(f"/ip4/203.0.113.{number}/tcp/1")])
    assert book.addrs(peer_id)[0] == own[0]
    assert len(book.addrs(peer_id)) == 8
    # Even if the peer reports the maximum of addresses, another peer's report of a new address is kept.
    assert book.consume_peer_record(seal_record(PeerRecord(peer_id, own), one.key_pair().private_key), 0)
    assert book.addrs(peer_id) == own
    book.add_addrs(peer_id, [ADDRESS])
    assert book.addrs(peer_id) == [*own[:7], ADDRESS]


def test_the_address_book_is_bounded() -> None:
    book = DhtAddresses()
    for number in range(3000):
        book.add_addrs(some_id(number), [Multiaddr(f"/ip4/192.0.2.{one}/tcp/1") for one in range(20)])
    assert len(book._addrs) == 2048
    assert book.addrs(some_id(0)) == []
    assert len(book.addrs(some_id(2999))) == 8
    # The newest are kept.
    book.add_addrs(some_id(2999), [ADDRESS])
    assert book.addrs(some_id(2999))[0] == ADDRESS


def test_what_a_peer_signed_replaces_what_others_said_and_nobody_signs_for_another() -> None:
    book = DhtAddresses()
    one, other = new_identity(), new_identity()
    peer_id = ID.from_string(one.peer_id)
    book.add_addrs(peer_id, [ADDRESS])
    own = Multiaddr("/ip4/192.0.2.9/tcp/9")
    record = PeerRecord(peer_id, [own])
    assert not book.consume_peer_record(seal_record(record, other.key_pair().private_key), 0)
    assert book.addrs(peer_id) == [ADDRESS]
    assert book.consume_peer_record(seal_record(record, one.key_pair().private_key), 0)
    assert book.addrs(peer_id) == [own]


# Streams


async def test_a_message_goes_out_in_one_piece_when_the_answer_is_read() -> None:
    left, right = memory_stream_pair()
    stream = KademliaStream(left, OWN, deadline=1)
    await stream.write(b"\x03")
    await stream.write(b"abc")
    await right.send_all(b"answer")
    assert await stream.read(1) == b"a"
    assert await right.receive_some() == b"\x03abc"
    assert await stream.read(100) == b"nswer"
    await right.aclose()
    assert await stream.read(1) == b""


async def test_who_says_nothing_is_not_waited_for(autojump_clock: Any) -> None:
    left, _right = memory_stream_pair()
    stream = KademliaStream(left, OWN, deadline=7)
    began = trio.current_time()
    with pytest.raises(trio.TooSlowError):
        await stream.read(1)
    assert trio.current_time() - began == 7


async def test_a_message_that_does_not_end_is_given_up() -> None:
    left, right = memory_stream_pair()
    stream = KademliaStream(left, OWN, deadline=7)

    async def pour() -> None:
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            while True:
                await right.send_all(b"x" * 1000)

    async def read() -> None:
        while True:
            await stream.read(1000)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(pour)
        with pytest.raises(ValueError, match="more than"):
            await read()
        await left.aclose()
        nursery.cancel_scope.cancel()


async def test_many_messages_of_a_bounded_size_are_read_at_a_bounded_pace(autojump_clock: Any) -> None:
    left, right = memory_stream_pair()
    stream = KademliaStream(left, OWN, deadline=7, pace=0.5)
    began = trio.current_time()
    for _ in range(10):
        await right.send_all(b"x" * 60_000)
        taken = 0
        while taken < 60_000:
            taken += len(await stream.read(60_000))
        await stream.write(b"answer")
        await stream.flush()
    assert trio.current_time() - began == 5


@pytest.mark.parametrize(
    ("addrs", "told"),
    [
        (["/ip4/127.0.0.1/tcp/1", "/ip4/192.0.2.1/tcp/1", "/ip6/::1/tcp/1"], ("/ip4/192.0.2.1/tcp/1",)),
        (["/ip4/127.0.0.1/tcp/1", "/ip6/::1/tcp/1"], ("/ip4/127.0.0.1/tcp/1", "/ip6/::1/tcp/1")),
        (["/dns4/localhost/tcp/1", "/ip4/127.0.0.2/tcp/1"], ("/dns4/localhost/tcp/1",)),
        ([], ()),
        (
            [f"/ip4/203.0.113.{number}/tcp/1" for number in range(20)],
            tuple(f"/ip4/203.0.113.{n}/tcp/1" for n in range(8)),
        ),
    ],
)
def test_the_addresses_that_others_are_told(addrs: list[str], told: tuple[str, ...]) -> None:
    assert announced_addresses(addrs) == told
