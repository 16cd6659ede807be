"""How peers behave in gossip: how much of each is looked at, and whom nobody listens to for a while."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import trio

from .limits import GossipLimits

__all__ = ["Bucket", "PeerScore", "PeerScores"]


class Bucket:
    """A token bucket: `per_second` in the long run, `burst` at once. Time is trio's."""

    def __init__(self, per_second: float, burst: float) -> None:
        self._per_second = per_second
        self._burst = burst
        self._tokens = burst
        self._updated = trio.current_time()

    def take(self) -> bool:
        """Whether there is one more, which is then taken."""
        now = trio.current_time()
        self._tokens = min(self._burst, self._tokens + (now - self._updated) * self._per_second)
        self._updated = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True


@dataclass(slots=True)
class PeerScore:
    """What one peer may send, and what it did wrong."""

    messages: Bucket
    controls: Bucket
    subscriptions: Bucket
    penalties: int = 0
    ignored_until: float = 0.0


class PeerScores:
    """The conduct of `limits.remembered` peers; who was silent for longest is forgotten first."""

    def __init__(self, limits: GossipLimits) -> None:
        self._limits = limits
        self._peers: OrderedDict[bytes, PeerScore] = OrderedDict()
        self.messages = Bucket(limits.messages, limits.messages_burst)
        """What all peers together may send."""
        self.dropped = 0
        """Messages that were above a bound."""

    def __len__(self) -> int:
        return len(self._peers)

    def of(self, peer: bytes) -> PeerScore:
        """The conduct of the peer with this id (its bytes)."""
        known = self._peers.get(peer)
        if known is None:
            limits = self._limits
            known = self._peers[peer] = PeerScore(
                Bucket(limits.peer_messages, limits.peer_messages_burst),
                Bucket(limits.peer_controls, limits.peer_controls_burst),
                Bucket(limits.peer_subscriptions, limits.peer_subscriptions_burst),
            )
            if len(self._peers) > limits.remembered:
                self._peers.popitem(last=False)
        self._peers.move_to_end(peer)
        return known

    def admits_message(self, peer: bytes) -> bool:
        """Whether one more message of this peer is looked at."""
        admitted = self.of(peer).messages.take() and self.messages.take()
        self.dropped += not admitted
        return admitted

    def penalty(self, peer: bytes) -> bool:
        """Note that a peer sent what no honest one does; whether it is shunned from now on."""
        scores = self.of(peer)
        scores.penalties += 1
        if scores.penalties < self._limits.penalties:
            return False
        scores.penalties = 0
        scores.ignored_until = trio.current_time() + self._limits.ignored
        return True

    def ignores(self, peer: bytes) -> bool:
        """Whether nobody listens to this peer now."""
        known = self._peers.get(peer)
        return known is not None and trio.current_time() < known.ignored_until
