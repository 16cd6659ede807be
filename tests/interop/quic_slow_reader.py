"""Why QUIC is not offered (docs/interop.md): over py-libp2p's QUIC a slow reader does not get all data.

Run it by hand: `python tests/interop/quic_slow_reader.py`. The library logs "receive buffer overflow, dropping"
although it has acknowledged the bytes, and ends the stream as if it were complete.
"""

from __future__ import annotations

import trio
from libp2p import new_host
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.peer.peerinfo import info_from_p2p_addr
from multiaddr import Multiaddr

SENT = b"".join(number.to_bytes(4, "big") for number in range(1_500_000))


async def main() -> None:
    received, all_sent, all_read = bytearray(), trio.Event(), trio.Event()

    async def read_late(stream) -> None:
        await all_sent.wait()
        try:
            while piece := await stream.read(1 << 16):
                received.extend(piece)
        except Exception as end:
            print(f"the stream ended with {type(end).__name__}")
        all_read.set()

    listening, dialing = (new_host(key_pair=create_new_key_pair(), enable_quic=True) for _ in range(2))
    listening.set_stream_handler("/late/1.0.0", read_late)
    async with listening.run([Multiaddr("/ip4/127.0.0.1/udp/0/quic-v1")]), dialing.run([]):
        address = str(listening.get_addrs()[0]).partition("/p2p/")[0]
        await dialing.connect(info_from_p2p_addr(Multiaddr(f"{address}/p2p/{listening.get_id()}")))
        stream = await dialing.new_stream(listening.get_id(), ["/late/1.0.0"])
        for at in range(0, len(SENT), 1 << 16):
            await stream.write(SENT[at : at + (1 << 16)])
        await stream.close()
        all_sent.set()
        await all_read.wait()
        report(received)


def report(received: bytearray) -> None:
    wrong = next((at for at, (got, sent) in enumerate(zip(received, SENT, strict=False)) if got != sent), None)
    print(f"{len(received)} of {len(SENT)} bytes were read")
    print("all of them as sent" if wrong is None else f"from byte {wrong} on they are others than were sent")


if __name__ == "__main__":
    trio.run(main)
