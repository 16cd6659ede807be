"""For each dialled peer, the address that worked, and when it may be dialled again."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import trio

from dms_host import PeerAddress, parse_peer_address
from dms_host.errors import AddressError, DialError
from dms_resources.bounded_dict import BoundedDict

from .limits import ConnectionLimits

__all__ = ["Routes"]


@dataclass(slots=True)
class _Route:
    reached_at: str | None = None
    failures: int = 0
    tried: frozenset[str] = frozenset()
    retry_time: float = 0.0
    failure: DialError | None = None


class Routes:
    """A bounded table by peer id. The peers that were not queried for longest are dropped."""

    def __init__(self, limits: ConnectionLimits, chance: random.Random) -> None:
        self._limits = limits
        self._chance = chance
        self._routes: BoundedDict[str, _Route] = BoundedDict(limits.peers)

    def __len__(self) -> int:
        return len(self._routes)

    @property
    def backing_off(self) -> int:
        """The number of peers in their back-off."""
        now = trio.current_time()
        return sum(route.retry_time > now for route in self._routes.values())

    def order(self, peer_id: str, addresses: Sequence[str]) -> list[PeerAddress]:
        """The addresses to try: the last that worked, direct addresses, then relayed ones.

        Raises DialError: `no_address`, or `backing_off` unless one of `addresses` is new.
        """
        route = self._routes.get(peer_id, _Route())
        known = [route.reached_at] if route.reached_at is not None else []
        targets = list(_readable(peer_id, [*known, *addresses]).values())
        if not targets:
            raise DialError(
                f"no address of {peer_id} is known", code="no_address", address=peer_id, hint="give one, or look for it"
            )
        new = [target for target in targets if target.text not in route.tried]
        wait = route.retry_time - trio.current_time()
        if wait > 0 and not new:
            raise self._backing_off(peer_id, route, wait)
        if route.failures:
            # Addresses that failed come after those not tried yet, because the peer may have moved.
            targets = new + [target for target in targets if target.text in route.tried]
        targets.sort(key=lambda target: target.relayed)
        return targets[: self._limits.addresses]

    def has_new(self, peer_id: str, addresses: Sequence[str]) -> bool:
        """Whether one of `addresses` was not among those that failed."""
        route = self._routes.get(peer_id)
        return route is not None and not _readable(peer_id, addresses).keys() <= route.tried

    def reached(self, peer_id: str, target: PeerAddress | None) -> None:
        """Note that the peer was reached: at `target`, or (None) on an existing connection."""
        route = self._route(peer_id)
        reached_at = route.reached_at if target is None else target.text
        self._routes[peer_id] = _Route(reached_at=reached_at)

    def failed(self, peer_id: str, targets: Sequence[PeerAddress], failure: DialError) -> None:
        """Note that none of `targets` answered. The back-off of the peer doubles with every failure."""
        route = self._route(peer_id)
        route.reached_at = None
        route.failures += 1
        route.tried = route.tried | {target.text for target in targets}
        if len(route.tried) > 4 * self._limits.addresses:
            # If others name new addresses again and again, older ones may be tried again in their turn.
            route.tried = frozenset(target.text for target in targets)
        delay = min(self._limits.backoff_longest, self._limits.backoff_first * 2 ** min(route.failures - 1, 30))
        # Half of the delay is random, so that requesters that lost the same peer do not return at the same moment.
        route.retry_time = trio.current_time() + delay * self._chance.uniform(0.5, 1.0)
        route.failure = failure

    def _route(self, peer_id: str) -> _Route:
        return self._routes.recent(peer_id) or self._routes.setdefault(peer_id, _Route())

    def _backing_off(self, peer_id: str, route: _Route, wait: float) -> DialError:
        why = route.failure.message if route.failure is not None else "it was not reached"
        return DialError(
            f"{peer_id} is left alone for {wait:.1f} s after {route.failures} failures: {why}",
            code="backing_off",
            address=peer_id,
            hint="try again later, or give a new address",
            retry_after=wait,
        )


def _readable(peer_id: str, addresses: Sequence[str]) -> dict[str, PeerAddress]:
    """The addresses that belong to this peer, by their text. Others come from strangers and are dropped."""
    found: dict[str, PeerAddress] = {}
    for text in addresses:
        whole = text if "/p2p/" in text.rpartition("/p2p-circuit")[2] else f"{text}/p2p/{peer_id}"
        try:
            target = parse_peer_address(whole)
        except AddressError:
            continue
        if target.peer_id.to_base58() == peer_id:
            found.setdefault(whole, target)
    return found
