"""A cancelled `YamuxStream.read` loses the bytes it has taken."""

import trio
from libp2p.peer.id import ID
from libp2p.stream_muxer.yamux.yamux import Yamux, YamuxStream


class Stalled:
    is_initiator = True

    async def write(self, data):
        await trio.sleep_forever()


async def main():
    yamux = Yamux(Stalled(), ID(b"peer"))
    stream = YamuxStream(1, yamux, True)
    stream.target_recv_window = stream.recv_window = 256 * 1024
    yamux.streams[1], yamux.stream_buffers[1], yamux.stream_events[1] = stream, bytearray(200_000), trio.Event()
    stream.recv_window -= 200_000
    with trio.move_on_after(1):
        print(len(await stream.read(200_000)), "bytes read")
    print(len(yamux.stream_buffers[1]), "bytes left after the cancelled read, of 200000")


trio.run(main)
