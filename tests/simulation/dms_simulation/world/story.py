"""The events of one world, and its violated invariants."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import trio

__all__ = ["BrokenInvariantError", "Story"]


class BrokenInvariantError(AssertionError):
    """An invariant was violated."""


@dataclass
class Story:
    """The events of the world of one seed, in order, with the virtual time of each. `counts` sums them up.

    A violated invariant ends the world at once. `broken` is the first one.
    """

    seed: int
    events: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    broken: str = ""
    world: trio.CancelScope = field(default_factory=trio.CancelScope)

    def say(self, what: str, /, **details: object) -> None:
        """Note an event."""
        self.counts[what] += 1
        described = " ".join(f"{key}={value}" for key, value in details.items())
        self.events.append(f"{trio.current_time():9.4f} {what} {described}".rstrip())

    def fail(self, what: str) -> None:
        """Report a violated invariant. Never raises, because the caller may be code that answers whatever is raised."""
        self.broken = self.broken or what
        self.world.cancel()
