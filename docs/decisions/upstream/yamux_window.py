"""Yamux keeps what is sent beyond its receive window."""

import struct

import trio
from libp2p.peer.id import ID
from libp2p.stream_muxer.yamux.yamux import Yamux


class Sender:
    is_initiator = False
    sent = 0

    def __init__(self):
        self.done = trio.Event()

    async def read(self, n):
        await trio.lowlevel.checkpoint()
        if not self.sent:
            self.sent = 1
            self.left = struct.pack("!BBHII", 0, 1, 1, 1, 0)
        if not self.left:
            if self.sent > 200:
                self.done.set()
                await trio.sleep_forever()
            self.sent += 1
            self.left = struct.pack("!BBHII", 0, 0, 0, 1, 65536) + bytes(65536)
        data, self.left = self.left[:n], self.left[n:]
        return data

    async def write(self, data):
        pass

    async def close(self):
        pass


async def main():
    sender = Sender()
    yamux = Yamux(sender, ID(b"peer"))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(yamux.start)
        with trio.move_on_after(20):
            await sender.done.wait()
        print(sum(map(len, yamux.stream_buffers.values())), "bytes kept, window 262144")
        nursery.cancel_scope.cancel()


trio.run(main)
