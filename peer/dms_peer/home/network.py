"""The peers that may connect, and the relays of this peer."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["NetworkSettings"]


@dataclass(frozen=True, slots=True)
class NetworkSettings:
    """The peers that may connect: lists of peer ids and address ranges. An empty allow list admits everybody.

    With `relay` the peer carries connections of peers that cannot be dialled. `reserve_at` are the addresses of relays
    through which this peer itself can be reached.
    """

    allow_peers: tuple[str, ...] = ()
    deny_peers: tuple[str, ...] = ()
    allow_addresses: tuple[str, ...] = ()
    deny_addresses: tuple[str, ...] = ()
    relay: bool = False
    reserve_at: tuple[str, ...] = ()
