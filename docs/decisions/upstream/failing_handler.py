"""A stream handler that raises ends the host."""

import trio
from libp2p import new_host
from libp2p.peer.peerinfo import info_from_p2p_addr
from multiaddr import Multiaddr


async def fail(stream):
    raise ValueError("a bug of a handler")


async def main():
    server, client = new_host(), new_host()
    server.set_stream_handler("/fail/1.0.0", fail)
    async with server.run([Multiaddr("/ip4/127.0.0.1/tcp/0")]), client.run([]):
        await client.connect(info_from_p2p_addr(server.get_addrs()[0]))
        await client.new_stream(server.get_id(), ["/fail/1.0.0"])
        await trio.sleep(20)
        print("the host goes on")


try:
    trio.run(main)
except BaseException as error:
    print("the host ended with", type(error).__name__)
