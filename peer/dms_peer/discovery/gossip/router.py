"""The library's gossipsub router, changed so that a peer in no mesh still hears others and is heard.

What breaks in py-libp2p's `GossipSub`, if many peers know one peer and little else, as at every bootstrap peer:
- Ids of messages are not offered to peers that have to stay out of the mesh, and own messages are sent only to the
  mesh.
  A peer that was pruned by all peers that it knows cannot be heard for a minute, and one that was refused hears
  nothing.
- A peer that prunes in a heartbeat does not note it, so that it grafts the same peer again at once. The other peer
  takes
  that for a flood and refuses for a minute, and again at each attempt.
- The two sides count the back-off in whole seconds, from different moments. The side whose back-off ends first grafts
  too early.
Measure: this class. Own messages go to all subscribers of the topic ("flood publishing"), ids go to those outside the
mesh in any case ("lazy push"), and a prune counts on both sides, with some slack before a peer is grafted again.
Upstream: no upstream report found (November 2026).
Source: https://github.com/libp2p/specs/blob/master/pubsub/gossipsub/gossipsub-v1.1.md.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable
from typing import Final

from libp2p.custom_types import TProtocol
from libp2p.peer.id import ID
from libp2p.pubsub.gossipsub import GossipSub

from .limits import GossipLimits

__all__ = ["PROTOCOLS", "new_router"]

PROTOCOLS: Final = (TProtocol("/meshsub/1.1.0"), TProtocol("/meshsub/1.0.0"))

_DEGREE, _DEGREE_LOW, _DEGREE_HIGH = 6, 5, 12
# Messages that wait until their peer has announced its subscriptions.
_PENDING: Final = 4
# Peers outside the mesh that are offered ids in a heartbeat: at least this number, and this part of them. Each id is
# offered in three heartbeats.
_LAZY, _LAZY_PART = 24, 0.25
# Seconds for which a peer is not grafted after its back-off is over.
_SLACK: Final = 2.0


class _Router(GossipSub):
    def mesh_heartbeat(self) -> tuple[defaultdict[ID, list[str]], defaultdict[ID, list[str]]]:
        """Like the original, but a pruned peer is not grafted until its back-off is over."""
        grafts, prunes = super().mesh_heartbeat()
        for peer_id, topics in prunes.items():
            for topic in topics:
                self._add_back_off(peer_id, topic, False)
        return grafts, prunes

    def gossip_heartbeat(self) -> defaultdict[ID, dict[str, list[bytes]]]:
        """Offer message ids to peers."""
        offers: defaultdict[ID, dict[str, list[bytes]]] = defaultdict(dict)
        for topic, mesh in self.mesh.items():
            if ids := self.mcache.window(topic):
                outside = self._hearing(topic) - mesh
                for peer_id in self.select_from_minus(max(_LAZY, int(_LAZY_PART * len(outside))), outside, ()):
                    offers[peer_id][topic] = ids
        return offers

    def _get_peers_to_send(
        self, topic_ids: Iterable[str], msg_forwarder: ID, origin: ID, msg_id: bytes | None = None
    ) -> Iterable[ID]:
        """Like the original, but our own messages go to all subscribers."""
        topics = list(topic_ids)
        if self.pubsub is None or origin != self.pubsub.my_id:
            return super()._get_peers_to_send(topics, msg_forwarder, origin, msg_id)
        return set().union(*map(self._hearing, topics))

    def _get_in_topic_gossipsub_peers_from_minus(
        self, topic: str, num_to_select: int, minus: Iterable[ID], backoff_check: bool = False
    ) -> list[ID]:
        """Like the original, but with some slack after a back-off."""
        left_alone = set(minus)
        if backoff_check:
            over = time.time() - _SLACK
            left_alone.update(peer for peer, until in self.back_off.get(topic, {}).items() if until > over)
        return super()._get_in_topic_gossipsub_peers_from_minus(topic, num_to_select, left_alone)

    def _hearing(self, topic: str) -> set[ID]:
        """The subscribers of a topic that we can write to."""
        return set() if self.pubsub is None else self.pubsub.peer_topics.get(topic, set()) & self.peer_protocol.keys()


def new_router(limits: GossipLimits) -> GossipSub:
    """A router without the library's scoring, which any peer can spoil for another."""
    router = _Router(
        list(PROTOCOLS),
        _DEGREE,
        _DEGREE_LOW,
        _DEGREE_HIGH,
        heartbeat_interval=limits.heartbeat,  # type: ignore[arg-type]  # any number of seconds will do
        do_px=False,
        adaptive_gossip_enabled=False,
        spam_protection_enabled=False,
        eclipse_protection_enabled=False,
        max_pending_messages_per_peer=_PENDING,
    )
    router.scorer = None
    return router
