"""Filters RPCs: only the well-formed, wanted and bounded part reaches the library.

What breaks: one message whose `key` is no public key ends pubsub, and with it everything in the same nursery. A PRUNE
makes the library dial whatever addresses it names. Ids and topics are kept as they come.
Measure: `read_rpc` parses the bytes and makes a new RPC of the allowed part. It drops everything else, and raises
GossipViolationError for what no honest peer sends.
Upstream: https://github.com/libp2p/py-libp2p/issues/1120 (an exception in pubsub's streams); for the key, no upstream
report found (November 2026).
Source: https://github.com/libp2p/specs/blob/master/pubsub/README.md and gossipsub/gossipsub-v1.1.md.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from itertools import islice
from typing import Final

from google.protobuf.message import DecodeError
from libp2p.pubsub.pb import rpc_pb2

from .limits import GossipLimits

__all__ = ["GossipViolationError", "read_rpc"]

# An Ed25519 peer id: the identity multihash of a protobuf with key type 1 and 32 bytes of key.
_KEY_PREFIX: Final = bytes.fromhex("08011220")
_ID_PREFIX: Final = b"\x00\x24" + _KEY_PREFIX
_ID_LENGTH: Final = len(_ID_PREFIX) + 32
_SEQNO_LENGTH: Final = 8
_SIGNATURE_LENGTH: Final = 64
_LONGEST_MESSAGE_ID: Final = 64
# Entries of one RPC, and ids in them, that are examined: 256 KiB could hold 130,000 empty ones.
_MOST_ENTRIES: Final = 1024
_MOST_IDS: Final = 8192
# The longest back-off in seconds that a peer may request of us.
_LONGEST_BACKOFF: Final = 3600


class GossipViolationError(Exception):
    """Bytes that no honest peer sends."""


def read_rpc(raw: bytes, topics: Collection[str], limits: GossipLimits) -> rpc_pb2.RPC:
    """The allowed part of an RPC. Raises GossipViolationError for bytes that are no RPC."""
    received = rpc_pb2.RPC()
    try:
        received.ParseFromString(raw)
    except (DecodeError, RecursionError) as error:
        raise GossipViolationError("no RPC") from error
    control = received.control
    entries = len(received.subscriptions) + len(received.publish)
    entries += len(control.ihave) + len(control.iwant) + len(control.graft) + len(control.prune)
    if entries > _MOST_ENTRIES:
        raise GossipViolationError(f"an RPC of {entries} entries")
    allowed = rpc_pb2.RPC()
    for change in received.subscriptions:
        # At most one change for each topic: the last one counts, and only for topics that we subscribe to.
        if change.topicid in topics:
            _forget_change(allowed, change.topicid)
            allowed.subscriptions.add(subscribe=change.subscribe, topicid=change.topicid)
    for message in received.publish:
        if _is_ours(message, topics, limits):
            allowed.publish.append(message)
    if received.HasField("control"):
        _allow_control(received.control, allowed, topics, limits)
    return allowed


def _forget_change(allowed: rpc_pb2.RPC, topic: str) -> None:
    for index, change in enumerate(allowed.subscriptions):
        if change.topicid == topic:
            del allowed.subscriptions[index]
            return


def _is_ours(message: rpc_pb2.Message, topics: Collection[str], limits: GossipLimits) -> bool:
    """Whether a message is on one of our topics and has the form of our messages. Others are ignored."""
    if len(message.topicIDs) != 1 or message.topicIDs[0] not in topics:
        return False
    if len(message.data) > limits.message_bytes:
        raise GossipViolationError(f"a message of {len(message.data)} bytes")
    origin = message.from_id
    return (
        len(origin) == _ID_LENGTH
        and origin.startswith(_ID_PREFIX)
        # The peer id contains the key, so a second key is not needed.
        and message.key in (b"", origin[2:])
        and len(message.seqno) == _SEQNO_LENGTH
        and len(message.signature) == _SIGNATURE_LENGTH
    )


def _allow_control(
    received: rpc_pb2.ControlMessage, allowed: rpc_pb2.RPC, topics: Collection[str], limits: GossipLimits
) -> None:
    control = rpc_pb2.ControlMessage()
    offered = limits.offered_ids
    for ihave in received.ihave:
        if ihave.topicID in topics and (ids := _ids(ihave.messageIDs, offered)):
            offered -= len(ids)
            control.ihave.add(topicID=ihave.topicID, messageIDs=ids)
    if wanted := _ids((one for iwant in received.iwant for one in iwant.messageIDs), limits.asked_ids):
        control.iwant.add(messageIDs=wanted)
    for topic in topics:
        if any(graft.topicID == topic for graft in received.graft):
            control.graft.add(topicID=topic)
        backoffs = [prune.backoff for prune in received.prune if prune.topicID == topic]
        if backoffs:
            # Without the peers that it names: other code decides which peers are dialled.
            control.prune.add(topicID=topic, backoff=min(backoffs[0], _LONGEST_BACKOFF))
    if control.ByteSize():
        allowed.control.CopyFrom(control)


def _ids(ids: Iterable[bytes], most: int) -> list[bytes]:
    """The ids without duplicates, at most `most`."""
    looked_at = islice(ids, _MOST_IDS)
    return list(islice(dict.fromkeys(one for one in looked_at if 0 < len(one) <= _LONGEST_MESSAGE_ID), max(0, most)))
