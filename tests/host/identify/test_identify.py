"""Identify messages: within the limits they are accepted, beyond them they are ignored before they cost anything."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from libp2p.identity.identify.identify import parse_identify_response
from libp2p.identity.identify.pb.identify_pb2 import Identify
from libp2p.identity.identify_push.identify_push import ID_PUSH
from libp2p.peer.envelope import seal_record
from libp2p.peer.id import ID
from libp2p.peer.peer_record import PeerRecord
from libp2p.utils.varint import encode_varint_prefixed
from multiaddr import Multiaddr

from dms_host import dial, host_addresses, new_identity, open_host, open_stream
from dms_host.identify import identify

IDENTIFY = "/ipfs/id/1.0.0"


@pytest.fixture
def looked_at(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of the messages that the library handles."""
    sizes: list[int] = []
    update = identify.update_peerstore_from_identify

    async def count(peerstore: Any, peer_id: ID, message: Identify) -> None:
        sizes.append(message.ByteSize())
        await update(peerstore, peer_id, message)

    monkeypatch.setattr(identify, "update_peerstore_from_identify", count)
    return sizes


def with_addresses(host: Any, count: int) -> bytes:
    """A message with a signed record of this many addresses."""
    addresses = [Multiaddr(f"/ip4/192.0.2.{number % 250}/tcp/{number + 1}") for number in range(count)]
    record = PeerRecord(host.get_id(), addresses, seq=1)
    return Identify(signedPeerRecord=seal_record(record, host.get_private_key()).marshal_envelope()).SerializeToString()


async def push(client: Any, peer_id: str, message: bytes) -> None:
    async with await open_stream(client, peer_id, [ID_PUSH]) as stream:
        await stream.send_all(encode_varint_prefixed(message))
        await stream.send_eof()
        assert await stream.receive_some() == b""


async def test_a_record_of_thousands_of_addresses_is_passed_over(server, client, looked_at: list[int]) -> None:
    peer_id = await dial(client, host_addresses(server)[0])
    few, many = with_addresses(client, 20), with_addresses(client, 1000)
    await push(client, peer_id, many)
    await push(client, peer_id, few)
    assert len(many) not in looked_at
    assert len(few) in looked_at
    assert len(server.get_peerstore().addrs(client.get_id())) < 1000


async def test_neither_is_it_where_it_answers_a_question(server, client, looked_at: list[int], eventually) -> None:
    answered = trio.Event()
    many = with_addresses(client, 1000)

    async def answer(stream: Any) -> None:
        # After a length that is too large, the library reads the rest as a message without a length.
        await stream.write(b"\xff\xff\xff\x7f" + many)
        answered.set()

    client.set_stream_handler(IDENTIFY, answer)
    await dial(client, host_addresses(server)[0])
    with trio.fail_after(5):
        await answered.wait()
    await eventually(lambda: client.get_id() not in server._identify_inflight)
    assert len(many) not in looked_at


async def test_who_pushes_without_end_is_not_listened_to(server, client, looked_at: list[int]) -> None:
    peer_id = await dial(client, host_addresses(server)[0])
    message = Identify(protocols=["/one"]).SerializeToString()
    for _ in range(3 * identify.BURST):
        await push(client, peer_id, message)
    assert 1 <= looked_at.count(len(message)) <= identify.BURST + 5


def test_whose_messages_are_counted_is_bounded() -> None:
    store = identify.BoundedPeerStore(max_records=10, max_peers=10)
    for number in range(identify.MAX_PEERS + 10):
        assert store.admits(ID(number.to_bytes(4, "big")))
    assert len(store._heard) == identify.MAX_PEERS


@pytest.mark.parametrize("agent", ["dms-peer/9.8.7", ""])
async def test_a_host_tells_its_agent_version(agent: str) -> None:
    async with (
        open_host(new_identity(), ["/ip4/127.0.0.1/tcp/0"], agent=agent) as named,
        open_host(new_identity()) as asking,
    ):
        stream = await open_stream(asking, await dial(asking, host_addresses(named)[0]), [IDENTIFY])
        raw = b""
        while part := await stream.receive_some():
            raw += part
        message = parse_identify_response(raw)
    if agent:
        assert message.agent_version == agent
    else:
        assert message.agent_version.startswith("py-libp2p/")
