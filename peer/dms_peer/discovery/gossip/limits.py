"""The limits of gossip. The text below each field is its entry in docs/limits.md."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["GossipLimits"]


@dataclass(frozen=True, slots=True)
class GossipLimits:
    """The rates and times of gossip, for all peers and for each peer. Sizes are in bytes, times in seconds."""

    message_bytes: int = 16 * 1024
    """Data of one message. Ours have at most half of that."""
    rpc_bytes: int = 256 * 1024
    """One RPC with everything in it. Ours have at most half of that."""
    offered_ids: int = 256
    """Message ids that one RPC may offer (IHAVE)."""
    asked_ids: int = 32
    """Message ids that one RPC may request (IWANT). The answer carries as many messages."""
    peer_messages: float = 30.0
    """Messages of one peer that are examined per second."""
    peer_messages_burst: float = 120.0
    """Messages of one peer that are examined at once."""
    messages: float = 200.0
    """Messages of all peers that are examined per second."""
    messages_burst: float = 400.0
    """Messages of all peers that are examined at once."""
    peer_controls: float = 10.0
    """RPCs with control messages of one peer per second."""
    peer_controls_burst: float = 40.0
    """RPCs with control messages of one peer at once."""
    peer_subscriptions: float = 0.5
    """Changes of subscriptions of one peer per second."""
    peer_subscriptions_burst: float = 16.0
    """Changes of subscriptions of one peer at once."""
    peer_streams: int = 2
    """Streams of one peer that are read."""
    penalties: int = 4
    """Bad messages after which a peer is ignored."""
    ignored: float = 600.0
    """How long a peer is ignored after too many bad messages."""
    remembered: int = 1024
    """Peers whose rates and bad messages are remembered."""
    seen: int = 8192
    """Messages whose ids are remembered, so that each is handled once."""
    seen_ttl: float = 300.0
    """How long the id of a message is remembered."""
    validation_timeout: float = 5.0
    """The longest that the validation of one message may take."""
    heartbeat: float = 1.0
    """The time between two heartbeats, which maintain the mesh."""
    enrol_attempts: int = 4
    """Attempts to open a stream to a peer."""
    enrol_pause: float = 0.5
    """The first pause between two attempts; each further one is twice as long."""
    enrolling: int = 16
    """Attempts to open a stream that run at the same time."""
    stream_timeout: float = 10.0
    """The longest that one attempt to open a stream may take."""
    first_pause: float = 0.5
    """The first pause before gossip is restarted after a failure; each further one is twice as long."""
    longest_pause: float = 60.0
    """The longest pause before gossip is restarted."""
    healthy_after: float = 120.0
    """After this time without a failure the pauses begin with the first one again."""

    def __post_init__(self) -> None:
        """Raise ValueError for a limit that would let nothing through."""
        for name in self.__slots__:
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive")
