"""One malformed RPC ends pubsub."""

import trio
from libp2p import new_host
from libp2p.peer.peerinfo import info_from_p2p_addr
from libp2p.pubsub.gossipsub import GossipSub
from libp2p.pubsub.pb import rpc_pb2
from libp2p.pubsub.pubsub import Pubsub
from libp2p.tools.anyio_service import background_trio_service
from libp2p.utils.varint import encode_varint_prefixed
from multiaddr import Multiaddr

MESHSUB = "/meshsub/1.1.0"


async def main():
    server, client = new_host(), new_host()
    router = GossipSub(protocols=[MESHSUB], degree=6, degree_low=4, degree_high=12)
    pubsub = Pubsub(server, router, strict_signing=True)
    async with (
        server.run([Multiaddr("/ip4/127.0.0.1/tcp/0")]),
        client.run([]),
        background_trio_service(pubsub),
        background_trio_service(router),
    ):
        await pubsub.wait_until_ready()
        await pubsub.subscribe("topic")
        await client.connect(info_from_p2p_addr(server.get_addrs()[0]))
        stream = await client.new_stream(server.get_id(), [MESHSUB])
        message = rpc_pb2.Message(from_id=b"x", data=b"x", topicIDs=["topic"], seqno=b"1", signature=b"x", key=b"x")
        await stream.write(encode_varint_prefixed(rpc_pb2.RPC(publish=[message]).SerializeToString()))
        await trio.sleep(20)
        print("pubsub goes on:", pubsub.manager.is_running)


try:
    trio.run(main)
except BaseException as error:
    print("pubsub ended:", type(error).__name__)
