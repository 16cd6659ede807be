"""Every bound of gossip, in one place."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["GossipLimits"]


@dataclass(frozen=True, slots=True)
class GossipLimits:
    """What gossip holds for all peers and for each one, and how long it waits. Sizes in bytes, times in seconds."""

    # Data of one message, and one RPC with everything that is in it. What we send is cut to half of that.
    message_bytes: int = 16 * 1024
    rpc_bytes: int = 256 * 1024
    # Message ids of one RPC that are offered or asked for: an answer carries as many messages.
    offered_ids: int = 256
    asked_ids: int = 32

    # Messages per second that are looked at, and at once: of one peer and of all.
    peer_messages: float = 30.0
    peer_messages_burst: float = 120.0
    messages: float = 200.0
    messages_burst: float = 400.0
    # RPCs with control messages, and changes of subscriptions, of one peer.
    peer_controls: float = 10.0
    peer_controls_burst: float = 40.0
    peer_subscriptions: float = 0.5
    peer_subscriptions_burst: float = 16.0

    # Streams of one peer that are read.
    peer_streams: int = 2
    # Bad messages of a peer after which it is not listened to for so long.
    penalties: int = 4
    ignored: float = 600.0
    # Peers whose conduct is remembered.
    remembered: int = 1024
    # Messages that are known again, and for how long; how long one may be looked at.
    seen: int = 8192
    seen_ttl: float = 300.0
    validation_timeout: float = 5.0

    # Upkeep of the mesh.
    heartbeat: float = 1.0
    # Attempts to open a stream to a peer, with a pause that doubles in between, and how many run at once.
    enrol_attempts: int = 4
    enrol_pause: float = 0.5
    enrolling: int = 16
    stream_timeout: float = 10.0
    # The pause before gossip is started again after a failure; doubles up to the longest, and begins anew after a
    # while without one.
    first_pause: float = 0.5
    longest_pause: float = 60.0
    healthy_after: float = 120.0

    def __post_init__(self) -> None:
        """Raise ValueError for a bound that would let nothing through."""
        for name in self.__slots__:
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive")
