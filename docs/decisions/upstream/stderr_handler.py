"""Connecting installs a log handler that prints to stderr."""

import logging

import trio
from libp2p import new_host
from libp2p.peer.peerinfo import info_from_p2p_addr
from multiaddr import Multiaddr


async def main():
    server, client = new_host(), new_host()
    async with server.run([Multiaddr("/ip4/127.0.0.1/tcp/0")]), client.run([]):
        await client.connect(info_from_p2p_addr(server.get_addrs()[0]))
        print(logging.getLogger().handlers)


trio.run(main)
