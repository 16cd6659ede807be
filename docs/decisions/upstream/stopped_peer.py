"""A stopped peer is never noticed: nothing happens when a Yamux ping is not answered."""

import trio
import trio.testing
from libp2p.peer.id import ID
from libp2p.stream_muxer.yamux.yamux import Yamux


class Stopped:
    is_initiator = True

    async def read(self, n):
        await trio.sleep_forever()

    async def write(self, data):
        pass

    async def close(self):
        pass


async def main():
    peer = Stopped()
    yamux = Yamux(peer, ID(b"peer"))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(yamux.start)
        await trio.sleep(3600)
        print("closed after an hour without an answer to any ping:", yamux.is_closed)
        nursery.cancel_scope.cancel()


trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
