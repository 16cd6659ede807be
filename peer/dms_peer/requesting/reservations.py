"""Takes all nodes of an ensemble or none, and keeps them while a block runs.

Rules:

1. The block runs when every node is committed, and not before.
2. While it runs every lease is renewed, allocations too. If one is lost, the block is cancelled and
ReservationLostError
   is raised: an ensemble is used as a whole, and another requester may have the lost capacity.
3. At its end every lease is released, allocations too, however the block ends. With `keep` nothing is released if the
   block ended without an error: the leases then end at their deadlines unless the caller renews them.
4. Leases from failed attempts are released too. A lease that cannot be released because its peer is gone ends at its
   deadline; the log names it.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Final

import trio

from dms_protocols.messages.bid import EnsembleRequest
from dms_protocols.messages.job import Job, JobStatus
from dms_resources.ledger.leases import Lease
from dms_resources.tasks import open_background

from .acquisition import Acquisition
from .assignment import AssignmentRules
from .context import RequesterContext
from .errors import JobRequestError, ReservationError, ReservationLostError
from .forwarding import LOOPBACK, Forward
from .holdings import Holding, Holdings, HoldingState
from .jobs import RemoteJob
from .node_jobs import NodeJob
from .peers import CallError
from .progress import ProgressLog, SearchProgress
from .strategies import Strategy

__all__ = ["Reservation", "open_reservation"]

_log = logging.getLogger(__name__)
# How a job ends that never ran.
_NEVER_RAN: Final = frozenset({"failed", "evicted", "expired", "lost"})


class Reservation:
    """An ensemble that is taken. `lost` is set when it no longer is, and `why_lost` says why."""

    def __init__(
        self,
        context: RequesterContext,
        holdings: Holdings,
        by_node: Mapping[str, Holding],
        progress: ProgressLog,
        block: trio.CancelScope,
    ) -> None:
        self.lost = trio.Event()
        self.why_lost = ""
        self._context = context
        self._holdings = holdings
        self._by_node = dict(by_node)
        self._progress = progress
        self._block = block
        self._lost_nodes: list[str] = []

    @property
    def holdings(self) -> list[Holding]:
        """The leases that are held, in the order of the nodes."""
        return list(self._by_node.values())

    @property
    def leases(self) -> dict[str, Lease]:
        """The lease of each node, as it was last reported."""
        return {node_id: holding.lease for node_id, holding in self._by_node.items() if holding.lease is not None}

    @property
    def peers(self) -> dict[str, str]:
        """The id of the peer of each node."""
        return {node_id: holding.bid.peer_id for node_id, holding in self._by_node.items()}

    @property
    def addrs(self) -> dict[str, tuple[str, ...]]:
        """The addresses of the peer of each node."""
        return {node_id: holding.bid.addrs for node_id, holding in self._by_node.items()}

    @property
    def lost_nodes(self) -> tuple[str, ...]:
        """The nodes that are known to be lost."""
        return tuple(self._lost_nodes)

    @property
    def progress(self) -> SearchProgress:
        """The progress of the search and the commitments."""
        return self._progress.snapshot()

    async def allocate(self) -> dict[str, Lease]:
        """Turn all commitments into allocations, or none. Returns the allocations by node.

        Raises ReservationError `not_allocated` if one is not possible. In that case, or if cancelled, the reservation
        is lost: the block is cancelled and everything is released. If the provider sets a keep-alive, the allocations
        end that long after this requester dies.
        """
        failures: dict[str, CallError] = {}
        done = False
        try:
            async with trio.open_nursery() as nursery:
                for holding in self._by_node.values():
                    if holding.state is not HoldingState.ALLOCATED:
                        nursery.start_soon(self._allocate, holding, failures, nursery.cancel_scope)
            done = not failures and not self.lost.is_set()
        finally:
            if not done:
                # An allocation cannot be turned back into a commitment.
                self.lose(list(failures), "it could not be allocated as a whole")
        if not done:
            said = "; ".join(f"{node_id}: {error.message} ({error.code})" for node_id, error in failures.items())
            raise ReservationError(f"not all nodes could be allocated: {said or self.why_lost}", code="not_allocated")
        return self.leases

    def job(self, node_id: str) -> RemoteJob:
        """The job of a node, started or not. Raises KeyError for an unknown node."""
        holding = self._by_node[node_id]
        return RemoteJob(
            self._context.calls, holding.peer, holding.lease_id, node_id=node_id, limits=self._context.limits
        )

    async def start(self, node_id: str, job: Job | NodeJob) -> RemoteJob:
        """Starts a job on a node, and returns it when the provider has accepted it.

        The reservation is allocated first, if it is not yet. The dynamic ports of a NodeJob are published at those of
        the lease. Raises KeyError for an unknown node, ReservationError `not_allocated`, JobRequestError, and
        ValueError if the lease has too few ports.
        """
        holding = self._by_node[node_id]
        if any(one.state is not HoldingState.ALLOCATED for one in self._by_node.values()):
            await self.allocate()
        assert holding.lease is not None
        started = self.job(node_id)
        document = job.document(holding.lease.ports) if isinstance(job, NodeJob) else job
        await started.start(holding.lease.fence, document)
        return started

    async def start_all(
        self,
        jobs: Mapping[str, Job | NodeJob],
        *,
        on_change: Callable[[str, JobStatus], None] = lambda node_id, status: None,
    ) -> dict[str, RemoteJob]:
        """Starts a job on each of these nodes, or on none: returns the jobs by node when all of them run.

        A job that has ended by itself meanwhile did start. `on_change` is told of each state of each job, and must not
        wait. Raises ReservationError `not_started` when a job cannot be started; then, and when it is cancelled, the
        reservation is lost: the block is cancelled and everything is released, which ends the jobs.
        """
        started: dict[str, RemoteJob] = {}
        failures: dict[str, str] = {}
        await self.allocate()

        async def start(node_id: str, job: Job | NodeJob, all_of_it: trio.CancelScope) -> None:
            try:
                one = await self.start(node_id, job)
                status = await one.wait_started(partial(on_change, node_id))
            except (JobRequestError, ValueError) as error:
                failures[node_id] = str(error)
            else:
                if status.exit is None or status.exit.kind not in _NEVER_RAN:
                    started[node_id] = one
                    return
                failures[node_id] = f"{status.exit.message or status.reason or 'it never ran'} ({status.exit.kind})"
            all_of_it.cancel()

        try:
            async with trio.open_nursery() as nursery:
                for node_id, job in jobs.items():
                    nursery.start_soon(start, node_id, job, nursery.cancel_scope)
        finally:
            if len(started) < len(jobs):
                self.lose(list(failures), "its jobs could not be started as a whole")
        if len(started) < len(jobs):
            said = "; ".join(f"{node_id}: {message}" for node_id, message in failures.items())
            raise ReservationError(f"not all jobs could be started: {said or self.why_lost}", code="not_started")
        return {node_id: started[node_id] for node_id in jobs}

    @asynccontextmanager
    async def forward(
        self, node_id: str, port: int, *, local_port: int = 0, address: str = LOOPBACK
    ) -> AsyncIterator[Forward]:
        """Makes a port of a node's job reachable on this machine while the block runs: `RemoteJob.forward`."""
        async with self.job(node_id).forward(port, local_port=local_port, address=address) as forward:
            yield forward

    def lose(self, node_ids: list[str], why: str) -> None:
        """Report nodes as lost, which cancels the block."""
        self._lost_nodes += node_ids
        if not self.lost.is_set():
            self.why_lost = why
            self.lost.set()
            self._block.cancel()

    async def _allocate(self, holding: Holding, failures: dict[str, CallError], all_of_it: trio.CancelScope) -> None:
        try:
            await self._holdings.allocate(holding)
        except CallError as error:
            failures[holding.node_id] = error
            all_of_it.cancel()


@asynccontextmanager
async def open_reservation(
    context: RequesterContext,
    ensemble: EnsembleRequest,
    *,
    strategy: Strategy,
    rules: AssignmentRules,
    want: int,
    ttl: float,
    wait: bool,
    keep: bool,
    progress: ProgressLog,
) -> AsyncIterator[Reservation]:
    """Hold the ensemble while the block runs. Raises ReservationError, or ReservationLostError out of the block."""
    holdings = Holdings(context.calls, context.limits, ttl, context.rng, context.recorder)
    reservation: Reservation | None = None
    done = False
    try:
        async with open_background() as nursery:
            block = trio.CancelScope()
            acquisition = Acquisition(
                context, ensemble, holdings, nursery, strategy=strategy, rules=rules, want=want, ttl=ttl, wait=wait,
                progress=progress,
            )  # fmt: skip
            by_node = await acquisition.run()
            in_order = {node.node_id: by_node[node.node_id] for node in ensemble.request}
            reservation = Reservation(context, holdings, in_order, progress, block)
            acquisition.tell_losses(partial(_lose, reservation))
            progress.at_stage("reserved")
            with block:
                yield reservation
            done = True
    finally:
        kept: list[Holding] = []
        if keep and done and reservation is not None and not reservation.lost.is_set():
            kept = reservation.holdings
        _report(await holdings.release_all(but=kept))
    if reservation.lost.is_set():
        raise ReservationLostError(
            f"the reservation is lost: {reservation.why_lost}", hint="reserve again", node_ids=reservation.lost_nodes
        )


def _lose(reservation: Reservation, holding: Holding) -> None:
    reservation.lose([holding.node_id], f"{holding.node_id} at {holding.bid.peer_id}: {holding.lost}")


def _report(left: list[Holding]) -> None:
    for holding in left:
        fields: tuple[Any, ...] = (holding.lease_id, holding.bid.peer_id, holding.state.value)
        _log.warning("not given back, its peer does not answer: lease=%s peer=%s state=%s", *fields)
