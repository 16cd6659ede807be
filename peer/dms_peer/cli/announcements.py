"""The messages of `dms-peer run` when the peer is ready, and when it has stopped."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .. import __version__
from .output import print_json, say

if TYPE_CHECKING:
    from ..node import Ready

__all__ = ["announce", "announce_json"]


def announce(ready: Ready | None) -> None:
    """Print for a person that the peer is ready, or has stopped (None)."""
    if ready is None:
        say("stopped")
        return
    say(f"peer {ready.peer_id} listens on {' '.join(ready.addrs)}")
    if ready.simulated:
        say("its machine is simulated")
    if ready.metrics:
        say(f"metrics at {ready.metrics}")
    if not ready.offers:
        say("it offers nothing yet: use `dms-peer onboard`")


def announce_json(ready: Ready | None) -> None:
    """Print the same for a program: one JSON object per line."""
    if ready is None:
        print_json({"event": "stopped"})
        return
    event: dict[str, Any] = {
        "event": "ready",
        "version": __version__,
        "peer_id": ready.peer_id,
        "addrs": list(ready.addrs),
        "simulated": ready.simulated,
        "onboarded": ready.offers,
    }
    if ready.metrics:
        event["metrics"] = ready.metrics
    print_json(event)
