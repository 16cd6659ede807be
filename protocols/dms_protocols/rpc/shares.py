"""What each peer uses of this one now, and whether it may have more: its share, and that of all peers together.

Rules:

1. Every stream of a peer, on every protocol, counts against the same share. Over it a request is answered with `busy`
   and the time after which it would be taken; nothing waits.
2. What all together have used up still leaves each peer a little (`assured`): a thousand strangers cannot take the
   last of it from those who ask rarely.
3. The streams of one peer take turns with each other, and with the other peers as one: many streams, or long trains of
   requests, gain nothing over somebody who asks once.
4. What is remembered is bounded: the peers with streams by the number of streams, the others by a number of their own,
   and only until nothing would tell them from somebody who was never here.
5. One request costs the same however many peers there are, and no look at the clock: time comes with each batch. Far
   from its limits a peer's requests are counted by the turn and not one by one.
6. What takes the processor for longer than a question does is measured, and takes as much more of its peer's turn: who
   asks for what is dear has its next turn when the others had as much.
"""

from __future__ import annotations

import time
import types
from collections.abc import Callable, Coroutine, Generator, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import trio

from dms_resources.bounded_dict import BoundedDict

from ..errors import BusyError
from ..token_bucket import TokenBucket
from .limits import Share, Shares

__all__ = ["LOW_WATER", "PeerShare", "SharesInUse"]

LOW_WATER = 4 * 1024
"""Bytes of answers that may wait on one stream of a peer that has used up its bytes: room for saying so."""

# What is not a matter of rates comes free when something ends; nobody knows when.
_RETRY_SECONDS = 1.0
# Requests of a peer's first turn.
_FIRST_TURN = 64
# About what a question costs; the measure of a turn for what costs more.
_REQUEST_SECONDS = 20e-6
# Turns that a peer sits out at most for something that took very long: others were served in each of them.
_MOST_SAT_OUT = 1_000

Result = TypeVar("Result")


class _Used:
    """What is used of one share."""

    __slots__ = ("bids", "bytes", "most_bytes", "operations", "requests", "share", "streams")

    def __init__(self, share: Share) -> None:
        now = trio.current_time()
        self.share = share
        self.requests = TokenBucket(share.requests, share.requests_burst, now)
        self.bids = TokenBucket(share.bids, share.bids_burst, now)
        self.bytes = 0
        self.most_bytes = share.bytes_in_flight
        self.operations = 0
        self.streams = 0


class PeerShare:
    """One peer's use, shared by all its streams; made by `SharesInUse`."""

    __slots__ = (
        "_assured",
        "_assured_bids",
        "_assured_bytes",
        "_assured_operations",
        "_assured_streams",
        "_own",
        "_rested",
        "_resting",
        "_timer",
        "_total",
        "_unused",
        "limited",
        "now",
        "turn",
    )

    def __init__(self, limits: Shares, total: _Used, timer: Callable[[], float] = time.perf_counter) -> None:
        self._own = _Used(limits.peer)
        self._total = total
        self._timer = timer
        now = trio.current_time()
        self._assured = TokenBucket(limits.assured_requests, limits.assured_requests, now)
        self._assured_bids = TokenBucket(limits.assured_bids, limits.assured_bids, now)
        self._assured_bytes = limits.assured_bytes
        self._assured_operations = limits.assured_operations
        self._assured_streams = limits.assured_streams
        self._rested = trio.lowlevel.ParkingLot()
        self._resting = False
        self._unused = 0
        self.limited = True
        """Whether each request has to be counted by `admit`: else those of this turn are all counted already."""
        self.now = 0.0
        """The time of the batch that is being taken: whoever reads the clock sets it."""
        self.turn = _FIRST_TURN
        """What is left of this peer's turn; at 0 or below whoever takes requests calls `rest` first."""

    # Requests

    def admit(self) -> None:
        """Counts a request where this peer is `limited`; raises BusyError when it is one too many."""
        own, total = self._own, self._total
        if own.bytes >= own.most_bytes:
            raise _busy(f"{own.bytes} bytes of yours are under way", _RETRY_SECONDS)
        if total.bytes >= total.most_bytes and own.bytes >= self._assured_bytes:
            raise _busy(f"{total.bytes} bytes of all peers are under way", _RETRY_SECONDS)
        self._take("requests", own.requests, total.requests, self._assured)

    def admit_bid(self) -> None:
        """Counts a request for bids, beside `admit`; raises BusyError when it is one too many."""
        self._take("requests for bids", self._own.bids, self._total.bids, self._assured_bids)

    def _take(self, what: str, own: TokenBucket, total: TokenBucket, assured: TokenBucket) -> None:
        if not own.take(self.now):
            raise _busy(f"these are more {what} than one peer may send", own.wait(self.now))
        if not total.take(self.now) and not assured.take(self.now):
            raise _busy(f"these are more {what} than all peers together may send", assured.wait(self.now))

    # What runs

    def begin_operation(self, size: int) -> None:
        """Counts an operation that runs beside, and the bytes of its request; raises BusyError."""
        own, total = self._own, self._total
        _check_count("operations of yours", own.operations, own.share.operations)
        if own.operations >= self._assured_operations:
            _check_count("operations of all peers", total.operations, total.share.operations)
        own.operations += 1
        total.operations += 1
        self.hold(size)

    def end_operation(self, size: int) -> None:
        """Takes back what `begin_operation` counted."""
        self._own.operations -= 1
        self._total.operations -= 1
        self.hold(-size)

    def hold(self, size: int) -> None:
        """Counts bytes that are in flight now, or (below 0) no longer are."""
        own, total = self._own, self._total
        own.bytes += size
        total.bytes += size
        if own.bytes >= own.most_bytes or total.bytes >= total.most_bytes:
            self.limited = True

    @property
    def crowded(self) -> bool:
        """Whether the peer has used up its bytes: then a stream on which more than LOW_WATER wait is not read from, for
        the peer does not take even the answers that say so."""
        return self._own.bytes >= self._own.most_bytes

    # Turns

    async def rest(self, turn: int) -> None:
        """Lets everybody else run before this peer, on whatever stream, has a turn of `turn` requests again.

        They are counted in one go where the peer may send so many. May be cancelled.
        """
        while self.turn <= 0:
            if self._resting:
                await self._rested.park()
                continue
            self._resting = True
            try:
                for _ in range(1 + min(-self.turn // turn, _MOST_SAT_OUT)):
                    await trio.lowlevel.checkpoint()
                self.now = trio.current_time()
                self._begin_turn(turn)
            finally:
                self._resting = False
                self._rested.unpark_all()

    def weigh(self, weight: int) -> None:
        """Takes more of the turn for a request that costs as much of the processor as so many more."""
        self.turn -= weight
        if not self.limited:
            self._unused += weight

    @contextmanager
    def weighing(self) -> Iterator[None]:
        """Takes as much more of the turn as the block keeps the processor, in which nothing may be waited for."""
        began = self._timer()
        try:
            yield
        finally:
            self.weigh(int((self._timer() - began) / _REQUEST_SECONDS))

    @types.coroutine
    def metered(self, work: Coroutine[Any, Any, Result]) -> Generator[Any, Any, Result]:
        """Awaits the work, and takes more of the turn for each time that it keeps the processor."""
        resume, value = work.send, None
        while True:
            began = self._timer()
            try:
                waits_for = resume(value)
            except StopIteration as finished:
                result: Result = finished.value
                return result
            finally:
                value = None
                self.weigh(int((self._timer() - began) / _REQUEST_SECONDS))
            try:
                resume, value = work.send, (yield waits_for)
            except BaseException as error:
                resume, value = work.throw, error

    def _begin_turn(self, turn: int) -> None:
        own, total = self._own, self._total
        if not self.limited:
            # What was weighed was counted as requests; the last one may have gone beyond the turn.
            own.requests.give_back(self._unused + self.turn)
            total.requests.give_back(self._unused + self.turn)
        self._unused, self.turn, self.limited = 0, turn, True
        if own.bytes >= own.most_bytes or total.bytes >= total.most_bytes:
            return
        if own.requests.take(self.now, turn):
            if total.requests.take(self.now, turn):
                self.limited = False
            else:
                own.requests.give_back(turn)

    # Streams

    @property
    def idle(self) -> bool:
        """Whether the peer has no stream here."""
        return not self._own.streams

    @property
    def rested_at(self) -> float:
        """When the rates of this peer are what they were before it came, if it asks for nothing."""
        buckets = (self._own.requests, self._own.bids, self._assured, self._assured_bids)
        return max(bucket.full_at() for bucket in buckets)

    def open_stream(self) -> None:
        """Counts a stream; raises BusyError."""
        own, total = self._own, self._total
        _check_count("streams of yours", own.streams, own.share.streams)
        if own.streams >= self._assured_streams:
            _check_count("streams of all peers", total.streams, total.share.streams)
        own.streams += 1
        total.streams += 1

    def close_stream(self) -> None:
        """Takes back what `open_stream` counted."""
        self._own.streams -= 1
        self._total.streams -= 1


class SharesInUse:
    """The use of all peers; one for everything that a peer serves. `timer` tells the seconds by which what keeps the
    processor is measured."""

    def __init__(self, limits: Shares | None = None, timer: Callable[[], float] = time.perf_counter) -> None:
        self.limits = limits or Shares()
        """What peers may use."""
        self._timer = timer
        self._total = _Used(self.limits.total)
        self._present: dict[str, PeerShare] = {}
        self._absent: BoundedDict[str, PeerShare] = BoundedDict(self.limits.remembered)

    @property
    def peers(self) -> int:
        """How many peers are remembered."""
        return len(self._present) + len(self._absent)

    def alone(self) -> PeerShare:
        """The share of somebody who is not remembered and shares with nobody."""
        return PeerShare(self.limits, _Used(self.limits.total), self._timer)

    @contextmanager
    def stream(self, peer_id: str) -> Iterator[PeerShare]:
        """The share that a stream of this peer counts against while the block runs; raises BusyError."""
        share = self._present.get(peer_id) or self._absent.get(peer_id)
        if share is None:
            share = PeerShare(self.limits, self._total, self._timer)
        share.open_stream()
        self._absent.pop(peer_id, None)
        self._present[peer_id] = share
        try:
            yield share
        finally:
            share.close_stream()
            if share.idle:
                del self._present[peer_id]
                self._remember(peer_id, share)

    def _remember(self, peer_id: str, share: PeerShare) -> None:
        now = trio.current_time()
        if share.rested_at <= now:
            # It used nothing.
            return
        self._absent.drop_oldest_while(lambda oldest: oldest.rested_at <= now)
        self._absent[peer_id] = share


def _check_count(what: str, count: int, most: int) -> None:
    if count >= most:
        raise _busy(f"{count} {what} are under way already", _RETRY_SECONDS)


def _busy(message: str, retry_after: float) -> BusyError:
    return BusyError(message, retry_after=retry_after)
