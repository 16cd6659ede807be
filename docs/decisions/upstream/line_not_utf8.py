"""A multistream-select line that is not UTF-8 raises UnicodeDecodeError."""

import trio
from libp2p.protocol_muxer.multiselect_communicator import MultiselectCommunicator
from libp2p.utils import encode_uvarint


class Garbage:
    data = encode_uvarint(3) + b"\xff\xfe\n"

    async def read(self, n):
        data, self.data = self.data[:n], self.data[n:]
        return data


try:
    trio.run(MultiselectCommunicator(Garbage()).read)
except Exception as error:
    print(type(error).__name__)
