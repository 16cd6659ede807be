"""A second host on the same port starts, and shares its connections."""

import trio
from libp2p import new_host
from multiaddr import Multiaddr


async def main():
    first, second = new_host(), new_host()
    async with first.run([Multiaddr("/ip4/127.0.0.1/tcp/0")]):
        address = first.get_transport_addrs()[0]
        async with second.run([address]):
            print("both listen on the same port:", second.get_transport_addrs() == first.get_transport_addrs())


trio.run(main)
