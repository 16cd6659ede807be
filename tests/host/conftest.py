"""Hosts on loopback, connections in memory, and an attacker that speaks raw frames."""

from __future__ import annotations

from libp2p_hosts import (
    client,
    eventually,
    foreign,
    frame_attacker,
    noise_attacker,
    server,
    still_serves,
    stream_pair,
    yamux_attacker,
    yamux_pair,
)

__all__ = [
    "client",
    "eventually",
    "foreign",
    "frame_attacker",
    "noise_attacker",
    "server",
    "still_serves",
    "stream_pair",
    "yamux_attacker",
    "yamux_pair",
]
