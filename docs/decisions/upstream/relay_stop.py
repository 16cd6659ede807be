"""The relay transport accepts circuits from any peer, without a reservation."""

import trio
from libp2p import new_host
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import info_from_p2p_addr
from libp2p.relay.circuit_v2.pb.circuit_pb2 import Status, StopMessage
from libp2p.relay.circuit_v2.protocol import STOP_PROTOCOL_ID, CircuitV2Protocol
from libp2p.relay.circuit_v2.utils import read_delimited_msg, write_delimited_msg
from libp2p.tools.anyio_service import background_trio_service
from multiaddr import Multiaddr


async def main():
    target, stranger = new_host(), new_host()
    protocol = CircuitV2Protocol(target, allow_hop=False)  # it reserved nowhere
    async with target.run([Multiaddr("/ip4/127.0.0.1/tcp/0")]), stranger.run([]), background_trio_service(protocol):
        await stranger.connect(info_from_p2p_addr(target.get_addrs()[0]))
        stream = await stranger.new_stream(target.get_id(), [STOP_PROTOCOL_ID])
        offer = StopMessage(type=StopMessage.CONNECT)
        offer.peer.id = ID(b"\x12\x20" + b"x" * 32).to_bytes()
        await write_delimited_msg(stream, offer)
        answer = await read_delimited_msg(stream, StopMessage)
        print("a circuit that nobody reserved is answered with", Status.Name(answer.status))


trio.run(main)
