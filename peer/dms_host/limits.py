"""The limits of a host and of a relay. The text below each field is its entry in docs/limits.md."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["STREAM_WINDOW", "HostLimits", "RelayLimits"]

# Bytes. Yamux fixes the initial window of a stream (hashicorp/yamux spec.md, "Flow Control").
STREAM_WINDOW = 256 * 1024


@dataclass(frozen=True, slots=True)
class HostLimits:
    """What a host grants to all peers and to each peer, and how long it waits. Sizes are in bytes, times in seconds."""

    max_connections: int = 256
    """Connections of all peers, in both directions. Of each peer, the newest two are kept."""
    max_inbound_connections: int = 192
    """Inbound connections. They are fewer than all connections, so that a flooded host can still dial."""
    max_inbound_per_address: int = 32
    """Inbound connections from one IPv4 address or IPv6 /64, because one machine may have many keys."""
    max_inbound_per_site: int = 64
    """Inbound connections from one IPv6 /48, because one customer of a network may have 65,536 networks of /64."""
    max_inbound_handshakes: int = 64
    """Inbound connections that have not finished their handshake. At the limit, the address with the most loses one."""
    handshake_timeout: float = 10.0
    """The longest time for a handshake (security and multiplexer)."""
    max_inbound_streams: int = 64
    """Streams that a peer may have open to us on its connection. One more replaces a stream that we have ended and the
    peer has not. If there is no such stream, the new one is reset before its protocol is negotiated.
    """
    max_outbound_streams: int = 256
    """Streams that we may have open to a peer. Opening one more fails at once."""
    negotiation_timeout: float = 10.0
    """The longest time for negotiating a stream's protocol, in either direction."""
    max_negotiation_line: int = 1024
    """The longest line of multistream-select, in bytes."""
    max_negotiation_lines: int = 64
    """The most lines of one negotiation."""
    max_unread_bytes: int = 4 * 1024 * 1024
    """Received bytes that were not read yet, on all streams of one connection. The windows of its streams grow, while
    they are read as fast as data arrives, by half of this together.
    """
    max_empty_frames: int = 2048
    """Frames without content (empty data, pings, frames for unknown streams) that one IPv4 address or IPv6 /64 may send
    at once."""
    empty_frames_per_second: float = 100.0
    """Frames without content that one address may send each second; a connection that sends more is dropped."""
    small_frames_burst: int = 20_000
    """Frames of less than 64 bytes that one address may send at once; a new stream counts as 20."""
    small_frames_per_second: float = 8000.0
    """Frames of less than 64 bytes that one address may send each second. Above that, its connections are read more
    slowly.
    """
    frame_timeout: float = 20.0
    """The longest time for sending or receiving one frame. Then its connection is dropped."""
    window_timeout: float = 30.0
    """The longest time that a stream waits for its reader to grant more window. Then it is reset."""
    ping_interval: float = 15.0
    """A connection on which nothing has arrived for this time is pinged."""
    ping_timeout: float = 10.0
    """A connection on which nothing has arrived for this time after a ping is dropped."""
    close_timeout: float = 2.0
    """The longest time for closing a stream, a connection or the host in an orderly way. Then it is cut off."""

    address_interval: float = 5.0
    """Time between two comparisons of the addresses that are announced with those that the machine has."""

    def __post_init__(self) -> None:
        """Raise ValueError for a limit that would let nothing through."""
        for name in self.__slots__:
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive")
        if self.max_inbound_connections > self.max_connections:
            raise ValueError("max_inbound_connections must not exceed max_connections")
        if self.max_unread_bytes < STREAM_WINDOW:
            raise ValueError(f"max_unread_bytes must hold one stream's window, {STREAM_WINDOW} bytes")


@dataclass(frozen=True, slots=True)
class RelayLimits:
    """What a relay carries for other peers. Sizes are in bytes, times in seconds."""

    max_reservations: int = 128
    """Peers that can be reached through this relay."""
    max_reservations_per_address: int = 8
    """Peers from one IPv4 address or IPv6 /64 that can be reached through this relay."""
    reservation_ttl: float = 3600.0
    """A reservation ends if it is not renewed for this time. It also ends with the connection of its peer."""
    max_circuits: int = 128
    """Circuits that are open at the same time."""
    max_circuits_per_peer: int = 8
    """Circuits that are open at the same time with one peer at either end."""
    max_circuits_per_address: int = 32
    """Circuits that are open at the same time from one IPv4 address or IPv6 /64."""
    circuit_duration: float = 600.0
    """The longest time that a circuit may last. Then it is cut off."""
    circuit_bytes: int = 16 * 1024 * 1024
    """Bytes that a circuit may carry in each direction. Then it is cut off."""

    def __post_init__(self) -> None:
        """Raise ValueError for a limit that would let nothing through."""
        for name in self.__slots__:
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive")
