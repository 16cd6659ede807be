"""What commands do with jobs at other peers, over a host of their own with the home's key."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Final

import trio
from msgspec.structs import asdict, replace

from dms_host.keys.identity import load_or_create_identity
from dms_protocols.messages.job import JobStatus

from ..config.ensemble import EnsembleFile
from ..connections import open_connections
from ..discovery.settings import DiscoverySettings
from ..home.home import Home
from ..home.host import open_home_host
from ..home.lease_journal import LeaseJournal
from ..owner.reserving import reserved_report
from ..requesting import AssignmentRules, RequesterLimits
from ..requesting.errors import JobRequestError
from ..requesting.forwarding import Forward
from ..requesting.jobs import RemoteJob
from ..requesting.node_jobs import NodeJob
from ..requesting.peers import CallError, PeerCalls, PeerRef
from ..requesting.progress import OnProgress
from ..requesting.reports import HomeJob, HomeJobs, PeerEndedLease, ReleasedLeases, UnansweredPeer
from ..signing import EnvelopeChecker
from .child_process import stopped_by_signals
from .job_names import NamedJob
from .job_output import JobPrinter, exit_code
from .search import open_home_requester

__all__ = ["deploy_ensemble", "follow_logs", "forward_port", "list_jobs", "stop_jobs"]

# A command about jobs gives up on a provider sooner than a program does.
_LIMITS: Final = RequesterLimits(job_patience=10.0)
# Bids for each node among which the strategy chooses.
_WANT: Final = 3
# Providers that are asked at the same time.
_AT_ONCE: Final = 16


async def deploy_ensemble(
    printer: JobPrinter,
    home: Home,
    settings: DiscoverySettings,
    ensemble: EnsembleFile,
    *,
    strategy: str,
    currency: str,
    ttl: float,
    timeout: float,  # noqa: ASYNC109  # a part of the request
    wait: bool,
    detach: bool,
    remove: bool,
    token: bytes | None = None,
    on_progress: OnProgress | None = None,
) -> int:
    """Take the ensemble, start all its jobs or none, and show their output until all have exited.

    Returns the exit code of the worst job. At the end everything is released, which ends what still runs. With `detach`
    the jobs run on instead, and 0 is returned when all of them run; `remove` then releases each lease when its job
    ends. Raises ReservationError, ReservationLostError, JobRequestError, StrategyError, AddressError, IdentityError,
    and StoppedError for SIGTERM and SIGHUP. Only for the main thread. May be cancelled.
    """
    request = ensemble.asked(deadline=time.time() + timeout)
    rules = AssignmentRules(different_peers=ensemble.different_peers, pins=ensemble.pins)
    # Where every node has its peer there is nothing to choose.
    want = 1 if len(ensemble.pins) == len(ensemble.nodes) else _WANT
    jobs = ensemble.jobs if not (detach and remove) else _removed(ensemble.jobs)
    journal, taken = LeaseJournal(home.path), dict[str, str]()
    kept = False
    try:
        async with (
            open_home_requester(home, settings, token) as requester,
            # Within the host: what is held is released over its connections.
            stopped_by_signals(),
            requester.reserve(
                request, strategy=strategy, currency=currency, rules=rules, want=want, ttl=ttl, wait=wait, keep=detach,
                on_progress=on_progress,
            ) as reservation,
        ):  # fmt: skip
            for node_id, peer_id in reservation.peers.items():
                # Before anything else: what outlives this process is found by the providers' lists.
                given = [address for address in settings.bootstrap if address.endswith(f"/p2p/{peer_id}")]
                # A peer behind a relay may announce nothing that leads to it; what the user gave does.
                journal.note_provider(peer_id, [*given, *reservation.addrs[node_id]])
            await reservation.allocate()
            for node_id, lease in reservation.leases.items():
                taken[lease.lease_id] = reservation.peers[node_id]
                # A provider of an earlier release does not tell the names back.
                named = replace(lease, ensemble_id=request.id, node_id=node_id)
                journal.note(reservation.peers[node_id], [named], kept=detach)
            started = await reservation.start_all(jobs, on_change=printer.state)
            printer.deployed(reserved_report(request.id, reservation, allocated=True))
            if detach:
                kept = True
                return 0
            ended = await _follow(list(started.values()), printer)
    finally:
        if not kept:
            for lease_id, peer_id in taken.items():
                journal.forget(peer_id, [lease_id])
    return max((exit_code(status.exit) for status in ended if status.exit is not None), default=0)


async def follow_logs(
    home: Home,
    jobs: Sequence[NamedJob],
    printer: JobPrinter,
    *,
    follow: bool,
    offset: int = 0,
    token: bytes | None = None,
) -> None:
    """Show the output of jobs, with `follow` until all have exited. Raises JobRequestError. May be cancelled."""
    async with _open_jobs(home, jobs, token, RequesterLimits()) as opened, trio.open_nursery() as nursery:
        for job in opened:
            nursery.start_soon(partial(_show_output, job, printer, follow=follow, offset=offset))


async def stop_jobs(
    home: Home, jobs: Sequence[NamedJob], printer: JobPrinter, *, grace: float, keep: bool, token: bytes | None = None
) -> ReleasedLeases:
    """Stop jobs and wait until they have exited; release their leases, unless `keep`.

    What could not be stopped or released is in the answer. May be cancelled.
    """
    released: list[PeerEndedLease] = []
    failed: list[UnansweredPeer] = []

    async def stop(calls: PeerCalls, job: RemoteJob, named: NamedJob) -> None:
        lease = named.held.lease
        try:
            try:
                await job.stop(grace=grace)
                printer.state(job.node_id, await job.wait())
            except JobRequestError as error:
                if error.code not in ("no_job", "protocol_not_supported"):
                    raise
            if not keep:
                ended = await calls.release(_peer(named), lease.lease_id, fence=lease.fence, budget=_LIMITS.call_budget)
                released.append(PeerEndedLease(**asdict(ended), peer_id=named.peer.peer_id))
                LeaseJournal(home.path).forget(named.peer.peer_id, [lease.lease_id])
        except (JobRequestError, CallError) as error:
            failed.append(
                UnansweredPeer(
                    peer_id=named.peer.peer_id, code=error.code, message=error.message, lease_id=lease.lease_id
                )
            )

    async with _open_calls(home, token) as calls, trio.open_nursery() as nursery:
        for named in jobs:
            nursery.start_soon(stop, calls, _job(calls, named, _LIMITS), named)
    return ReleasedLeases(released=tuple(released), failed=tuple(failed))


async def list_jobs(home: Home, leases: Sequence[NamedJob], token: bytes | None = None) -> HomeJobs:
    """The jobs on these leases, as their providers tell them now. May be cancelled."""
    found: dict[str, HomeJob] = {}
    unanswered: list[UnansweredPeer] = []
    turns = trio.CapacityLimiter(_AT_ONCE)

    async def ask(job: RemoteJob, named: NamedJob) -> None:
        lease = named.held.lease
        async with turns:
            try:
                status = await job.status()
            except JobRequestError as error:
                if error.code not in ("no_job", "protocol_not_supported"):
                    unanswered.append(
                        UnansweredPeer(
                            peer_id=job.peer_id, code=error.code, message=error.message, lease_id=lease.lease_id
                        )
                    )
                return
        found[lease.lease_id] = HomeJob(
            ensemble_id=lease.ensemble_id,
            node_id=lease.node_id,
            peer_id=job.peer_id,
            lease_id=lease.lease_id,
            job=status,
        )

    limits = RequesterLimits(job_patience=0.0)
    async with _open_calls(home, token) as calls, trio.open_nursery() as nursery:
        for named in leases:
            nursery.start_soon(ask, _job(calls, named, limits), named)
    ordered = [found[one.held.lease.lease_id] for one in leases if one.held.lease.lease_id in found]
    return HomeJobs(jobs=tuple(ordered), unanswered=tuple(unanswered))


async def forward_port(
    home: Home,
    job: NamedJob,
    port: int,
    *,
    local_port: int,
    address: str,
    tell: Callable[[Forward], None],
    on_failure: Callable[[str], None],
    token: bytes | None = None,
) -> None:
    """Forward a local port to a port of a job until cancelled. `tell` gets the open port, `on_failure` why a connection
    was not forwarded. Raises JobRequestError if there is no such job, and PeerError `listen_failed`.
    """
    async with stopped_by_signals(), _open_jobs(home, [job], token, _LIMITS) as (remote,):
        await remote.status()
        async with remote.forward(port, local_port=local_port, address=address, on_failure=on_failure) as forward:
            tell(forward)
            await trio.sleep_forever()


async def _follow(jobs: Sequence[RemoteJob], printer: JobPrinter) -> list[JobStatus]:
    """Show the output of all jobs until they have exited."""
    ended: dict[str, JobStatus] = {}

    async def one(job: RemoteJob) -> None:
        await _show_output(job, printer, follow=True, offset=0)
        ended[job.lease_id] = status = await job.wait()
        printer.state(job.node_id, status)

    async with trio.open_nursery() as nursery:
        for job in jobs:
            nursery.start_soon(one, job)
    return [ended[job.lease_id] for job in jobs]


async def _show_output(job: RemoteJob, printer: JobPrinter, *, follow: bool, offset: int) -> None:
    async with job.logs(offset=offset, follow=follow) as pieces:
        async for piece in pieces:
            printer.output(job.node_id, piece)
    printer.finish(job.node_id)


@asynccontextmanager
async def _open_calls(home: Home, token: bytes | None) -> AsyncIterator[PeerCalls]:
    home.prepare()
    identity = await trio.to_thread.run_sync(load_or_create_identity, home.key_path)
    async with open_home_host(home, identity) as host, open_connections(host) as pool:
        yield PeerCalls(pool, EnvelopeChecker(), token=token)


@asynccontextmanager
async def _open_jobs(
    home: Home, jobs: Sequence[NamedJob], token: bytes | None, limits: RequesterLimits
) -> AsyncIterator[list[RemoteJob]]:
    async with _open_calls(home, token) as calls:
        yield [_job(calls, named, limits) for named in jobs]


def _job(calls: PeerCalls, named: NamedJob, limits: RequesterLimits) -> RemoteJob:
    return RemoteJob(calls, _peer(named), named.held.lease.lease_id, node_id=named.name, limits=limits)


def _peer(named: NamedJob) -> PeerRef:
    return PeerRef(named.peer.peer_id, named.peer.addrs)


def _removed(jobs: Mapping[str, NodeJob]) -> dict[str, NodeJob]:
    return {node_id: replace(job, job=replace(job.job, remove=True)) for node_id, job in jobs.items()}
