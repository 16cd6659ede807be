"""Kademlia stores values and provider records of any stranger under any key, and names a peer that only queried."""

import secrets

import trio
from libp2p import new_host
from libp2p.kad_dht.common import MAX_RECORD_SIZE, PROTOCOL_ID
from libp2p.kad_dht.kad_dht import DHTMode, KadDHT
from libp2p.kad_dht.pb.kademlia_pb2 import Message
from libp2p.peer.peerinfo import info_from_p2p_addr
from libp2p.tools.anyio_service import background_trio_service
from libp2p.utils.varint import encode_varint_prefixed
from multiaddr import Multiaddr

ANYWHERE = Multiaddr("/ip4/127.0.0.1/tcp/0")


async def send(stranger, server, message):
    stream = await stranger.new_stream(server.get_id(), [PROTOCOL_ID])
    await stream.write(encode_varint_prefixed(message.SerializeToString()))
    with trio.move_on_after(5):
        await stream.read(1)


async def main():
    server, stranger = new_host(), new_host()
    dht = KadDHT(server, DHTMode.SERVER)
    async with server.run([ANYWHERE]), stranger.run([ANYWHERE]), background_trio_service(dht):
        await stranger.connect(info_from_p2p_addr(server.get_addrs()[0]))
        with trio.fail_after(20):
            while stranger.get_id() not in server._identified_peers:  # noqa: ASYNC110
                await trio.sleep(0.05)
        for number in range(5):
            key = f"any-{number}".encode()
            value = Message(type=Message.MessageType.PUT_VALUE, key=key)
            value.record.key, value.record.value = key, bytes(MAX_RECORD_SIZE - 100)
            await send(stranger, server, value)
            record = Message(type=Message.MessageType.ADD_PROVIDER, key=secrets.token_bytes(34))
            provider = record.providerPeers.add()
            provider.id = stranger.get_id().to_bytes()
            provider.addrs.append(Multiaddr("/ip4/192.0.2.1/tcp/1").to_bytes())
            await send(stranger, server, record)
        print(f"{dht.value_store.size()} values of {MAX_RECORD_SIZE} bytes,", end=" ")
        print(f"{dht.provider_store.size()} provider records under random keys,", end=" ")
        print("a client in the routing table:", dht.routing_table.peer_in_table(stranger.get_id()))


trio.run(main)
