"""Gossipsub does not note its own prunes, and grafts the pruned peer again at once."""

from types import SimpleNamespace

from libp2p.peer.id import ID
from libp2p.pubsub.gossipsub import PROTOCOL_ID, GossipSub

router = GossipSub(protocols=[PROTOCOL_ID], degree=1, degree_low=1, degree_high=1)
peers = {ID(bytes([number]) * 34) for number in range(2)}
router.pubsub = SimpleNamespace(peer_topics={"topic": set(peers)}, peers=dict.fromkeys(peers))
router.peer_protocol = dict.fromkeys(peers, PROTOCOL_ID)
router.mesh = {"topic": set(peers)}
_, pruned = router.mesh_heartbeat()
(peer,) = pruned
print("a back-off is noted for the pruned peer:", router._check_back_off(peer, "topic"))
router.mesh["topic"].clear()
router.degree = 2
grafted, _ = router.mesh_heartbeat()
print("the next heartbeat grafts it again:", peer in grafted)
