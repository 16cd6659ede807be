"""Observes one provider: notes what it acknowledges to which peer, and compares the ledger with that after every step.

Rules that always have to hold:

1. An acknowledged lease is in the ledger as it was acknowledged, until its deadline, or until its holder requested its
   release. This holds in memory at every step, and for the file after every restart. An allocation that could not be
   renewed while its provider was down may last for another keep-alive, once.
2. A released lease does not come back.
3. A lease changes only by a request of its holder, and no lease exists that its holder did not request.
4. Fencing numbers of later leases are greater; no two leases have the same.
5. What was requested together is there together, or none of it.
6. Only the holder gets answers about a lease.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import trio

from dms_protocols.bidding.signing import open_bid
from dms_protocols.errors import ProtocolError
from dms_protocols.messages.allocation import AllocateRequest, CommitRequest, ReleaseRequest, RenewRequest
from dms_protocols.messages.bid import Bid
from dms_protocols.rpc.operations import Caller, Operation, Operations
from dms_resources.errors import ResourcesError, StorageError
from dms_resources.ledger.leases import Lease, LeaseState

from ..signing import SimulatedOpener
from .promises import KEEP_ALIVE, Promise, Request

__all__ = ["Tellings", "Witness", "watched"]

# Floats of different clocks.
_NEAR = 1e-4
# The ledger is read a moment before the witness learns of it.
_GRACE_NEAR = 1.0


class Tellings:
    """Recorded messages that may be repeated: bids with their requesters, and requests with their callers."""

    def __init__(self) -> None:
        self.bids: list[tuple[Bid, bytes]] = []
        self.requests: list[tuple[str, str, Any]] = []
        self._arrived = trio.lowlevel.ParkingLot()

    async def wait_bids(self) -> None:
        """Return when a provider answers with bids. May be cancelled."""
        await self._arrived.park()

    def note_bids(self, envelopes: Sequence[bytes]) -> None:
        """Note bids that a provider answered with."""
        self.bids += [(open_bid(raw, SimulatedOpener()), raw) for raw in envelopes]
        del self.bids[:-60]
        self._arrived.unpark_all()

    def note_request(self, provider: str, caller: str, request: Any) -> None:
        """Note a request that changes something."""
        self.requests.append((provider, caller, request))
        del self.requests[:-60]


class Witness:
    """What the provider `peer_id` has acknowledged, over all its lives. `fail` is called with violations."""

    def __init__(self, peer_id: str, fail: Callable[[str], None]) -> None:
        self.peer_id = peer_id
        self.promises: dict[str, Promise] = {}
        self._fail = fail
        self._order = 0
        self._fences: dict[int, str] = {}
        self._highest = 0
        # When a lease was first requested, and the highest fencing number that had been reported by then.
        self._asked: dict[tuple[str, str], tuple[float, int]] = {}
        self._open: dict[tuple[str, str], list[Request]] = {}
        self._rebooted = -math.inf
        self._loaded = -math.inf
        self._allocations: set[tuple[str, str]] = set()
        self._holders: set[str] = set()
        # What was requested together with an unknown outcome.
        self._groups: set[tuple[str, ...]] = set()

    def standing(self) -> list[Lease]:
        """What was acknowledged and not released."""
        return [promise.lease for promise in self.promises.values() if promise.released is None]

    # Requests and answers

    def begin_bid(self, caller: str) -> None:
        """A caller requests bids, perhaps with holds."""
        self._holders.add(caller)

    def begin_commit(self, caller: str, request: CommitRequest) -> tuple[Request, tuple[str, ...]]:
        """A caller commits bids."""
        ids = tuple(_bid_ids(request.bids))
        for lease_id in ids:
            self._asked.setdefault((caller, lease_id), (trio.current_time(), self._highest))
        return self._new("commit", request.ttl), ids

    def begin(self, kind: str, caller: str, lease_id: str, ttl: float = 0.0) -> Request:
        """A caller requests a change of a lease."""
        request = self._new(kind, ttl)
        if kind == "allocate":
            self._allocations.add((caller, lease_id))
        self._open.setdefault((caller, lease_id), []).append(request)
        return request

    def refused(self, request: Request, caller: str, ids: Sequence[str]) -> None:
        """The request was answered with an error that says that it had no effect."""
        for lease_id in ids:
            requests = self._open.get((caller, lease_id), [])
            requests[:] = [one for one in requests if one is not request]

    def unknown(self, request: Request, ids: Sequence[str]) -> None:
        """The request was cut off: it took effect or did not."""
        self._order += 1
        request.ended, request.until = self._order, trio.current_time()
        if request.kind == "commit":
            self._groups.add(tuple(ids))

    def committed(self, request: Request, caller: str, ids: Sequence[str], leases: Sequence[Lease]) -> None:
        """The leases were acknowledged to the caller."""
        if [lease.lease_id for lease in leases] != list(ids):
            self._fail(f"{self.peer_id} answered {ids} with {leases}")
        self._groups.discard(tuple(ids))
        for lease in leases:
            promise = self.promises.get(lease.lease_id)
            if promise is None:
                self._promise(request, caller, lease)
            elif promise.released is not None and promise.released < request.began:
                self._fail(f"{self.peer_id} gave {lease.lease_id} out again after its release")

    def changed(self, request: Request, caller: str, lease: Lease) -> None:
        """A renewal or an allocation was acknowledged to the caller."""
        if lease.holder != caller:
            self._fail(f"{self.peer_id} let {caller} {request.kind} the lease {lease.lease_id} of {lease.holder}")
        promise = self.promises.get(lease.lease_id)
        if promise is None:
            # The answer to its commitment was lost.
            self._promise(request, caller, lease)
            return
        if promise.released is not None:
            if promise.released < request.began:
                self._fail(f"{self.peer_id} let {caller} {request.kind} {lease.lease_id} after its release")
            return
        self._order += 1
        promise.acknowledge(request, lease, trio.current_time(), self._order)

    def released(self, request: Request, caller: str, lease_id: str, holder: str) -> None:
        """A release was acknowledged to the caller."""
        if holder != caller:
            self._fail(f"{self.peer_id} let {caller} release the lease {lease_id} of {holder}")
        promise = self.promises.get(lease_id)
        if promise is not None and promise.released is None:
            self._order += 1
            promise.released = self._order
            promise.open.clear()

    def listed(self, caller: str, leases: Sequence[Lease]) -> None:
        """Leases were listed to the caller."""
        if any(lease.holder != caller for lease in leases):
            self._fail(f"{self.peer_id} shows {caller} the leases of others: {leases}")

    # The ledger

    def compare(self, leases: Mapping[str, Lease], ends: Mapping[str, float]) -> None:
        """Check all current leases, and when each ends in the event loop's time."""
        now = trio.current_time()
        for lease_id, promise in list(self.promises.items()):
            lease = leases.get(lease_id)
            if promise.released is not None:
                if lease is not None:
                    self._fail(f"{self.peer_id} has {lease_id} again after its release: {lease}")
            elif lease is None:
                self._check_gone(lease_id, promise, now)
            else:
                self._check_kept(lease, ends.get(lease_id), promise, now)
        for lease in leases.values():
            self._check_asked(lease)

    def loaded(self) -> None:
        """The ledger was read from its file: what was over by then ends then."""
        self._loaded = trio.current_time()

    def reopened(
        self, leases: Mapping[str, Lease], opened: tuple[float, float], wall: tuple[float, float], *, sure: bool
    ) -> None:
        """The machine was rebooted: deadlines follow the wall clock that it has now. Unless `sure`, the ledger may have
        noted that boot already.
        """
        self._rebooted = trio.current_time()
        for lease_id, promise in self.promises.items():
            if promise.released is None:
                promise.rebase(leases.get(lease_id), opened, wall, sure=sure)

    def check_groups(self, known: set[str]) -> None:
        """Check what was requested together; `known` has left a trace in the file."""
        times = Counter(lease_id for ids in self._groups for lease_id in set(ids))
        acknowledged = set(self._fences.values())
        for ids in sorted(self._groups):
            there = [lease_id for lease_id in ids if lease_id in known]
            alone = all(times[lease_id] == 1 and lease_id not in acknowledged for lease_id in ids)
            if alone and there and len(there) < len(ids):
                self._fail(f"{self.peer_id} has {there} of {ids}, which were asked for together")

    # Internal

    def _new(self, kind: str, ttl: float) -> Request:
        self._order += 1
        return Request(kind, self._order, trio.current_time(), ttl)

    def _promise(self, request: Request, caller: str, lease: Lease) -> None:
        self._check_fence(lease, caller)
        since, _ = self._asked.get((caller, lease.lease_id), (request.since, 0))
        promise = Promise(lease, open=self._open.setdefault((caller, lease.lease_id), []))
        # It may exist since the first request, and then the answer is what it was.
        first = Request(request.kind, request.began, since)
        promise.open[:] = [one for one in promise.open if one is not request]
        promise.acknowledge(first, lease, trio.current_time(), self._order)
        if since <= self._rebooted and lease.deadline is not None:
            promise.low, promise.high = -math.inf, math.inf
        self.promises[lease.lease_id] = promise

    def _check_fence(self, lease: Lease, caller: str) -> None:
        if lease.holder != caller:
            self._fail(f"{self.peer_id} answered {caller} with a lease of {lease.holder}")
        if self._fences.setdefault(lease.fence, lease.lease_id) != lease.lease_id:
            self._fail(f"{self.peer_id} gave the fencing number {lease.fence} twice")
        if lease.fence <= self._asked.get((caller, lease.lease_id), (0.0, 0))[1]:
            self._fail(f"{self.peer_id} gave {lease.lease_id} the old fencing number {lease.fence}")
        self._highest = max(self._highest, lease.fence)

    def _check_gone(self, lease_id: str, promise: Promise, now: float) -> None:
        low, _ = promise.bounds(now)
        if now < low - _NEAR:
            self._fail(f"{self.peer_id} lost {lease_id}, which it acknowledged until {low:.4f}: {promise.lease}")
        if not promise.asked("release"):
            del self.promises[lease_id]

    def _check_kept(self, lease: Lease, ends: float | None, promise: Promise, now: float) -> None:
        low, _ = promise.bounds(now)
        if lease.grace and not promise.lease.grace and ends is not None and low <= self._loaded + _NEAR:
            # It could not be renewed while the provider was down: it lasts from when the ledger was read.
            if abs(ends - self._loaded - KEEP_ALIVE) > _GRACE_NEAR:
                self._fail(f"{self.peer_id} gives {lease} a grace until {ends:.4f}, loaded {self._loaded:.4f}")
            promise.grant_grace(lease, ends)
            return
        known = promise.lease
        if not promise.open and lease != known:
            self._fail(f"{self.peer_id} changed {known} to {lease}, and nobody asked for it")
        if (lease.holder, lease.fence, lease.resources, lease.ports) != (
            known.holder, known.fence, known.resources, known.ports,
        ):  # fmt: skip
            self._fail(f"{self.peer_id} acknowledged {known} and has {lease}")
        if ends is None:
            return
        low, high = promise.bounds(now)
        high = max(high, self._loaded)
        if not low - _NEAR <= ends <= high + _NEAR:
            self._fail(f"{self.peer_id} ends {lease.lease_id} at {ends:.4f}, acknowledged was {low:.4f} to {high:.4f}")

    def _check_asked(self, lease: Lease) -> None:
        key = (lease.holder, lease.lease_id)
        asked = key in self._asked or (lease.state is LeaseState.HELD and lease.holder in self._holders)
        if not asked or (lease.state is LeaseState.ALLOCATED and key not in self._allocations):
            self._fail(f"{self.peer_id} has {lease}, and {lease.holder} did not ask for that")


def _bid_ids(envelopes: Sequence[bytes]) -> list[str]:
    ids = []
    for raw in envelopes:
        try:
            ids.append(open_bid(raw, SimulatedOpener()).lease_id)
        except ProtocolError:
            continue
    return ids


def watched(operations: Operations, witness: Witness, tellings: Tellings, alive: Callable[[], bool]) -> Operations:
    """The same operations, observed by a witness for as long as the provider is `alive`."""
    seen = Operations()
    for operation in operations.values():
        _WATCHED.get(operation.name, _unwatched)(seen, operation, witness, tellings, alive)
    return seen


def _unwatched(seen: Operations, operation: Operation, *_: Any) -> None:
    add = {"quick": seen.quick, "watch": seen.watch}[operation.kind]
    add(operation.request_type, operation.handler)


def _watch_bids(seen: Operations, operation: Operation, witness: Witness, tellings: Tellings, alive: Any) -> None:
    async def ask(request: Any, caller: Caller) -> Any:
        witness.begin_bid(caller.peer_id)
        answer = operation.handler(request, caller)
        if hasattr(answer, "__await__"):
            answer = await answer
        if not request.dry_run:
            tellings.note_bids(answer.bids)
        return answer

    seen.slow(operation.request_type, ask, rate=operation.rate)


def _watch_list(seen: Operations, operation: Operation, witness: Witness, *_: Any) -> None:
    def show(request: Any, caller: Caller) -> Any:
        answer = operation.handler(request, caller)
        witness.listed(caller.peer_id, answer.leases)
        return answer

    seen.quick(operation.request_type, show)


def _watch_change(
    seen: Operations, operation: Operation, witness: Witness, tellings: Tellings, alive: Callable[[], bool]
) -> None:
    async def change(request: Any, caller: Caller) -> Any:
        tellings.note_request(witness.peer_id, caller.peer_id, request)
        asked, ids = _begin(witness, caller.peer_id, request)
        try:
            answer = await operation.handler(request, caller)
        except (trio.Cancelled, StorageError):
            witness.unknown(asked, ids)
            raise
        except (ProtocolError, ResourcesError):
            witness.refused(asked, caller.peer_id, ids)
            raise
        if alive():
            _acknowledge(witness, asked, caller.peer_id, request, ids, answer)
        else:
            witness.unknown(asked, ids)
        return answer

    seen.slow(operation.request_type, change)


def _begin(witness: Witness, caller: str, request: Any) -> tuple[Request, tuple[str, ...]]:
    match request:
        case CommitRequest():
            return witness.begin_commit(caller, request)
        case RenewRequest():
            return witness.begin("renew", caller, request.lease_id, request.ttl), (request.lease_id,)
        case _:
            kind = "allocate" if isinstance(request, AllocateRequest) else "release"
            return witness.begin(kind, caller, request.lease_id), (request.lease_id,)


def _acknowledge(
    witness: Witness, asked: Request, caller: str, request: Any, ids: tuple[str, ...], answer: Any
) -> None:
    match request:
        case CommitRequest():
            witness.committed(asked, caller, ids, answer.leases)
        case ReleaseRequest():
            witness.released(asked, caller, request.lease_id, answer.lease.holder)
        case _:
            witness.changed(asked, caller, answer.lease)


_WATCHED = {
    "bid_request": _watch_bids,
    "list": _watch_list,
    **dict.fromkeys(("commit", "renew", "allocate", "release"), _watch_change),
}
