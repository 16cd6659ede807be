"""A cancelled Yamux write leaves half a frame on the wire."""

import socket
import struct

import trio
from libp2p.io.trio import TrioTCPStream
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.peer.id import ID
from libp2p.stream_muxer.yamux.yamux import Yamux


async def main():
    near, far = socket.socketpair()
    near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    connection = RawConnection(TrioTCPStream(trio.SocketStream(trio.socket.from_stdlib_socket(near))), True)
    yamux = Yamux(connection, ID(b"peer"))
    with trio.move_on_after(1):
        await yamux._write_frame(struct.pack("!BBHII", 0, 0, 0, 1, 200_000) + bytes(200_000))
    reader = trio.SocketStream(trio.socket.from_stdlib_socket(far))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(yamux._write_frame, struct.pack("!BBHII", 0, 2, 1, 0, 7))
        received = b""
        with trio.move_on_after(2):
            while True:
                received += await reader.receive_some()
    print("the cancelled frame is whole, or was not sent at all:", len(received) in (12, 12 + 200_000 + 12))


trio.run(main)
