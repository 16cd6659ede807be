"""Scores of peers in gossip: how many messages of each are examined, and which peers are ignored for a while."""

from __future__ import annotations

from dataclasses import dataclass

import trio

from dms_protocols.token_bucket import TokenBucket
from dms_resources.bounded_dict import BoundedDict

from .limits import GossipLimits

__all__ = ["PeerScore", "PeerScores"]


@dataclass(slots=True)
class PeerScore:
    """The rates of one peer, and its offences."""

    messages: TokenBucket
    controls: TokenBucket
    subscriptions: TokenBucket
    penalties: int = 0
    ignored_until: float = 0.0


class PeerScores:
    """The scores of at most `limits.remembered` peers. The peer that was silent for longest is forgotten first."""

    def __init__(self, limits: GossipLimits) -> None:
        self._limits = limits
        self._peers: BoundedDict[bytes, PeerScore] = BoundedDict(limits.remembered)
        self.messages = TokenBucket(limits.messages, limits.messages_burst, trio.current_time())
        """The rate of all peers together."""
        self.dropped = 0
        """Messages that exceeded a limit."""

    def __len__(self) -> int:
        return len(self._peers)

    def of(self, peer: bytes) -> PeerScore:
        """The score of the peer with this id (its bytes)."""
        known = self._peers.recent(peer)
        if known is None:
            limits, now = self._limits, trio.current_time()
            known = self._peers[peer] = PeerScore(
                TokenBucket(limits.peer_messages, limits.peer_messages_burst, now),
                TokenBucket(limits.peer_controls, limits.peer_controls_burst, now),
                TokenBucket(limits.peer_subscriptions, limits.peer_subscriptions_burst, now),
            )
        return known

    def admits_message(self, peer: bytes) -> bool:
        """Whether one more message of this peer is examined."""
        now = trio.current_time()
        admitted = self.of(peer).messages.take(now) and self.messages.take(now)
        self.dropped += not admitted
        return admitted

    def penalty(self, peer: bytes) -> bool:
        """Note that a peer sent what no honest peer sends. Returns whether it is ignored from now on."""
        scores = self.of(peer)
        scores.penalties += 1
        if scores.penalties < self._limits.penalties:
            return False
        scores.penalties = 0
        scores.ignored_until = trio.current_time() + self._limits.ignored
        return True

    def ignores(self, peer: bytes) -> bool:
        """Whether this peer is ignored now."""
        known = self._peers.get(peer)
        return known is not None and trio.current_time() < known.ignored_until
