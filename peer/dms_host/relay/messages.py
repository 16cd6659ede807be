"""The messages between relays and peers, before a stream becomes a connection.

Circuit relay v2 (https://github.com/libp2p/specs/blob/master/relay/circuit-v2.md): HOP from a peer to its relay, STOP
from the relay to the target peer. Each message is protobuf after its length. Nothing beyond it is read, because the
next byte may belong to the connection.
"""

from __future__ import annotations

from typing import TypeVar

import trio
from libp2p.exceptions import BaseLibp2pError
from libp2p.relay.circuit_v2.pb.circuit_pb2 import HopMessage, Status, StopMessage
from libp2p.utils.varint import encode_varint_prefixed

from ..streams.stream import PeerStream

__all__ = ["HOP", "STOP", "RelayMessageError", "read_message", "status_name", "write_hop_status", "write_message"]

HOP = "/libp2p/circuit/relay/0.2.0/hop"
STOP = "/libp2p/circuit/relay/0.2.0/stop"

# Seconds for a message and its answer.
MESSAGE_TIMEOUT = 10.0

Message = TypeVar("Message", HopMessage, StopMessage)


class RelayMessageError(BaseLibp2pError):
    """The other side did not send the expected message in time, or the stream has ended."""


async def read_message(stream: PeerStream, message_type: type[Message]) -> Message:
    """One message, within MESSAGE_TIMEOUT. Raises RelayMessageError. May be cancelled, which loses the message."""
    try:
        with trio.fail_after(MESSAGE_TIMEOUT):
            data = await _read_exactly(stream, await _read_length(stream))
        message = message_type()
        message.ParseFromString(data)
    # protobuf raises various errors for what it cannot read.
    except Exception as error:
        raise RelayMessageError(f"no message of a relay: {type(error).__name__}") from error
    return message


async def _read_length(stream: PeerStream) -> int:
    length = 0
    # At most 16 KiB. The specification has no limit; a message contains a peer id and some addresses.
    for shift in (0, 7):
        (byte,) = await _read_exactly(stream, 1)
        length |= (byte & 0x7F) << shift
        if byte < 0x80:
            return length
    raise ValueError("a length of more than two bytes")


async def _read_exactly(stream: PeerStream, size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = await stream.receive_some(size - len(data))
        if not piece:
            raise EOFError
        data += piece
    return data


async def write_message(stream: PeerStream, message: HopMessage | StopMessage) -> None:
    """Send one message, within MESSAGE_TIMEOUT. Raises RelayMessageError."""
    try:
        with trio.fail_after(MESSAGE_TIMEOUT):
            await stream.send_all(encode_varint_prefixed(message.SerializeToString()))
    except (trio.TooSlowError, trio.BrokenResourceError, trio.ClosedResourceError) as error:
        raise RelayMessageError(f"the message was not taken: {type(error).__name__}") from error


async def write_hop_status(stream: PeerStream, status: Status.ValueType) -> None:
    """Answer a HOP message with a status alone. Raises RelayMessageError."""
    await write_message(stream, HopMessage(type=HopMessage.STATUS, status=status))


def status_name(status: int) -> str:
    """The name of a status in the specification, in words."""
    names: dict[int, str] = {value: name for name, value in Status.items()}
    return names.get(status, f"status {status}").lower().replace("_", " ")
