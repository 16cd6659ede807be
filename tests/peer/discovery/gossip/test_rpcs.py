"""The limits of an RPC: entries and ids are counted before they are examined."""

from __future__ import annotations

import pytest
from libp2p.pubsub.pb import rpc_pb2

from dms_peer.discovery.gossip.limits import GossipLimits
from dms_peer.discovery.gossip.rpcs import GossipViolationError, read_rpc

TOPIC = "topic"


def _rpc(kind: str, count: int) -> bytes:
    rpc = rpc_pb2.RPC()
    entries = getattr(rpc if kind in ("subscriptions", "publish") else rpc.control, kind)
    for _ in range(count):
        entries.add()
    return rpc.SerializeToString()


@pytest.mark.parametrize("kind", ["subscriptions", "publish", "ihave", "iwant", "graft", "prune"])
def test_an_rpc_of_thousands_of_empty_entries_is_a_violation(kind: str) -> None:
    read_rpc(_rpc(kind, 1024), [TOPIC], GossipLimits())
    with pytest.raises(GossipViolationError, match="1025 entries"):
        read_rpc(_rpc(kind, 1025), [TOPIC], GossipLimits())


def test_of_many_ids_the_first_are_looked_at() -> None:
    rpc = rpc_pb2.RPC()
    rpc.control.iwant.add(messageIDs=[b""] * 100_000 + [b"an id"])
    assert not read_rpc(rpc.SerializeToString(), [TOPIC], GossipLimits()).HasField("control")
    rpc.control.iwant.add(messageIDs=[b"an id"])
    del rpc.control.iwant[0]
    assert list(read_rpc(rpc.SerializeToString(), [TOPIC], GossipLimits()).control.iwant[0].messageIDs) == [b"an id"]
