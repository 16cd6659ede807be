"""Identify runs as a system task: an exception that leaves it ends the whole program, not the host."""

import trio
from libp2p import new_host
from libp2p.peer.peerinfo import info_from_p2p_addr
from multiaddr import Multiaddr


async def fail(peer_id, *, reason):
    raise LookupError("stands for a bug in identify")


async def main():
    server, client = new_host(), new_host()
    client._identify_peer = fail
    async with server.run([Multiaddr("/ip4/127.0.0.1/tcp/0")]):
        try:
            async with client.run([]):
                await client.connect(info_from_p2p_addr(server.get_addrs()[0]))
                await trio.sleep(20)
        except* LookupError:
            print("the application can handle the error of its host")


try:
    trio.run(main)
except BaseException as error:
    print("the program ended with", type(error).__name__)
