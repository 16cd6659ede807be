"""The instant at which something is decided."""

from __future__ import annotations

from collections.abc import Callable

from msgspec import Struct

from ..demands import Demand, Shortage
from .windows import ALWAYS_OPEN, Opening

__all__ = ["Moment"]


class Moment(Struct, frozen=True, kw_only=True):
    """The instant of a decision: both clocks in seconds, and the state of the owner's windows.

    `physical` returns where a demand exceeds what is physically free; None if nothing watches the machine.
    """

    wall: float
    steady: float
    opening: Opening = ALWAYS_OPEN
    physical: Callable[[Demand], tuple[Shortage, ...]] | None = None
