"""The public ports of a provider: which are taken, which other programs use, and which will be granted next.

Taking and returning a port costs O(log n) in the size of the range.
"""

from __future__ import annotations

import heapq
from collections.abc import Collection, Iterable

from ..components import PortRange
from ..demands import PortDemand, PortShortage

__all__ = ["PortPool"]


class PortPool:
    """The ports of one range. `taken` ports may lie outside it after the owner has moved the range.

    `in_use` are ports that a program of this machine uses now. A port in use that is not taken cannot be granted.
    """

    def __init__(self, port_range: PortRange, taken: Iterable[int] = (), in_use: Iterable[int] = ()) -> None:
        self.range = port_range
        self.in_use: frozenset[int] = frozenset()
        self._taken: set[int] = set(taken)
        self._taken_inside = sum(port in port_range for port in self._taken)
        # Taken ports stay in the heap until they reach its top. `_queued` prevents a second entry of a port.
        self._heap = list(range(port_range.first, port_range.last + 1))
        self._queued = set(self._heap)
        self._blocked = 0
        self.set_in_use(in_use)

    @property
    def free(self) -> int:
        """The number of ports of the range that could be granted now."""
        return len(self.range) - self._taken_inside - self._blocked

    @property
    def taken(self) -> frozenset[int]:
        """All ports that are taken."""
        return frozenset(self._taken)

    def is_free(self, port: int) -> bool:
        """Whether this port lies in the range, is not taken, and is not used by a program."""
        return port in self.range and port not in self._taken and port not in self.in_use

    def set_in_use(self, ports: Iterable[int]) -> bool:
        """Record which ports programs use now. Returns whether the ports that could be granted have changed."""
        before = {port for port in self.in_use if self._blocks(port)}
        self.in_use = frozenset(port for port in ports if port in self.range)
        after = {port for port in self.in_use if self._blocks(port)}
        self._blocked = len(after)
        return before != after

    def _blocks(self, port: int) -> bool:
        # If a taken port is in use, the program is the job to which it was granted.
        return port in self.in_use and port not in self._taken

    def shortage(self, demand: PortDemand, also_taken: Collection[int] = ()) -> PortShortage | None:
        """Why the demand cannot be met if `also_taken` are reserved too; None if it can be met."""
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
        """The static ports, and the lowest free ports for the dynamic ones. Takes nothing. Call it only without a
        `shortage`.
        """
        spoken_for = {*demand.static, *also_taken}
        dynamic: list[int] = []
        passed: list[int] = []
        while len(dynamic) < demand.dynamic:
            port = heapq.heappop(self._heap)
            if port in self._taken:
                self._queued.discard(port)
                continue
            passed.append(port)
            if port not in spoken_for and port not in self.in_use:
                dynamic.append(port)
        for port in passed:
            heapq.heappush(self._heap, port)
        return (*demand.static, *dynamic)

    def take(self, ports: Iterable[int]) -> None:
        """Take ports. Raises `ValueError` if one is already taken."""
        for port in ports:
            if port in self._taken:
                raise ValueError(f"port {port} is taken twice")
            self._blocked -= self._blocks(port)
            self._taken.add(port)
            self._taken_inside += port in self.range

    def give_back(self, ports: Iterable[int]) -> None:
        """Return ports to the pool. Raises `KeyError` if one is not taken."""
        for port in ports:
            self._taken.remove(port)
            self._blocked += self._blocks(port)
            if port in self.range:
                self._taken_inside -= 1
                if port not in self._queued:
                    heapq.heappush(self._heap, port)
                    self._queued.add(port)
