"""The cheapest of the largest assignments of nodes to peers that have several places each.

This is a minimum-cost flow, computed by successive shortest paths: one node after the other is placed on the cheapest
path, along which other nodes move to other peers. Prices of nodes and peers keep the cost of each step of such a path
at zero or above, so that Dijkstra's algorithm finds the path, usually after a few of the peers. Costs are integers, so
that prices are exact.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Generator, Mapping, Sequence

__all__ = ["cheapest_places"]


def cheapest_places(
    costs: Sequence[Mapping[int, int]], places: Sequence[int], crowding: Sequence[int]
) -> Generator[None, None, list[int | None]]:
    """A peer for each node, None for nodes without a place. As few nodes as possible have none, at the lowest total
    cost.

    Yields after each node: with 64 nodes and as many peers each node takes up to some milliseconds.

    `costs[node][peer]` is the cost of this node there, `places[peer]` the largest number of nodes at that peer, and
    `crowding[n]` the additional cost of any peer's nth node (from 0), which must not fall as n grows.
    """
    placing = _Placing(costs, places, crowding)
    for node in range(len(costs)):
        placing.place(node)
        yield
    return placing.at


class _Placing:
    def __init__(self, costs: Sequence[Mapping[int, int]], places: Sequence[int], crowding: Sequence[int]) -> None:
        # Prices begin at zero, which requires costs of at least zero. The same amount is added to the cost of every
        # placed node.
        lowest = min((cost for own in costs for cost in own.values()), default=0)
        self._costs = [{peer: cost - lowest for peer, cost in own.items()} for own in costs]
        self._places = places
        self._crowding = crowding
        highest = max((cost for own in self._costs for cost in own.values()), default=0) + max(crowding, default=0)
        # More than all other costs together, so that no node is left without a place because of the cost.
        self._nowhere = 1 + len(costs) * highest
        self._node_prices = [0] * len(costs)
        self._peer_prices = [0] * len(places)
        self._guests: list[dict[int, None]] = [{} for _ in places]
        self.at: list[int | None] = [None] * len(costs)

    def place(self, node: int) -> None:
        """Place one more node, and move others if that is cheapest."""
        came_from: dict[int, int] = {}
        distances: dict[int, int] = {}
        queue: list[tuple[int, int]] = []
        nodes, peers = {node: 0}, dict[int, int]()
        # The least cost of placing the node, where that path ends, and the node that takes that place.
        least, end, last = math.inf, None, node
        reached: list[tuple[int, int]] = [(node, 0)]
        while True:
            for guest, distance in reached:
                distance -= self._node_prices[guest]
                if distance + self._nowhere < least:
                    least, end, last = distance + self._nowhere, None, guest
                for peer, cost in self._costs[guest].items():
                    further = distance + cost + self._peer_prices[peer]
                    if further >= distances.get(peer, least) or further >= least:
                        continue
                    distances[peer], came_from[peer] = further, guest
                    heapq.heappush(queue, (further, peer))
                    count = len(self._guests[peer])
                    if count < self._places[peer]:
                        whole = further + self._crowding[count] - self._peer_prices[peer]
                        if whole < least:
                            least, end, last = whole, peer, guest
            while queue and queue[0][1] in peers:
                heapq.heappop(queue)
            if not queue or queue[0][0] >= least:
                break
            distance, peer = heapq.heappop(queue)
            peers[peer] = distance
            reached = [(guest, distance) for guest in self._guests[peer]]
            nodes.update(reached)
        assert isinstance(least, int)
        self._raise_prices(least, nodes, peers)
        self._move(node, end, last, came_from)

    def _raise_prices(self, least: int, nodes: Mapping[int, int], peers: Mapping[int, int]) -> None:
        for node, distance in nodes.items():
            self._node_prices[node] += least - distance
        for peer, distance in peers.items():
            self._peer_prices[peer] += least - distance

    def _move(self, first: int, end: int | None, node: int, came_from: Mapping[int, int]) -> None:
        while True:
            before, self.at[node] = self.at[node], end
            if end is not None:
                self._guests[end][node] = None
            if before is None or node == first:
                return
            del self._guests[before][node]
            end, node = before, came_from[before]
