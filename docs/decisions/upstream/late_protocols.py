"""Protocols that are registered after a connection are not announced to it."""

import trio
from libp2p import new_host
from libp2p.peer.peerinfo import info_from_p2p_addr
from multiaddr import Multiaddr


async def main():
    server, client = new_host(), new_host()
    async with server.run([Multiaddr("/ip4/127.0.0.1/tcp/0")]), client.run([]):
        await client.connect(info_from_p2p_addr(server.get_addrs()[0]))

        async def answer(stream):
            await stream.close()

        server.set_stream_handler("/late/1.0.0", answer)
        await trio.sleep(1)
        print(
            "the peer learned of the new protocol:",
            "/late/1.0.0" in client.get_peerstore().get_protocols(server.get_id()),
        )


trio.run(main)
