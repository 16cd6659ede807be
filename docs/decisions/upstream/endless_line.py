"""A multistream-select line has no bound."""

import trio
from libp2p.protocol_muxer.multiselect_communicator import MultiselectCommunicator
from libp2p.utils import encode_uvarint


class Endless:
    asked = 0

    async def read(self, n):
        if not self.asked:
            self.asked = 1
            self.header = bytearray(encode_uvarint(2**33))
        if self.header:
            return bytes([self.header.pop(0)])
        self.asked += n
        if self.asked > 50_000_000:
            print("asked for", self.asked, "bytes of one line")
            raise EOFError
        return bytes(n)


try:
    trio.run(MultiselectCommunicator(Endless()).read)
except BaseException as error:
    print(repr(error)[:100])
