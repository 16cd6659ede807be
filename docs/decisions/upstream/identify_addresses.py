"""Identify takes messages of a mebibyte, and compares the addresses of the signed record one by one."""

import time

import trio
from libp2p import new_host
from libp2p.identity.identify.pb.identify_pb2 import Identify
from libp2p.identity.identify_push.identify_push import update_peerstore_from_identify
from libp2p.peer.envelope import seal_record
from libp2p.peer.peer_record import PeerRecord
from multiaddr import Multiaddr


async def seconds_for(count):
    """The processor time that one pushed message with this many addresses takes."""
    server, client = new_host(), new_host()
    addresses = [Multiaddr(f"/ip4/192.0.2.{number % 250}/tcp/{number + 1}") for number in range(count)]
    envelope = seal_record(PeerRecord(client.get_id(), addresses, seq=1), client.get_private_key())
    message = Identify(signedPeerRecord=envelope.marshal_envelope())
    start = time.process_time()
    await update_peerstore_from_identify(server.get_peerstore(), client.get_id(), message)
    return time.process_time() - start


async def main():
    few, many = await seconds_for(1000), await seconds_for(10_000)
    print("ten times the addresses take more than thirty times as long:", many > 30 * few)
    print(f"({few:.2f} s for 1,000 addresses in 12 KB, {many:.1f} s for 10,000 in 120 KB)")


trio.run(main)
