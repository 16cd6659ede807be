"""The DHT of real hosts on loopback, and what a hostile peer can do to it."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import trio
from libp2p.kad_dht.pb.kademlia_pb2 import Message, Record
from libp2p.peer.id import ID
from libp2p.utils.varint import encode_varint_prefixed
from multiaddr import Multiaddr

from dms_host import HardenedHost, dial, open_stream
from dms_host.keys.identity import new_identity
from dms_host.streams.stream import PeerStream
from dms_peer.discovery.dht import kademlia
from dms_peer.discovery.dht import member as kademlia_member
from dms_protocols.adverts.classes import CapabilityClass, Dimension
from dms_protocols.messages.bid import EnsembleRequest, NodeRequest
from dms_protocols.protocol_ids import KADEMLIA_PROTOCOL
from dms_resources.demands import CPUDemand, Demand, GPUDemand
from dms_resources.units import GIB, Cores

CORES = [CapabilityClass(Dimension.CORES, 1 << exponent) for exponent in range(4)]
VRAM = CapabilityClass(Dimension.VRAM, 16 * GIB)


def request(*demands: Demand, excluded: tuple[str, ...] = ()) -> EnsembleRequest:
    nodes = tuple(NodeRequest(node_id=str(number), resources=demand) for number, demand in enumerate(demands))
    return EnsembleRequest(id="e", nonce=1, deadline=2e9, request=nodes, peer_exclusion=excluded)


def cores(number: int) -> Demand:
    return Demand(cpu=CPUDemand(cores=Cores.of(number)))


async def found(dht: Any, asked: EnsembleRequest) -> dict[str, tuple[str, ...]]:
    async with dht.candidates(asked) as candidates:
        return {one.peer_id: one.addrs async for one in candidates if one.source == "dht"}


async def test_whoever_knows_one_peer_finds_every_provider_of_the_rarest_class(
    dht_network: Any, open_dht_peer: Any
) -> None:
    async with dht_network(12) as peers, open_dht_peer(server=False, listen=False) as requester:
        for peer in peers[1:8]:
            assert await peer.dht.announce(CORES[:3]) >= 8
        for peer in peers[7:10]:
            await peer.dht.announce([CORES[0], VRAM])
        await dial(requester.host, peers[0].addr)
        asked = requester.dht
        assert await found(asked, request(cores(5))) == {peer.peer_id: (peer.addr,) for peer in peers[1:8]}
        assert set(await found(asked, request(cores(64)))) == set()
        # A request for a GPU, whatever else it needs; and another request.
        gpu = Demand(cpu=CPUDemand(cores=Cores.of(1)), gpus=(GPUDemand(vram=20 * GIB),))
        assert set(await found(asked, request(gpu))) == {peer.peer_id for peer in peers[7:10]}
        assert set(await found(asked, request(gpu, cores(4)))) == {peer.peer_id for peer in peers[1:10]}
        excluded = tuple(peer.peer_id for peer in peers[7:9])
        assert set(await found(asked, request(gpu, excluded=excluded))) == {peers[9].peer_id}
        # A requester does not serve the DHT, and no peer queries it.
        assert requester.dht.peers > 0
        assert all(not peer.dht._table.peer_in_table(requester.host.get_id()) for peer in peers)


async def test_a_provider_finds_the_others_and_not_itself(dht_network: Any) -> None:
    async with dht_network(3) as (one, other, _):
        await one.dht.announce(CORES)
        await other.dht.announce(CORES)
        assert set(await found(one.dht, request(cores(8)))) == {other.peer_id}


async def test_records_outlive_a_third_of_those_who_keep_them(dht_network: Any, open_dht_peer: Any) -> None:
    gpu = Demand(gpus=(GPUDemand(vram=16 * GIB),))
    async with dht_network(12) as peers, open_dht_peer(server=False, listen=False) as requester:
        provider = peers[1]
        await provider.dht.announce([VRAM])
        for peer in peers[2:6]:
            await peer.host.close()
        await dial(requester.host, peers[0].addr)
        with trio.fail_after(90):
            assert set(await found(requester.dht, request(gpu))) == {provider.peer_id}


async def test_without_anybody_nothing_is_found_and_nothing_fails(open_dht_peer: Any) -> None:
    async with open_dht_peer() as alone:
        assert await found(alone.dht, request(cores(1))) == {}
        assert await alone.dht.announce(CORES) == 0
        assert alone.dht.records == len(CORES)


async def test_a_search_ends_with_its_block(dht_network: Any) -> None:
    async with dht_network(3) as (one, other, third):
        for peer in (other, third):
            await peer.dht.announce(CORES)
        async with one.dht.candidates(request(cores(1))) as candidates:
            async for _ in candidates:
                break
        with pytest.raises(ZeroDivisionError):
            async with one.dht.candidates(request(cores(1))):
                raise ZeroDivisionError


async def test_what_fails_in_its_tasks_is_logged_and_begins_again(
    open_dht_peer: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    again = trio.Event()
    calls = []

    async def stumble(self: Any) -> None:
        calls.append(1)
        if len(calls) > 1:
            again.set()
            await trio.sleep_forever()
        raise ZeroDivisionError

    monkeypatch.setattr(kademlia, "_STUMBLED", 0)
    monkeypatch.setattr(kademlia.Kademlia, "keep_up", stumble)
    async with open_dht_peer():
        with trio.fail_after(30):
            await again.wait()
    assert [record.levelno for record in caplog.records if "stumbled" in record.getMessage()] == [logging.ERROR]


# A hostile peer


@pytest.fixture
async def victim(open_dht_peer: Any) -> Any:
    async with open_dht_peer() as peer:
        yield peer


@pytest.fixture
async def attack(victim: Any, client: HardenedHost) -> Any:
    """Opens a stream of the DHT to the victim."""

    async def open_attack() -> PeerStream:
        peer_id = await dial(client, victim.addr)
        return await open_stream(client, peer_id, [KADEMLIA_PROTOCOL])

    return open_attack


async def lives(victim: Any, attack: Any) -> None:
    """Return when the victim answers as before."""
    stream = await attack()
    await stream.send_all(encode_varint_prefixed(Message(type=Message.FIND_NODE, key=b"k" * 34).SerializeToString()))
    with trio.fail_after(30):
        assert await stream.receive_some()
    await stream.aclose()


async def ends(stream: PeerStream) -> None:
    with trio.fail_after(30):
        try:
            while await stream.receive_some():
                pass
        except trio.BrokenResourceError:
            pass


@pytest.mark.parametrize(
    "garbage",
    [
        b"\xff" * 100,
        b"\x05\xff\xff\xff\xff\xff",
        # Lengths that nothing follows: small, too large, invalid.
        b"\x10",
        b"\xff\xff\xff\x7f" + b"x" * 1000,
        b"\x80" * 20,
        encode_varint_prefixed(Message(type=Message.FIND_NODE).SerializeToString()),
        encode_varint_prefixed(Message(type=Message.FIND_NODE, key=b"k" * 10_000).SerializeToString()),
        encode_varint_prefixed(Message(type=Message.GET_PROVIDERS, key=b"k" * 1000).SerializeToString()),
        encode_varint_prefixed(Message(type=Message.ADD_PROVIDER, key=b"k" * 81).SerializeToString()),
        encode_varint_prefixed(
            Message(type=Message.FIND_NODE, key=b"k" * 34, senderRecord=b"\xff" * 99).SerializeToString()
        ),
    ],
    ids=range(10),
)
async def test_garbage_ends_its_stream_and_nothing_else(victim: Any, attack: Any, garbage: bytes) -> None:
    stream = await attack()
    await stream.send_all(garbage)
    await stream.send_eof()
    await ends(stream)
    await lives(victim, attack)


async def test_no_value_is_kept(victim: Any, attack: Any) -> None:
    for key in (b"/pk/1", b"/ipns/x", b"plain", b"/x"):
        stream = await attack()
        record = Record(key=key, value=b"v" * 1000)
        message = Message(type=Message.PUT_VALUE, key=key, record=record)
        await stream.send_all(encode_varint_prefixed(message.SerializeToString()))
        await ends(stream)
    assert victim.dht._dht.get_value_store_size() == 0


async def test_only_records_of_classes_are_kept_and_only_of_their_provider(
    victim: Any, attack: Any, client: HardenedHost
) -> None:
    stream = await attack()
    stranger = new_identity().peer_id
    address = Multiaddr("/ip4/192.0.2.1/tcp/1").to_bytes()
    own = Message.Peer(id=client.get_id().to_bytes(), addrs=[address] * 1000)
    other = Message.Peer(id=ID.from_string(stranger).to_bytes(), addrs=[address])
    for key in (VRAM.key, b"\x12\x20" + b"x" * 32, b"k"):
        message = Message(type=Message.ADD_PROVIDER, key=key, providerPeers=[other, own])
        await stream.send_all(encode_varint_prefixed(message.SerializeToString()))
    await stream.send_eof()
    await ends(stream)
    assert victim.dht.records == 1
    (record,) = victim.dht._records.get_providers(VRAM.key)
    assert record.peer_id == client.get_id()
    assert len(record.addrs) == 8


async def test_streams_on_which_nothing_comes_are_few_and_end(
    victim: Any, attack: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kademlia_member, "_IDLE", 0.5)
    silent = [await attack() for _ in range(5)]
    # The fifth at once, the others when their time is over.
    await ends(silent[4])
    assert victim.dht._streams.total() == 4
    for stream in silent[:4]:
        await ends(stream)
    await lives(victim, attack)
    with trio.fail_after(30):
        while victim.dht._streams:  # noqa: ASYNC110  # nothing announces it
            await trio.sleep(0.01)


async def test_one_who_only_asks_is_not_taken_for_a_server(victim: Any, attack: Any, client: HardenedHost) -> None:
    await lives(victim, attack)
    asked = victim.dht._asked
    with trio.fail_after(30):
        while client.get_id() not in asked:  # noqa: ASYNC110  # nothing announces it
            await trio.sleep(0.01)
    assert victim.dht.peers == 0


async def test_an_answer_that_lies_names_nobody_who_is_believed(victim: Any, client: HardenedHost) -> None:
    nobody = [ID.from_string(new_identity().peer_id) for _ in range(300)]
    dead = Multiaddr("/ip4/127.0.0.1/tcp/1").to_bytes()

    async def lie(stream: Any, peer_id: str) -> None:
        await stream.receive_some()
        named = [Message.Peer(id=one.to_bytes(), addrs=[dead, b"\xff\xff", b""] * 500) for one in nobody]
        named.append(Message.Peer(id=b""))
        named.append(Message.Peer(id=b"\xff" * 1000))
        answer = Message(type=Message.GET_PROVIDERS, key=VRAM.key, closerPeers=named, providerPeers=named[:2])
        await stream.send_all(encode_varint_prefixed(answer.SerializeToString()[:200_000]))

    async def lie_shorter(stream: Any, peer_id: str) -> None:
        nonlocal nobody
        nobody = nobody[:20]
        await lie(stream, peer_id)

    from dms_host import attach_protocols, host_addresses, open_host

    async with open_host(new_identity(), ["/ip4/127.0.0.1/tcp/0"]) as liar:
        for handler in (lie, lie_shorter):
            async with attach_protocols(liar, {KADEMLIA_PROTOCOL: handler}):
                await dial(victim.host, host_addresses(liar)[0])
                victim.dht._asked.clear()
                with trio.fail_after(90):
                    await found(victim.dht, request(Demand(gpus=(GPUDemand(vram=16 * GIB),))))
    assert all(not victim.dht._table.peer_in_table(one) for one in nobody)
    assert all(len(victim.dht._host.book.addrs(one)) <= 8 for one in nobody)
