"""Leases at peers: committing, renewing and releasing them.

Rules:

1. A lease is recorded before it is requested. Its id follows from the bid, so that it can be released whatever happens
   to the answer.
2. Every lease that may still exist is released. The release is repeated until the peer confirms that the lease has
   ended, or until its deadline must have ended it.
3. Commitments are renewed, and so are allocations that have a keep-alive. A lease is lost when the peer says so, or
   when its deadline passes without an answer to its renewal: from then on another requester may have the capacity.
   Deadlines count from the time when the request was sent, so they are never later than the peer's.
4. Between two attempts there is a random pause that grows, or that is as long as the peer asks for, within bounds.
   Otherwise many requesters that lost the same peer at the same moment would return to it at the same moment, again and
   again.
"""

from __future__ import annotations

import math
import random
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Final, TypeVar

import trio

from dms_resources.ledger.leases import Lease

from .bids import ReceivedBid
from .limits import RequesterLimits
from .peers import CallError, PeerCalls, PeerRef
from .recording import LeaseRecorder, Recording

__all__ = ["Holding", "HoldingState", "Holdings"]

_T = TypeVar("_T")

# The codes with which a peer answers about a lease that has ended, that it does not know, and that belongs to another
# holder.
_ENDED: Final = frozenset({"ended", "evicted", "expired"})
_UNKNOWN: Final = frozenset({"not_committed", "not_allocated"})
_NOT_OURS: Final = frozenset({"not_holder", "stale_fence"})
_LOST: Final = _ENDED | _UNKNOWN | _NOT_OURS

# A lease with less than twice this time left is lost.
_SHORTEST_PAUSE: Final = 0.05
# The number of times that a peer has to report a lease as unknown if its request may still be on its way.
_UNKNOWN_ANSWERS: Final = 4


class HoldingState(Enum):
    """`ASKED`: the lease may or may not exist. `COMMITTED`, `ALLOCATED`: it exists until its deadline, if it has one.
    `RELEASING`: it is being released. `GONE`: it does not exist and will not exist.
    """

    ASKED = "asked"
    COMMITTED = "committed"
    ALLOCATED = "allocated"
    RELEASING = "releasing"
    GONE = "gone"


@dataclass(slots=True, eq=False)
class Holding:
    """The lease of one node at a peer, or a possible lease. It ends at `ends` (on the event loop's clock) unless
    renewed.
    """

    bid: ReceivedBid
    state: HoldingState = HoldingState.ASKED
    lease: Lease | None = None
    ends: float = math.inf
    renewed_at: float = 0.0
    lost: str = ""
    allocated: trio.Event = field(default_factory=trio.Event)

    @property
    def node_id(self) -> str:
        """The node of the lease."""
        return self.bid.node_id

    @property
    def lease_id(self) -> str:
        """The id of the lease at the peer."""
        return self.bid.bid.lease_id

    @property
    def peer(self) -> PeerRef:
        """The peer of the lease."""
        return PeerRef(self.bid.peer_id, self.bid.addrs)

    @property
    def fence(self) -> int | None:
        """The fencing number, if the peer has answered."""
        return self.lease.fence if self.lease else None

    @property
    def live(self) -> bool:
        """Whether the lease is known to exist."""
        return not self.lost and self.state in (HoldingState.COMMITTED, HoldingState.ALLOCATED)

    def be_gone(self) -> None:
        """Note that the lease no longer exists."""
        self.state = HoldingState.GONE


class Holdings:
    """All leases that one reservation has taken or may have taken, for `ttl` seconds at a time."""

    def __init__(
        self,
        calls: PeerCalls,
        limits: RequesterLimits,
        ttl: float,
        rng: random.Random,
        recorder: LeaseRecorder | None = None,
    ) -> None:
        self._calls = calls
        self._limits = limits
        self._ttl = ttl
        self._rng = rng
        self._recording = Recording(recorder)
        self._all: list[Holding] = []

    @property
    def standing(self) -> list[Holding]:
        """All leases that may still exist."""
        return [holding for holding in self._all if holding.state is not HoldingState.GONE]

    async def commit(self, bids: Sequence[ReceivedBid], *, budget: float) -> list[Holding]:
        """Commit bids of one peer, all or none, within `budget` seconds.

        Raises CallError; then nothing was committed, or what may have been committed is recorded. May be cancelled.
        """
        holdings = [Holding(bid) for bid in bids]
        give_up = trio.current_time() + budget
        await self._recording.asked(holdings[0].peer)
        self._all += holdings
        try:
            await self._commit(holdings, give_up)
        except CallError as error:
            if not error.uncertain:
                for holding in holdings:
                    holding.be_gone()
            raise
        await self._recording.held(holdings[0].peer, *(holding.lease for holding in holdings))
        return holdings

    async def keep(self, holding: Holding, on_lost: Callable[[Holding], None]) -> None:
        """Renew a lease at a third of its time, until it is lost or gone. May be cancelled.

        Returns if an allocation needs no renewal.
        """
        while True:
            ttl = self._time_to_live(holding)
            if not ttl:
                return
            renew_at = holding.renewed_at + ttl / 3
            if holding.allocated.is_set():
                await trio.sleep_until(renew_at)
            else:
                with trio.move_on_at(renew_at):
                    # The provider sets the keep-alive of an allocation, which may be shorter.
                    await holding.allocated.wait()
                    continue
            if holding.live:
                await self._renew(holding)
            elif holding.state is HoldingState.ASKED:
                # It is being allocated, and the result of that call decides.
                holding.renewed_at = trio.current_time()
            else:
                return
            if holding.lost:
                on_lost(holding)
                return

    async def allocate(self, holding: Holding) -> None:
        """Turn a commitment into an allocation. Retries while that may help. Raises CallError; cancellable."""
        holding.state = HoldingState.ASKED

        async def allocate(budget: float) -> tuple[Lease, float]:
            sent = trio.current_time()
            lease = await self._calls.allocate(
                holding.peer, holding.lease_id, fence=holding.fence, budget=budget, before=holding.lease
            )
            return lease, sent

        # It may become allocated whatever happens to the call, and an allocation may have no deadline.
        ends = math.inf
        try:
            lease, sent = await self._persist(holding, allocate)
            holding.lease, holding.renewed_at, holding.state = lease, sent, HoldingState.ALLOCATED
            ends = sent + _longest_time(lease)
        finally:
            holding.ends = ends
        holding.allocated.set()
        await self._recording.held(holding.peer, lease)

    async def release(self, holding: Holding) -> None:
        """Release a lease, or a possible lease. Returns when it is gone, or must be by its deadline. Cancellable."""
        unknown = 0
        pauses = _Pauses(self._limits, self._rng)
        if holding.state is not HoldingState.GONE:
            holding.state = HoldingState.RELEASING
        while holding.state is not HoldingState.GONE:
            try:
                await self._calls.release(
                    holding.peer, holding.lease_id, fence=holding.fence, budget=self._limits.call_budget
                )
                holding.be_gone()
            except CallError as error:
                unknown += error.remote is not None and error.code in _UNKNOWN
                if error.remote is not None and _answers_that_it_is_gone(holding, error.code, unknown):
                    holding.be_gone()
                elif trio.current_time() > holding.ends + self._limits.call_budget:
                    # The last request for it has arrived within that time, or never will.
                    holding.be_gone()
                else:
                    await trio.sleep(pauses.next(error))
        await self._recording.gone(holding.peer, holding.lease_id)

    async def release_all(self, *, but: Collection[Holding] = ()) -> list[Holding]:
        """Release everything, at all peers at once. Returns what may still exist when the time is over.

        An outer cancellation does not interrupt it. It takes at most `release_deadline` seconds.
        """
        deadline = trio.current_time() + self._limits.release_deadline
        with trio.CancelScope(deadline=deadline, shield=True):
            async with trio.open_nursery() as nursery:
                for holding in self.standing:
                    if holding not in but:
                        nursery.start_soon(self.release, holding)
        return [holding for holding in self.standing if holding not in but]

    # Internal

    async def _commit(self, holdings: Sequence[Holding], give_up: float) -> None:
        bids = [holding.bid.signed for holding in holdings]
        for holding in holdings:
            holding.ends = give_up + self._ttl
        uncertain = False
        while True:
            sent = trio.current_time()
            try:
                leases = await self._calls.commit(
                    holdings[0].peer, bids, ttl=self._ttl, budget=max(0.001, give_up - sent)
                )
            except CallError as error:
                # A repeated request gets the same answer, and another stream may work better.
                again = error.code == "connection_lost" and not uncertain and trio.current_time() < give_up
                uncertain = uncertain or error.uncertain
                if not again:
                    error.uncertain = uncertain
                    raise
            else:
                self._committed(holdings, leases, sent)
                return

    def _committed(self, holdings: Sequence[Holding], leases: Sequence[Lease], sent: float) -> None:
        # The leases were compared with the bids, and are in their order.
        for holding, lease in zip(holdings, leases, strict=True):
            holding.lease = lease
            holding.state, holding.renewed_at, holding.ends = HoldingState.COMMITTED, sent, sent + self._ttl

    async def _renew(self, holding: Holding) -> None:
        state = holding.state

        async def renew(budget: float) -> tuple[Lease, float]:
            sent = trio.current_time()
            lease = await self._calls.renew(
                holding.peer,
                holding.lease_id,
                ttl=self._ttl,
                fence=holding.fence,
                budget=budget,
                before=holding.lease,
            )
            return lease, sent

        try:
            lease, sent = await self._persist(holding, renew)
        except CallError as error:
            if holding.state is state:
                holding.lost = f"{error.code}: {error.message}"
        else:
            if holding.state is state:
                holding.lease, holding.renewed_at = lease, sent
                holding.ends = sent + (self._ttl if state is HoldingState.COMMITTED else _longest_time(lease))
                await self._recording.held(holding.peer, lease)

    def _time_to_live(self, holding: Holding) -> float:
        """The length of each renewal in seconds; 0 if none is needed."""
        if holding.state is HoldingState.ALLOCATED and holding.lease is not None:
            return holding.lease.ttl
        return self._ttl

    async def _persist(self, holding: Holding, ask: Callable[[float], Awaitable[_T]]) -> _T:
        """Repeat the request after every failure until the lease's own end. Raises CallError."""
        pauses = _Pauses(self._limits, self._rng)
        while True:
            left = holding.ends - trio.current_time()
            try:
                return await ask(max(0.001, min(self._limits.call_budget, left)))
            except CallError as error:
                if error.remote is not None and error.code in _LOST:
                    raise
                wait = pauses.next(error, most=(holding.ends - trio.current_time()) / 2)
                if wait < _SHORTEST_PAUSE:
                    raise
            await trio.sleep(wait)


def _answers_that_it_is_gone(holding: Holding, code: str, unknown: int) -> bool:
    if code in _ENDED or code in _NOT_OURS:
        return True
    # A request without an answer may still arrive. A request with an answer cannot arrive again.
    return code in _UNKNOWN and (holding.lease is not None or unknown >= _UNKNOWN_ANSWERS)


def _longest_time(lease: Lease) -> float:
    """The longest time in seconds that an allocation lasts without a renewal."""
    if lease.ttl:
        return lease.ttl
    return math.inf if lease.deadline is None or lease.longest is None else lease.longest.seconds


class _Pauses:
    """Random pauses that grow."""

    def __init__(self, limits: RequesterLimits, rng: random.Random) -> None:
        self._delay = limits.retry_delay
        self._most = limits.retry_delay_most
        self._rng = rng

    def next(self, error: CallError, *, most: float = math.inf) -> float:
        """The seconds to wait after this error, at most `most`. If the peer asked for a longer pause, that counts."""
        wish = error.remote.retry_after if error.remote else None
        # Whatever the peer answers, its lease is checked again before long.
        least = min(wish, self._most) if wish is not None and wish > 0 else 0.0
        # From half to one and a half of the delay, and never less than the peer asked for.
        pause = max(self._delay * (0.5 + self._rng.random()), least * (1 + self._rng.random() / 2))
        self._delay = min(self._most, 2 * self._delay)
        return min(pause, most)
