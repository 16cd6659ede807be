"""A peer that is in no mesh still hears others and is heard. Around one peer that many know, most are in no mesh."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import pytest
from libp2p.peer.id import ID
from libp2p.pubsub.gossipsub import GossipSub
from libp2p.pubsub.pb import rpc_pb2

from dms_peer.discovery.gossip.limits import GossipLimits
from dms_peer.discovery.gossip.router import PROTOCOLS, new_router

TOPIC = "/test/topic/1.0.0"
ME = ID(b"me")
# More than a mesh holds.
OTHERS = [ID(f"peer-{number}".encode()) for number in range(20)]
# Seconds of a back-off.
BACK_OFF = 60


def put_among(others: list[ID]) -> Any:
    """A router that has joined the topic, to which these peers are subscribed."""
    router: Any = new_router(GossipLimits())
    router.pubsub = SimpleNamespace(my_id=ME, peer_topics={TOPIC: set(others)}, peers=dict.fromkeys(others))
    for peer_id in others:
        router.add_peer(peer_id, PROTOCOLS[0])
    router.mesh[TOPIC] = set()
    return router


def prune(router: Any) -> set[ID]:
    """The mesh is too large; returns the peers that a heartbeat prunes."""
    router.mesh[TOPIC] = set(OTHERS)
    _, prunes = router.mesh_heartbeat()
    assert len(prunes) == len(OTHERS) - 6
    return set(prunes)


async def test_around_one_peer_that_all_know_everybody_hears_everybody(gossipers: Any, eventually: Any) -> None:
    async with gossipers(18, star=True) as peers:
        # The first host cannot have all of them in its mesh, so some are in no mesh.
        await eventually(lambda: sum(not peer.gossip._pubsub.router.mesh[TOPIC] for peer in peers) >= 5, 30)
        for peer in peers:
            await peer.gossip.publish(TOPIC, peer.peer_id.encode())
        everything = {peer.peer_id.encode() for peer in peers}
        await eventually(
            lambda: all(set(peer.heard) == everything - {peer.peer_id.encode()} for peer in peers), BACK_OFF / 3
        )


def test_what_is_our_own_goes_to_all_that_hear_it() -> None:
    router = put_among(OTHERS)
    router.mesh[TOPIC] = set(OTHERS[:6])
    assert set(router._get_peers_to_send([TOPIC], ME, ME)) == set(OTHERS)
    passed_on = router._get_peers_to_send([TOPIC], OTHERS[0], OTHERS[7])
    assert set(passed_on) == set(OTHERS[1:6])


def test_ids_are_offered_to_those_outside_the_mesh_that_may_not_be_grafted() -> None:
    router = put_among(OTHERS)
    pruned = prune(router)
    router.mcache.put(rpc_pb2.Message(from_id=b"other", seqno=b"1", topicIDs=[TOPIC]))
    assert router.gossip_heartbeat() == {peer_id: {TOPIC: [b"other1"]} for peer_id in pruned}


def test_ids_are_offered_to_a_part_of_a_crowd() -> None:
    router = put_among([ID(f"peer-{number}".encode()) for number in range(400)])
    router.mcache.put(rpc_pb2.Message(from_id=b"other", seqno=b"1", topicIDs=[TOPIC]))
    assert len(router.gossip_heartbeat()) == 100


def test_who_was_pruned_is_left_alone_until_its_time_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    now = float(int(time.time()))
    monkeypatch.setattr(time, "time", lambda: now)
    router = put_among(OTHERS)
    pruned = prune(router)
    router.mesh[TOPIC] = set()
    grafted = set(router.mesh_heartbeat()[0])
    assert grafted
    assert not grafted & pruned
    # The other side may have begun to count a second later.
    router.pubsub.peer_topics[TOPIC] = pruned
    now += BACK_OFF + 1
    router.mesh[TOPIC] = set()
    assert not router.mesh_heartbeat()[0]
    now += 1.5
    assert len(router.mesh_heartbeat()[0]) == 6


def test_the_library_has_what_is_replaced() -> None:
    """The names of the library that are overridden. A new release may have moved them."""
    for name in (
        "mesh_heartbeat", "gossip_heartbeat", "_get_peers_to_send", "_get_in_topic_gossipsub_peers_from_minus",
        "_add_back_off", "select_from_minus",
    ):  # fmt: skip
        assert callable(getattr(GossipSub, name)), name
