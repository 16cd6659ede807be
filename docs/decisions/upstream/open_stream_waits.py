"""`open_stream` waits for ever when 256 streams are not acknowledged."""

import trio
import trio.testing
from libp2p.peer.id import ID
from libp2p.stream_muxer.yamux.yamux import Yamux


class Silent:
    is_initiator = True

    async def write(self, data):
        pass


async def main():
    yamux = Yamux(Silent(), ID(b"peer"))
    for _ in range(256):
        await yamux.open_stream()
    with trio.move_on_after(24 * 3600) as scope:
        await yamux.open_stream()
    print("stream 257 waited for a day:", scope.cancelled_caught)


trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
