"""All jobs of this machine: takes them, keeps a task for each, and answers what their holders request.

Rules:

1. One job for each lease and fencing number. The same document again is the same job; another is refused.
2. When a lease ends, for whatever reason, its job has the owner's grace to end.
3. What an executor runs without a record here is ended after a minute: it is of a lease that nobody has any more. When
   an executor does not answer, nothing is concluded from that.
4. A lease in the ledger that has a job, while neither a record nor any executor knows the job, is told that it is gone.
5. No job is started before everything that was there at the start has been looked at once.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager, suppress
from pathlib import Path
from typing import Final

import trio

from dms_protocols.errors import JobError
from dms_protocols.messages.job import Execution, Job, JobOutput, JobStatus, job_digest
from dms_resources.components import CPU, RAM, Disk, Resources
from dms_resources.errors import NotAllocatedError, NotHolderError, ResourcesError, StaleFenceError
from dms_resources.ledger.clock import Clock, SystemClock
from dms_resources.ledger.events import EventKind
from dms_resources.ledger.leases import EndReason, Lease, LeaseState
from dms_resources.manager import ResourceManager
from dms_resources.private_files import write_private
from dms_resources.tasks import Worker, new_worker, open_background
from dms_resources.units import Cores

from ..executors.executor import Executor, ExecutorError, FoundJob, JobSpec
from ..home.state_files import read_state
from .lifecycle import JobTask, job_name
from .settings import JobSettings
from .spool import Spool
from .store import EndKind, JobStore, StoredJob

__all__ = ["JobManager", "open_job_manager"]

_log = logging.getLogger(__name__)

_RECONCILE_SECONDS: Final = 30.0
# A container and its record may cross each other for a moment.
_STRANGER_SECONDS: Final = 60.0
_END_KINDS: Final[Mapping[EndReason, EndKind]] = {
    EndReason.RELEASED: "stopped",
    EndReason.EVICTED: "evicted",
    EndReason.EXPIRED: "expired",
    EndReason.LOST: "expired",
    EndReason.REPAIRED: "expired",
}


@asynccontextmanager
async def open_job_manager(
    manager: ResourceManager,
    executors: Mapping[str, Executor],
    path: Path,
    *,
    peer_id: str,
    settings: JobSettings | None = None,
    clock: Clock | None = None,
    worker: Worker | None = None,
) -> AsyncIterator[JobManager]:
    """Keeps the jobs of a machine while the block runs; at its end they run on, and are found again by the next one.

    `path` is the directory of their records. Raises OSError when it cannot be read.
    """
    worker = worker or new_worker()
    jobs = JobManager(manager, executors, path, peer_id, settings or JobSettings(), clock or SystemClock(), worker)
    await worker(jobs._load)
    async with open_background() as nursery:
        jobs._begin(nursery)
        yield jobs


class JobManager:
    """The jobs of one machine, made by `open_job_manager`."""

    def __init__(
        self,
        manager: ResourceManager,
        executors: Mapping[str, Executor],
        path: Path,
        peer_id: str,
        settings: JobSettings,
        clock: Clock,
        worker: Worker,
    ) -> None:
        self._manager = manager
        self._executors = dict(executors)
        self._store = JobStore(path)
        self._peer_id = peer_id
        self._home_id = ""
        self._settings = settings
        self._clock = clock
        self._worker = worker
        self._tasks: dict[str, JobTask] = {}
        self._by_lease: dict[str, dict[str, JobTask]] = {}
        self._loaded: list[tuple[StoredJob, Job, Spool]] = []
        self._nursery: trio.Nursery
        self._looked = trio.Event()
        self._starting: dict[str, trio.Lock] = {}

    # What holders request. Everything raises JobError and the errors of the ledger.

    async def start(self, lease_id: str, fence: int, job: Job, *, holder: str) -> JobStatus:
        """Takes a job for an allocated lease; durable on return, and started soon. May be cancelled."""
        lease = self._lease(lease_id, holder)
        if lease.fence != fence:
            raise StaleFenceError(f"{lease_id} has another fencing number", lease_id=lease_id)
        name, digest = job_name(self._peer_id, lease_id, fence), job_digest(job).hex()
        lock = self._starting.setdefault(name, trio.Lock())
        try:
            async with lock:
                task = self._tasks.get(name)
                if task is None:
                    task = await self._accept(name, lease, job, digest)
                elif task.record.digest != digest:
                    raise JobError(
                        f"another job is on {lease_id}", code="job_conflict", hint="take another lease for another job"
                    )
                return task.status
        finally:
            if not lock.statistics().tasks_waiting and not lock.locked():
                self._starting.pop(name, None)

    def status(self, lease_id: str, *, holder: str) -> JobStatus:
        """The job of a lease, also of one that ended a while ago. From memory."""
        return self._task(lease_id, holder).status

    @asynccontextmanager
    async def watch(self, lease_id: str, *, holder: str) -> AsyncIterator[AsyncIterator[JobStatus]]:
        """Yields the job now and at each change of its state, until it has exited."""
        async with aclosing(self._watch(self._task(lease_id, holder))) as changes:
            yield changes

    @asynccontextmanager
    async def logs(
        self, lease_id: str, *, holder: str, offset: int = 0, follow: bool = False
    ) -> AsyncIterator[AsyncIterator[JobOutput]]:
        """Yields the output from byte `offset` on; with `follow` until the job has exited and all of it was yielded."""
        async with aclosing(self._output(self._task(lease_id, holder), offset, follow)) as output:
            yield output

    async def stop(self, lease_id: str, *, holder: str, grace: float) -> JobStatus:
        """Says that a job has to end within `grace` seconds, or the owner's longest; on return that is durable."""
        task = self._task(lease_id, holder)
        await task.end("stopped", "", min(grace, self._settings.longest_grace))
        return task.status

    async def connect(self, lease_id: str, *, holder: str, port: int) -> trio.abc.HalfCloseableStream:
        """A connection to a port of a running job. May be cancelled."""
        self._lease(lease_id, holder)
        return await self._task(lease_id, holder).connect(port)

    # What the owner sees.

    @property
    def executors(self) -> tuple[str, ...]:
        """The names of the executors."""
        return tuple(sorted(self._executors))

    def jobs(self) -> list[JobStatus]:
        """All jobs that are known, also those that have exited. From memory."""
        return [task.status for task in self._tasks.values()]

    # Inside.

    def _lease(self, lease_id: str, holder: str) -> Lease:
        lease = self._manager.lease(lease_id)
        if lease is None or lease.state is not LeaseState.ALLOCATED:
            raise NotAllocatedError(f"no allocation {lease_id[:256]!r} is known here", lease_id=lease_id[:256])
        if lease.holder != holder:
            raise NotHolderError(f"{lease_id} is another holder's", lease_id=lease_id)
        return lease

    def _task(self, lease_id: str, holder: str) -> JobTask:
        """The latest job of a lease. What another peer holds is answered as if it were not there."""
        known = self._by_lease.get(lease_id, {})
        found = [task for task in known.values() if task.record.holder == holder]
        if not found:
            raise JobError(f"there is no job on {lease_id[:256]!r}", hint="start one")
        return max(found, key=lambda task: task.record.fence)

    async def _accept(self, name: str, lease: Lease, job: Job, digest: str) -> JobTask:
        await self._looked.wait()
        executor = self._executors.get(job.execution.type)
        if executor is None:
            offered = ", ".join(self.executors) or "none"
            raise JobError(
                f"this peer has no executor {job.execution.type[:128]!r}", code="no_executor", hint=f"it has: {offered}"
            )
        foreign = sorted({port.public for port in job.ports if port.public} - set(lease.ports))
        if foreign:
            raise JobError(f"port {foreign[0]} is not leased", code="job_refused", hint="publish at leased ports alone")
        granted = {gpu.uuid for gpu in lease.resources.gpus}
        now = self._clock.wall()
        record = StoredJob(
            name=name,
            lease_id=lease.lease_id,
            holder=lease.holder,
            fence=lease.fence,
            executor=job.execution.type,
            digest=digest,
            resources=lease.resources,
            ports=lease.ports,
            devices=tuple(gpu for gpu in self._manager.machine.gpus if gpu.uuid in granted),
            created=now,
            since=now,
        )
        spools: list[Spool] = []

        def create() -> None:
            self._store.create(record, job)
            spools.append(self._open_spool(name))

        try:
            executor.check(self._spec(record, job))
        except ExecutorError as error:
            raise JobError(error.message, code="job_refused", hint=error.hint) from error
        # Whole even where the caller goes away: with its record it is a job, and its task attaches it to the lease.
        with trio.CancelScope(shield=True):
            await self._worker(create)
            task = self._take_up(record, job, spools[0])
        await self._manager.attach_job(lease.lease_id, digest, holder=lease.holder, fence=lease.fence)
        return task

    def _spec(self, record: StoredJob, job: Job) -> JobSpec:
        return JobSpec(
            name=record.name,
            peer_id=self._peer_id,
            home_id=self._home_id,
            lease_id=record.lease_id,
            fence=record.fence,
            digest=bytes.fromhex(record.digest),
            job=job,
            resources=record.resources,
            ports=record.ports,
            devices=record.devices,
            created=record.created,
        )

    def _spec_of(self, found: FoundJob, executor: str) -> JobSpec:
        """As much of a job as is needed to remove it."""
        return JobSpec(
            name=found.name,
            peer_id=self._peer_id,
            home_id=self._home_id,
            lease_id=found.lease_id,
            fence=found.fence,
            digest=found.digest,
            job=Job(execution=Execution(type=executor)),
            resources=Resources(cpu=CPU(cores=Cores.of(0)), ram=RAM(size=0), disk=Disk(size=0), gpus=()),
            ports=(),
            devices=(),
            created=found.created,
        )

    def _open_spool(self, name: str) -> Spool:
        return Spool(self._store.directory(name) / "output", kept=self._settings.output_bytes)

    def _take_up(self, record: StoredJob, job: Job, spool: Spool) -> JobTask:
        task = JobTask(
            record,
            spec=self._spec(record, job),
            spool=spool,
            executor=self._executors.get(record.executor),
            store=self._store,
            manager=self._manager,
            settings=self._settings,
            clock=self._clock,
            worker=self._worker,
        )
        self._tasks[record.name] = task
        self._by_lease.setdefault(record.lease_id, {})[record.name] = task
        self._nursery.start_soon(task.run)
        return task

    # Blocking, before anything else.
    def _load(self) -> None:
        self._store.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._home_id = self._read_home_id()
        for record, job in self._store.load():
            self._loaded.append((record, job, self._open_spool(record.name)))

    def _read_home_id(self) -> str:
        """A random name of this home: two homes of one key, or a copy of one, never touch each other's jobs."""
        path = self._store.path / "id"
        with suppress(OSError, UnicodeDecodeError):
            found = read_state(path, 64).decode("ascii").strip()
            if len(found) == 16 and found.isalnum():
                return found
        made = secrets.token_hex(8)
        write_private(path, f"{made}\n".encode())
        return made

    def _begin(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        for record, job, spool in self._loaded:
            self._take_up(record, job, spool)
        self._loaded.clear()
        nursery.start_soon(self._keep_in_step)
        nursery.start_soon(self._reconcile_at_intervals)

    async def _keep_in_step(self) -> None:
        """Ends the job of each lease that ends. What it misses the next reconciliation finds."""
        while True:
            try:
                async with self._manager.events() as events:
                    async for event in events:
                        if event.kind in (EventKind.ENDING, EventKind.ENDED):
                            for task in list(self._by_lease.get(event.lease_id, {}).values()):
                                await self._check_lease(task)
            except ResourcesError as error:
                _log.warning("the events of leases cannot be read: %s", error.message)
                await trio.sleep(_RECONCILE_SECONDS)

    async def _check_lease(self, task: JobTask) -> None:
        record = task.record
        lease = self._manager.lease(record.lease_id)
        if lease is not None and lease.state is LeaseState.ALLOCATED and lease.fence == record.fence:
            return
        if record.closed is None:
            with suppress(OSError):
                await task.close()
        if record.exit is not None or record.end not in (None, "stopped"):
            return
        ended = lease.ended if lease is not None and lease.fence == record.fence else None
        kind: EndKind = _END_KINDS[ended.reason] if ended is not None else "expired"
        reason = ended.detail if ended is not None else "its lease has ended"
        try:
            await task.end(kind, reason, self._settings.grace)
        except OSError as error:
            _log.warning("the end of the job on %s cannot be written: %s", record.lease_id, error.strerror)

    async def _reconcile_at_intervals(self) -> None:
        while True:
            await self._reconcile()
            self._looked.set()
            for task in list(self._tasks.values()):
                await self._check_lease(task)
            await self._forget()
            await trio.sleep(_RECONCILE_SECONDS)

    async def _reconcile(self) -> None:
        """Compares what runs with what is known; where an executor does not answer, nothing of it is concluded."""
        everything: dict[str, FoundJob] = {}
        whole = True
        for name, executor in self._executors.items():
            try:
                found = await executor.list(self._peer_id, self._home_id)
            except ExecutorError as error:
                _log.warning("executor %s: %s", name, error.message)
                whole = False
                continue
            for one in found:
                everything[one.name] = one
                await self._end_stranger(executor, one)
        if not whole:
            return
        for lease in self._manager.leases_with_jobs():
            name = job_name(self._peer_id, lease.lease_id, lease.fence)
            if name not in self._tasks and name not in everything and name not in self._starting:
                with suppress(ResourcesError):
                    await self._manager.job_gone(lease.lease_id, fence=lease.fence)

    async def _end_stranger(self, executor: Executor, found: FoundJob) -> None:
        task = self._tasks.get(found.name)
        if task is not None and not task.record.gone:
            return
        if task is None and self._clock.wall() - found.created < _STRANGER_SECONDS:
            return
        _log.warning("ending job %s: no lease of this peer has it", found.name)
        with suppress(ExecutorError):
            await executor.remove(self._spec_of(found, executor.name))

    async def _forget(self) -> None:
        """Forgets jobs whose leases ended a while ago, the oldest first where there are too many."""
        closed = [task for task in self._tasks.values() if task.record.gone and task.record.closed is not None]
        closed.sort(key=lambda task: task.record.closed or 0.0, reverse=True)
        oldest, size = self._clock.wall() - self._settings.retention, 0
        for index, task in enumerate(closed):
            size += task.kept_bytes
            beyond = index >= self._settings.retained or size > self._settings.retained_bytes
            if beyond or (task.record.closed or 0.0) < oldest:
                await self._forget_task(task.record.name, task.record.lease_id)

    async def _forget_task(self, name: str, lease_id: str) -> None:
        del self._tasks[name]
        del self._by_lease[lease_id][name]
        if not self._by_lease[lease_id]:
            del self._by_lease[lease_id]
        with suppress(OSError):
            await self._worker(lambda: self._store.remove(name))

    async def _watch(self, task: JobTask) -> AsyncGenerator[JobStatus, None]:
        told: tuple[object, ...] | None = None
        while True:
            changed, status = task.changed, task.status
            said = (status.state, status.reason, status.exit)
            if said != told:
                told = said
                yield status
            if status.exit is not None:
                return
            await changed.wait()

    async def _output(self, task: JobTask, offset: int, follow: bool) -> AsyncGenerator[JobOutput, None]:
        while True:
            changed, exited = task.changed, task.record.exit is not None
            found = await task.read_output(offset)
            for piece in found:
                yield piece
                offset = piece.offset + len(piece.data)
            if not found:
                if exited or not follow:
                    return
                await changed.wait()
