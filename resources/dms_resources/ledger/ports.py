"""The public ports of a provider: which are taken, and which would be given next.

Taking and giving back cost O(log n) of the ports concerned, whatever the size of the range.
"""

from __future__ import annotations

import heapq
from collections.abc import Collection, Iterable

from ..components import PortRange
from ..demands import PortDemand, PortShortage

__all__ = ["PortPool"]


class PortPool:
    """Ports of one range; `taken` ports may lie outside it after the owner moved the range."""

    def __init__(self, port_range: PortRange, taken: Iterable[int] = ()) -> None:
        self.range = port_range
        self._taken: set[int] = set(taken)
        self._taken_inside = sum(port in port_range for port in self._taken)
        # Taken ports stay in the heap until they come up; `_queued` keeps a port from standing in it twice.
        self._heap = list(range(port_range.first, port_range.last + 1))
        self._queued = set(self._heap)

    @property
    def free(self) -> int:
        """How many ports of the range are free."""
        return len(self.range) - self._taken_inside

    @property
    def taken(self) -> frozenset[int]:
        """All ports that are taken."""
        return frozenset(self._taken)

    def is_free(self, port: int) -> bool:
        """Whether this port lies in the range and is not taken."""
        return port in self.range and port not in self._taken

    def shortage(self, demand: PortDemand, also_taken: Collection[int] = ()) -> PortShortage | None:
        """Why the demand cannot be met while `also_taken` are spoken for, or None when it can."""
        if not demand.static and not demand.dynamic:
            return None
        distinct = sorted(set(demand.static))
        available = tuple(port for port in distinct if self.is_free(port) and port not in also_taken)
        unused = self.free - sum(self.is_free(port) for port in also_taken)
        if len(available) == len(demand.static) and len(available) + demand.dynamic <= unused:
            return None
        return PortShortage(
            asked=demand,
            free=PortDemand(static=available, dynamic=min(demand.dynamic, unused - len(available))),
            total=PortDemand(dynamic=len(self.range)),
        )

    def choose(self, demand: PortDemand, also_taken: Collection[int] = ()) -> tuple[int, ...]:
        """The static ports and the lowest free ones for the rest; nothing is taken yet. Asked after `shortage`."""
        spoken_for = {*demand.static, *also_taken}
        dynamic: list[int] = []
        passed: list[int] = []
        while len(dynamic) < demand.dynamic:
            port = heapq.heappop(self._heap)
            if port in self._taken:
                self._queued.discard(port)
                continue
            passed.append(port)
            if port not in spoken_for:
                dynamic.append(port)
        for port in passed:
            heapq.heappush(self._heap, port)
        return (*demand.static, *dynamic)

    def take(self, ports: Iterable[int]) -> None:
        """Takes ports. Raises `ValueError` when one is taken already: nothing is clamped."""
        for port in ports:
            if port in self._taken:
                raise ValueError(f"port {port} is taken twice")
            self._taken.add(port)
            self._taken_inside += port in self.range

    def give_back(self, ports: Iterable[int]) -> None:
        """Gives ports back. Raises `KeyError` when one is not taken."""
        for port in ports:
            self._taken.remove(port)
            if port in self.range:
                self._taken_inside -= 1
                if port not in self._queued:
                    heapq.heappush(self._heap, port)
                    self._queued.add(port)
