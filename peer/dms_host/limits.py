"""Every bound of the host, in one place."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["STREAM_WINDOW", "HostLimits", "RelayLimits"]

# Bytes. Yamux fixes the first window of a stream (hashicorp/yamux spec.md, "Flow Control"); ours never grow beyond it.
STREAM_WINDOW = 256 * 1024


@dataclass(frozen=True, slots=True)
class HostLimits:
    """What one host holds for all peers and for each one, and how long it waits. Sizes in bytes, times in seconds."""

    # Connections of all peers, both directions. Of one peer the newest two are kept.
    max_connections: int = 256
    # Inbound connections, so that a host flooded from outside can still dial.
    max_inbound_connections: int = 192
    # Inbound connections from one IPv4 address or one IPv6 /64, so that one machine with many keys does not take all.
    max_inbound_per_address: int = 32
    # Inbound connections from one IPv6 /48, so that one customer of a network, with its 65,536 of these /64, does not.
    max_inbound_per_site: int = 64
    # Of all inbound connections, how many may be shaking hands: strangers that have proved nothing yet. When there are
    # as many, the address with the most gives way.
    max_inbound_handshakes: int = 64
    # A handshake (security and multiplexer) that takes longer is given up.
    handshake_timeout: float = 10.0

    # Streams that a peer may have open to us on its connection. A further one takes the place of a stream that we have
    # ended and the peer has not; where there is none, the new stream is reset before its protocol is negotiated.
    max_inbound_streams: int = 64
    # Streams that we may have open to a peer; a further one fails at once.
    max_outbound_streams: int = 256
    # Agreeing on a stream's protocol, in either direction.
    negotiation_timeout: float = 10.0
    # One line of multistream-select, in bytes.
    max_negotiation_line: int = 1024
    # Lines of one negotiation.
    max_negotiation_lines: int = 64

    # Bytes received on one connection and not read yet, over all its streams.
    max_unread_bytes: int = 4 * 1024 * 1024
    # Frames from one address (or IPv6 /64) that carry nothing, at once: empty data, pings, frames for unknown streams.
    max_empty_frames: int = 2048
    # How many more of them each second allows; a connection that sends more is dropped.
    empty_frames_per_second: float = 100.0
    # Frames of less than 64 bytes from one address, at once; a new stream counts as 20.
    small_frames_burst: int = 20_000
    # How many more each second allows; above that, the connections from that address are read more slowly.
    small_frames_per_second: float = 8000.0

    # A frame that is not through within this time, out or in, ends its connection.
    frame_timeout: float = 20.0
    # A stream whose reader gives no room for more within this time is reset.
    window_timeout: float = 30.0

    # A connection on which nothing has arrived for ping_interval is pinged; ping_timeout later it is dropped.
    ping_interval: float = 15.0
    ping_timeout: float = 10.0

    # Saying goodbye: closing a stream, a connection, the host. Whatever is not done by then is cut.
    close_timeout: float = 2.0

    def __post_init__(self) -> None:
        """Raise ValueError for a bound that would let nothing through."""
        for name in self.__slots__:
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive")
        if self.max_inbound_connections > self.max_connections:
            raise ValueError("max_inbound_connections must not exceed max_connections")
        if self.max_unread_bytes < STREAM_WINDOW:
            raise ValueError(f"max_unread_bytes must hold one stream's window, {STREAM_WINDOW} bytes")


@dataclass(frozen=True, slots=True)
class RelayLimits:
    """What one host carries for others when it is a relay. Sizes in bytes, times in seconds."""

    # Peers that are reached through this host, in all and from one IPv4 address or IPv6 /64.
    max_reservations: int = 128
    max_reservations_per_address: int = 8
    # A reservation that is not renewed ends after this time, or with the connection of the peer that made it.
    reservation_ttl: float = 3600.0
    # Circuits at the same time, in all, with one peer at either end, and from one IPv4 address or IPv6 /64.
    max_circuits: int = 128
    max_circuits_per_peer: int = 8
    max_circuits_per_address: int = 32
    # A circuit is cut after this time, or when one direction has carried this much.
    circuit_duration: float = 600.0
    circuit_bytes: int = 16 * 1024 * 1024

    def __post_init__(self) -> None:
        """Raise ValueError for a bound that would let nothing through."""
        for name in self.__slots__:
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive")
