"""The relay reserves for any peer that a message names."""

import trio
from libp2p import new_host
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import info_from_p2p_addr
from libp2p.relay.circuit_v2.config import DEFAULT_MAX_RESERVATIONS
from libp2p.relay.circuit_v2.pb.circuit_pb2 import HopMessage, Status
from libp2p.relay.circuit_v2.protocol import PROTOCOL_ID, CircuitV2Protocol
from libp2p.relay.circuit_v2.utils import read_delimited_msg, write_delimited_msg
from libp2p.tools.anyio_service import background_trio_service
from multiaddr import Multiaddr


async def reserve(client, relay, peer_id=None):
    stream = await client.new_stream(relay.get_id(), [PROTOCOL_ID])
    request = HopMessage(type=HopMessage.RESERVE)
    if peer_id is not None:
        request.peer.id = peer_id.to_bytes()
    await write_delimited_msg(stream, request)
    with trio.move_on_after(5):
        return await read_delimited_msg(stream, HopMessage)


async def main():
    relay, stranger, honest = new_host(), new_host(), new_host()
    protocol = CircuitV2Protocol(relay, allow_hop=True)
    async with (
        relay.run([Multiaddr("/ip4/127.0.0.1/tcp/0")]),
        stranger.run([]),
        honest.run([]),
        background_trio_service(protocol),
    ):
        await stranger.connect(info_from_p2p_addr(relay.get_addrs()[0]))
        await honest.connect(info_from_p2p_addr(relay.get_addrs()[0]))
        for number in range(DEFAULT_MAX_RESERVATIONS):
            await reserve(stranger, relay, ID(b"\x12\x20" + bytes([number]) * 32))
        answer = await reserve(honest, relay)
        print("after one stranger named", DEFAULT_MAX_RESERVATIONS, "other peers:", Status.Name(answer.status))


trio.run(main)
