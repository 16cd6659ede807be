"""Attach the DMS protocols to a py-libp2p host of your own, and detach them again.

python examples/attach_to_your_host.py
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import trio
from libp2p import new_host
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.crypto.x25519 import create_new_key_pair as create_new_noise_key
from libp2p.custom_types import TProtocol
from libp2p.network.stream.net_stream import INetStream
from libp2p.security.noise.transport import PROTOCOL_ID, Transport
from multiaddr import Multiaddr

from dms_host import DialError
from dms_peer import dial, host_addresses, new_identity, open_host, open_resources, serve
from dms_resources import CPU, GIB, RAM, Cores, Disk, OnboardedResources, measure_machine, open_manager

YOUR_PROTOCOL = TProtocol("/your-program/1.0.0")
OFFER = OnboardedResources(cpu=CPU(cores=Cores.of(1)), ram=RAM(size=GIB), disk=Disk(size=GIB), gpus=())


async def answer_yours(stream: INetStream) -> None:
    """A protocol that your program already serves."""
    await stream.write(b"hello")
    await stream.close()


async def main() -> None:
    """Run your host, and serve the DMS protocols on it for a while."""
    key_pair = create_new_key_pair()
    # Without sec_opt, py-libp2p also accepts unencrypted connections.
    noise = Transport(key_pair, noise_privkey=create_new_noise_key().private_key)
    host = new_host(key_pair=key_pair, sec_opt={PROTOCOL_ID: noise})
    host.set_stream_handler(YOUR_PROTOCOL, answer_yours)
    async with host.run([Multiaddr("/ip4/127.0.0.1/tcp/0")]):
        with tempfile.TemporaryDirectory() as home:
            machine = await trio.to_thread.run_sync(measure_machine, Path(home))
            async with open_manager(Path(home) / "ledger.db", machine) as manager:
                await manager.update_onboarded_resources(OFFER)
                async with serve(host, manager):
                    print("attached:", *(name for name in host.get_mux().get_protocols() if "/dms/" in str(name)))
                    await ask(host_addresses(host)[0])
        print("detached:", *(name for name in host.get_mux().get_protocols() if "/your-program/" in str(name)))
        try:
            await ask(host_addresses(host)[0])
        except DialError as error:
            print("asked again:", error.code)


async def ask(address: str) -> None:
    """Query the free resources as another peer."""
    async with open_host(new_identity()) as other:
        peer_id = await dial(other, address)
        async with open_resources(other, peer_id) as resources:
            free = await resources.free()
            print(f"free: {free.cpu.cores} cores")


if __name__ == "__main__":
    trio.run(main)
