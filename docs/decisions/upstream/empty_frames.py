"""Yamux frames without content cost their sender nothing, and one message of them stops all other tasks."""

import struct

import trio
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.peer.id import ID
from libp2p.security.secure_session import SecureSession
from libp2p.stream_muxer.yamux.yamux import Yamux

FRAMES = 5400  # as many as a Noise message holds
PONG = struct.pack("!BBHII", 0, 2, 2, 0, 0)  # version, type, flags (ACK), stream id, value
turns = 0


class Messages:
    """The messages of a Noise connection: one with FRAMES pongs that answer no ping, and then none."""

    sent = False
    before, after = 0, 0

    def __init__(self):
        self.handled = trio.Event()

    async def read_msg(self):
        await trio.lowlevel.checkpoint()
        if self.sent:
            self.after = turns
            self.handled.set()
            await trio.sleep_forever()
        self.sent, self.before = True, turns
        return PONG * FRAMES

    async def write_msg(self, msg):
        await trio.lowlevel.checkpoint()

    async def close(self):
        pass


async def count_turns():
    global turns
    while True:
        await trio.lowlevel.checkpoint()
        turns += 1


async def main():
    keys, messages = create_new_key_pair(), Messages()
    session = SecureSession(
        local_peer=ID(b"a"),
        local_private_key=keys.private_key,
        remote_peer=ID(b"b"),
        remote_permanent_pubkey=keys.public_key,
        is_initiator=False,
        conn=messages,
    )
    yamux = Yamux(session, ID(b"b"))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(count_turns)
        nursery.start_soon(yamux.start)
        with trio.fail_after(20):
            await messages.handled.wait()
        print(f"{FRAMES} pongs; other tasks had fewer than 10 turns: {messages.after - messages.before < 10};", end=" ")
        print("connection open:", not yamux.is_closed)
        nursery.cancel_scope.cancel()


trio.run(main)
