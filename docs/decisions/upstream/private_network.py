"""A private network uses Salsa20 with a nonce of 8 bytes instead of XSalsa20 with 24."""

import trio
from libp2p.security.pnet.psk_conn import PskConn


class Wire:
    pieces = ()

    async def write(self, data):
        self.pieces += (len(data),)


async def main():
    wire = Wire()
    await PskConn(wire, "00" * 32).write(b"hello")
    print("bytes of the nonce that is sent first:", wire.pieces[0])


trio.run(main)
