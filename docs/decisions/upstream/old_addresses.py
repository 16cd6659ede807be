"""Dials try old addresses first, and a negative cache refuses a new address after a failure at the old one."""

import socket

import trio
from libp2p import new_host
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.peer.peerinfo import PeerInfo, info_from_p2p_addr
from multiaddr import Multiaddr


async def connects(client, target):
    """Whether a connection is made within 5 seconds."""
    with trio.move_on_after(5):
        try:
            await client.connect(target)
            return True
        except Exception:
            pass
    return False


async def main():
    keys = create_new_key_pair()
    server, first, second = new_host(key_pair=keys), new_host(), new_host()
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts connections and says nothing
        silent_address = Multiaddr(f"/ip4/127.0.0.1/tcp/{silent.getsockname()[1]}")
        async with server.run([Multiaddr("/ip4/127.0.0.1/tcp/0")]), first.run([]), second.run([]):
            new = info_from_p2p_addr(server.get_addrs()[0])
            first.get_peerstore().add_addrs(new.peer_id, [silent_address], 3600)
            print("connects to the new address while an old one is silent:", await connects(first, new))
            await connects(second, PeerInfo(new.peer_id, [Multiaddr("/ip4/127.0.0.1/tcp/1")]))
            print("connects to the new address after a refusal at an old one:", await connects(second, new))


trio.run(main)
