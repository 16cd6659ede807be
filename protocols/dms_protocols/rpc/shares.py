"""What each peer uses of this one, and whether it may use more: its own share, and the share of all peers together.

Rules:

1. All streams of a peer, on all protocols, count against the same share. A request above the share is answered with
   `busy` and the time after which it would be accepted. Nothing waits.
2. When all peers together have used up their share, each still gets a small part (`assured`). A thousand strangers
   cannot take it from a peer that sends few requests.
3. Scheduling is fair per peer first, then per stream. Many streams, or long sequences of requests, gain nothing over
   one request.
4. Memory is bounded. The number of streams limits the number of peers with streams. Peers without streams have a limit
   of their own, and are forgotten when their rates are as before their first request.
5. The cost of a request does not depend on the number of peers. A request does not read the clock: each batch brings
   the time. The requests of a peer that is far from its limits are counted once for each turn.
6. If a request takes more processor time than a query, the time is measured, and the request takes a larger part of
   its peer's turn. The peer has its next turn when the others have had as much time.
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
"""Bytes of answers that may wait on one stream of a peer that has used up its bytes. This is enough to answer `busy`.
"""

# A limit that is not a rate becomes free when something ends, at an unknown time.
_RETRY_SECONDS = 1.0
# Requests in the first turn of a peer.
_FIRST_TURN = 64
# About the cost of a query. It is the unit in which the costs of expensive requests are measured.
_REQUEST_SECONDS = 20e-6
# The largest number of turns that a peer skips after a request that took very long. Others are served in each.
_MOST_SAT_OUT = 1_000

Result = TypeVar("Result")


class _Used:
    """The used part of one share."""

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
    """The use of one peer, over all its streams. `SharesInUse` makes it."""

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
        """Whether `admit` has to count each request. Otherwise all requests of this turn are counted already."""
        self.now = 0.0
        """The time of the current batch; the caller sets it."""
        self.turn = _FIRST_TURN
        """The rest of the turn. If it is 0 or below, call `rest` before the next request."""

    # Requests

    def admit(self) -> None:
        """Count a request if this peer is `limited`. Raises BusyError if the limit is reached."""
        self.admit_bytes()
        self._take("requests", self._own.requests, self._total.requests, self._assured)

    def admit_bytes(self) -> None:
        """Raises BusyError if the limit of bytes in flight is reached."""
        own, total = self._own, self._total
        if own.bytes >= own.most_bytes:
            raise _busy(f"{own.bytes} bytes of this peer are under way", _RETRY_SECONDS)
        if total.bytes >= total.most_bytes and own.bytes >= self._assured_bytes:
            raise _busy(f"{total.bytes} bytes of all peers are under way", _RETRY_SECONDS)

    def admit_bid(self) -> None:
        """Count a request for bids, in addition to `admit`. Raises BusyError if the limit is reached."""
        self._take("requests for bids", self._own.bids, self._total.bids, self._assured_bids)

    def _take(self, what: str, own: TokenBucket, total: TokenBucket, assured: TokenBucket) -> None:
        if not own.take(self.now):
            raise _busy(f"more {what} than one peer may send", own.wait(self.now))
        if not total.take(self.now) and not assured.take(self.now):
            raise _busy(f"more {what} than all peers together may send", assured.wait(self.now))

    # What runs

    def begin_operation(self, size: int) -> None:
        """Count an operation that runs in a task, and the bytes of its request. Raises BusyError at a limit."""
        own, total = self._own, self._total
        _check_count("operations of this peer", own.operations, own.share.operations)
        if own.operations >= self._assured_operations:
            _check_count("operations of all peers", total.operations, total.share.operations)
        own.operations += 1
        total.operations += 1
        self.hold(size)

    def end_operation(self, size: int) -> None:
        """Undo what `begin_operation` counted."""
        self._own.operations -= 1
        self._total.operations -= 1
        self.hold(-size)

    def hold(self, size: int) -> None:
        """Count bytes that are now in flight; a negative `size` counts bytes that no longer are."""
        own, total = self._own, self._total
        own.bytes += size
        total.bytes += size
        if own.bytes >= own.most_bytes or total.bytes >= total.most_bytes:
            self.limited = True

    @property
    def crowded(self) -> bool:
        """Whether the peer has used up its bytes. If more than LOW_WATER bytes wait on a stream, the stream is then not
        read, because the peer does not even read the answers `busy`.
        """
        return self._own.bytes >= self._own.most_bytes

    # Turns

    async def rest(self, turn: int) -> None:
        """Let all others run before this peer, on any stream, has its next turn of `turn` requests.

        If the peer may send that many, the requests are counted at once. May be cancelled.
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
        """Take `weight` more from the turn, for a request that costs as much as `weight` queries."""
        self.turn -= weight
        if not self.limited:
            self._unused += weight

    @contextmanager
    def weighing(self) -> Iterator[None]:
        """Take the processor time of the block from the turn. The block must not await."""
        began = self._timer()
        try:
            yield
        finally:
            self.weigh(int((self._timer() - began) / _REQUEST_SECONDS))

    @types.coroutine
    def metered(self, work: Coroutine[Any, Any, Result]) -> Generator[Any, Any, Result]:
        """Await the work, and take the processor time between its awaits from the turn."""
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
            # The weight was counted as requests, and the last request may have exceeded the turn.
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
        """When the rates of this peer will be as before its first request, if it sends no more requests."""
        buckets = (self._own.requests, self._own.bids, self._assured, self._assured_bids)
        return max(bucket.full_at() for bucket in buckets)

    def open_stream(self) -> None:
        """Count a stream. Raises BusyError if a limit is reached."""
        own, total = self._own, self._total
        _check_count("streams of this peer", own.streams, own.share.streams)
        if own.streams >= self._assured_streams:
            _check_count("streams of all peers", total.streams, total.share.streams)
        own.streams += 1
        total.streams += 1

    def close_stream(self) -> None:
        """Undo what `open_stream` counted."""
        self._own.streams -= 1
        self._total.streams -= 1


class SharesInUse:
    """The use of all peers. A peer has one such object. `timer` returns processor time in seconds."""

    def __init__(self, limits: Shares | None = None, timer: Callable[[], float] = time.perf_counter) -> None:
        self.limits = limits or Shares()
        """The limits of peers."""
        self._timer = timer
        self._total = _Used(self.limits.total)
        self._present: dict[str, PeerShare] = {}
        self._absent: BoundedDict[str, PeerShare] = BoundedDict(self.limits.remembered)

    @property
    def peers(self) -> int:
        """The number of peers that are remembered."""
        return len(self._present) + len(self._absent)

    def alone(self) -> PeerShare:
        """A separate share, which is not remembered and not counted with others."""
        return PeerShare(self.limits, _Used(self.limits.total), self._timer)

    @contextmanager
    def stream(self, peer_id: str) -> Iterator[PeerShare]:
        """The share against which a stream of this peer counts while the block runs. Raises BusyError if a limit is
        reached.
        """
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
            # The peer used nothing.
            return
        self._absent.drop_oldest_while(lambda oldest: oldest.rested_at <= now)
        self._absent[peer_id] = share


def _check_count(what: str, count: int, most: int) -> None:
    if count >= most:
        raise _busy(f"{count} {what} are under way already", _RETRY_SECONDS)


def _busy(message: str, retry_after: float) -> BusyError:
    return BusyError(message, retry_after=retry_after)
