"""The requester: one interface for finding peers, collecting bids and reserving."""

from __future__ import annotations

import math
import random
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from typing import TypeVar

from msgspec.structs import replace

from dms_protocols.bidding.signing import EnvelopeOpener
from dms_protocols.messages.bid import EnsembleRequest
from dms_protocols.rpc.traces import current_trace, tracing

from .assignment import AssignmentRules
from .collecting import BidCollection, collect_bids
from .context import RequesterContext
from .discovering import FoundPeers, find_peers
from .limits import RequesterLimits
from .network import Broadcast, CandidateSource, PeerNetwork, PeerObserver
from .peers import PeerCalls
from .progress import OnProgress, ProgressLog
from .recording import LeaseRecorder
from .reservations import Reservation, open_reservation
from .strategies import Strategy, StrategyOptions, strategy_named

__all__ = ["Requester"]

_T = TypeVar("_T")


class Requester:
    """Finds free capacity on a network and takes it, as one peer.

    `sources` are queried in their order, the cheapest first, and `broadcast` after all of them. `observer` is informed
    of every peer that answers or cannot be reached. `clock` returns the Unix time in seconds. `token` is a grant for
    providers that require one. Reservations are written down by the `recorder`, if there is one.
    """

    def __init__(
        self,
        network: PeerNetwork,
        opener: EnvelopeOpener,
        sources: Sequence[CandidateSource],
        *,
        broadcast: Broadcast | None = None,
        observer: PeerObserver | None = None,
        limits: RequesterLimits | None = None,
        clock: Callable[[], float] = time.time,
        rng: random.Random | None = None,
        token: bytes | None = None,
        skip_self: bool = True,
        recorder: LeaseRecorder | None = None,
    ) -> None:
        self._context = RequesterContext(
            calls=PeerCalls(network, opener, observer=observer, clock=clock, token=token),
            sources=tuple(sources),
            broadcast=broadcast,
            limits=limits or RequesterLimits(),
            clock=clock,
            rng=rng or random.SystemRandom(),
            skip_self=skip_self,
            recorder=recorder,
        )

    def discover(
        self,
        request: EnsembleRequest,
        *,
        count: int | None = None,
        ttl: float = 0.0,
        deadline: float | None = None,
        on_progress: OnProgress | None = None,
    ) -> AbstractAsyncContextManager[FoundPeers]:
        """Peers and what they have free, as they answer: `async with ... as peers: async for peer in peers`.

        Iteration ends when `count` peers would take a node of the request (None: when no peer is left) or at the
        `deadline` (Unix seconds; None: the request's own). `ttl` (seconds) is how long capacity will be committed, if
        that is known. Takes nothing. Raises nothing but cancellation.
        """
        request = _until(request, deadline)
        return _traced(find_peers(self._context, request, count=count, ttl=ttl, progress=ProgressLog(on_progress)))

    def collect_bids(
        self,
        ensemble: EnsembleRequest,
        *,
        want: int = 1,
        deadline: float | None = None,
        rules: AssignmentRules | None = None,
        hold: float = 0.0,
        ttl: float = 0.0,
        on_progress: OnProgress | None = None,
    ) -> AbstractAsyncContextManager[BidCollection]:
        """Bids as they arrive: `async with ... as bids: async for bid in bids`.

        Iteration ends when every node has bids of `want` peers, no peer is left to query, or at the `deadline` (Unix
        seconds; None: the ensemble's own). Leaving the block ends it as well. `hold` and `ttl` (seconds) are sent with
        the requests. A hold that is not committed ends by itself. Raises nothing but cancellation.
        """
        return _traced(
            collect_bids(
                self._context,
                _until(ensemble, deadline),
                want=want,
                rules=rules or AssignmentRules(),
                hold=hold,
                ttl=ttl,
                progress=ProgressLog(on_progress),
            )
        )

    def reserve(
        self,
        ensemble: EnsembleRequest,
        *,
        strategy: Strategy | str = "cheapest",
        currency: str = "",
        rules: AssignmentRules | None = None,
        want: int = 3,
        ttl: float = 60.0,
        deadline: float | None = None,
        wait: bool = False,
        keep: bool = False,
        on_progress: OnProgress | None = None,
    ) -> AbstractAsyncContextManager[Reservation]:
        """Hold all nodes of the ensemble while the block runs, or none: `async with ... as reservation`.

        The requester collects bids of `want` peers for each node, if there are that many, and the `strategy` chooses
        among them (see `strategies`; `currency` is the preferred currency of prices). The leases are committed for
        `ttl` seconds at a time and renewed. They are released at the end of the block, even if it is cancelled; with
        `keep` they are not released if the block ends without an error. Gives up at the `deadline` (Unix seconds; None:
        the ensemble's own), or at once if no peer bids, unless `wait`. If a commitment is lost, the block is cancelled
        and ReservationLostError raised. Raises ReservationError, StrategyError, or ValueError for an invalid `ttl`.
        """
        if not 0 < ttl < math.inf:
            raise ValueError(f"a commitment of {ttl} s")
        if isinstance(strategy, str):
            strategy = strategy_named(strategy, StrategyOptions(self._context.rng, currency))
        return _traced(
            open_reservation(
                self._context,
                _until(ensemble, deadline),
                strategy=strategy,
                rules=rules or AssignmentRules(),
                want=want,
                ttl=ttl,
                wait=wait,
                keep=keep,
                progress=ProgressLog(on_progress),
            )
        )


@asynccontextmanager
async def _traced(visit: AbstractAsyncContextManager[_T]) -> AsyncIterator[_T]:
    """Run the search under one trace id, for the logs of all peers that it reaches. An existing trace is kept."""
    with nullcontext() if current_trace() else tracing():
        async with visit as opened:
            yield opened


def _until(ensemble: EnsembleRequest, deadline: float | None) -> EnsembleRequest:
    return ensemble if deadline is None else replace(ensemble, deadline=deadline)
