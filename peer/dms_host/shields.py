"""Work that a cancellation must not cut, within a time of its own."""

from __future__ import annotations

import trio

__all__ = ["shielded"]


def shielded(seconds: float) -> trio.CancelScope:
    """A scope whose inside is not cancelled from outside, but from within once `seconds` have passed."""
    # Not trio.move_on_after(shield=True): the type stubs that come with libp2p do not know it.
    return trio.CancelScope(deadline=trio.current_time() + seconds, shield=True)
