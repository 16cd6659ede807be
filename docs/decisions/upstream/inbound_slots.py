"""Inbound connections hold their slots for ever."""

import trio
from libp2p import new_host
from libp2p.network.config import ConnectionConfig
from libp2p.peer.peerinfo import info_from_p2p_addr
from multiaddr import Multiaddr

SLOTS = 5  # by default 250


async def visit(address):
    client = new_host()
    async with client.run([]):
        with trio.move_on_after(10):
            try:
                await client.connect(info_from_p2p_addr(address))
                return True
            except Exception:
                pass
    return False


async def main():
    config = ConnectionConfig(min_connections=1, low_watermark=1, high_watermark=2, max_connections=SLOTS + 1)
    server = new_host(connection_config=config)
    async with server.run([Multiaddr("/ip4/127.0.0.1/tcp/0")]):
        visits = [await visit(server.get_addrs()[0]) for _ in range(SLOTS)]
        await trio.sleep(0.5)
        print(f"{sum(visits)} connections came and left;", end=" ")
        print("one more is accepted:", await visit(server.get_addrs()[0]))


trio.run(main)
