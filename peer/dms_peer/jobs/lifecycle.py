"""The life of one job: one task does everything to it, and others only say that it has to end.

    pending ─ pulling ─ starting ─ running ─ ending ─ exited ─ gone
       └─────────┴─────────┴──── its end is wished ──┘

Rules:

1. What is done next follows from what the executor finds, never from the answer to an earlier call: a call that failed
   may have been carried out. So every step can be repeated after an error, and after a crash at any moment.
2. Before a step is taken the record of the job says so, on the disk. Before anything is started the ledger knows that
   the lease has a job.
3. An executor that does not answer ends nothing and frees nothing: the task tries again, for as long as it takes.
4. The exit is on the disk before what is left of the job is removed; the ledger frees its lease after that.
5. Cancelled, the task leaves the job running: the peer may stop and start again.
"""

from __future__ import annotations

import hashlib
import logging
import math
import signal
from contextlib import suppress
from typing import Any, Final

import trio
from msgspec.structs import replace

from dms_protocols.errors import JobError
from dms_protocols.messages.job import JobConsumption, JobExit, JobOutput, JobStatus
from dms_resources.errors import LeaseError, ResourcesError
from dms_resources.ledger.clock import Clock
from dms_resources.manager import ResourceManager
from dms_resources.tasks import Worker, open_background

from ..executors.executor import Executor, ExecutorError, FoundJob, JobSpec, OutputPiece
from .settings import JobSettings
from .spool import Spool
from .store import EndKind, JobStore, StoredJob

__all__ = ["JobTask", "job_name"]

_log = logging.getLogger(__name__)

_FIRST_RETRY: Final = 0.5
_LONGEST_RETRY: Final = 30.0
# Twice not there, so long apart, is gone.
_LOST_SECONDS: Final = 2.0
_SAMPLE_SECONDS: Final = 5.0
# How long the rest of the output may take once the job has exited.
_DRAIN_SECONDS: Final = 60.0
_KILL_AGAIN_SECONDS: Final = 10.0


class JobTask:
    """One job. `record` is what is on the disk; `changed` is set and replaced with every change and all new output.

    `trouble` says what stands in the way now, for the owner; empty when nothing does.
    """

    def __init__(
        self,
        record: StoredJob,
        *,
        spec: JobSpec,
        spool: Spool,
        executor: Executor | None,
        store: JobStore,
        manager: ResourceManager,
        settings: JobSettings,
        clock: Clock,
        worker: Worker,
    ) -> None:
        self.record = record
        self.changed = trio.Event()
        self.trouble = ""
        self.consumption: JobConsumption | None = None
        self._spec = spec
        self._spool = spool
        self._executor = executor
        self._store = store
        self._manager = manager
        self._settings = settings
        self._clock = clock
        self._worker = worker
        self._writing = trio.Lock()
        self._spooling = trio.Lock()
        self._woken = trio.Event()
        self._preparing: trio.CancelScope | None = None
        self._drained = False
        self._absent = 0
        # When it is killed, by the clock that nobody sets.
        self._due = math.inf
        if record.end is not None:
            self._due = clock.steady() + min(record.end_grace, record.end_by - clock.wall())

    @property
    def status(self) -> JobStatus:
        """The job as it is now."""
        record = self.record
        return JobStatus(
            lease_id=record.lease_id,
            fence=record.fence,
            digest=self._spec.digest,
            executor=record.executor,
            state=record.state,
            created=record.created,
            since=record.since,
            exit=record.exit,
            reason=(self.trouble or record.reason)[:512],
            output=self._spool.end,
            dropped=self._spool.dropped,
            ports=tuple(port for port in self._spec.job.ports if port.public),
            usage=self.consumption if record.exit is None else None,
        )

    @property
    def kept_bytes(self) -> int:
        """Bytes of its output that are on the disk."""
        return self._spool.end - self._spool.dropped

    async def end(self, kind: EndKind, reason: str, grace: float) -> None:
        """Says that the job has to end, within `grace` seconds. On return that is on the disk.

        A later wish gives no more time, and the owner's will counts before the holder's. Raises OSError. May be
        cancelled.
        """
        record, due = self.record, self._clock.steady() + grace
        if record.exit is not None:
            return
        sooner, weightier = due < self._due, record.end in (None, "stopped") and kind != "stopped"
        if record.end is not None and not sooner and not weightier:
            return
        changes: dict[str, Any] = {}
        if record.end is None or weightier:
            changes |= {"end": kind, "end_reason": reason[:512]}
        if sooner:
            self._due = due
            changes |= {"end_by": self._clock.wall() + grace, "end_grace": grace}
        if record.state == "running":
            changes |= {"state": "ending", "since": self._clock.wall()}
        await self._update(**changes)
        if self._preparing is not None:
            self._preparing.cancel()
        self.wake()

    def wake(self) -> None:
        """Lets the task look again now, where it waits to try something once more."""
        self._woken.set()
        self._woken = trio.Event()

    async def close(self) -> None:
        """Notes that its lease has ended. Raises OSError. May be cancelled."""
        await self._update(closed=self._clock.wall())

    async def read_output(self, offset: int) -> list[JobOutput]:
        """The output from byte `offset` on, about 1 MiB of it. Raises OSError. May be cancelled."""
        found: list[JobOutput] = []
        async with self._spooling:
            await self._worker(lambda: found.extend(self._spool.read(offset)))
        return found

    async def run(self) -> None:
        """Does what there is to do until the job is gone. May be cancelled; the job then runs on."""
        delay = _FIRST_RETRY
        while not self.record.gone:
            woken = self._woken
            try:
                await self._advance()
                delay, self.trouble = _FIRST_RETRY, ""
            except (ExecutorError, ResourcesError, OSError) as error:
                self._note_trouble(error)
                with trio.move_on_after(delay):
                    await woken.wait()
                delay = min(2 * delay, _LONGEST_RETRY)
            except Exception:
                # A fault of ours in one job must not end the peer, nor the other jobs.
                self.trouble = "internal error: the peer's log has the details"
                _log.exception("job on lease %s", self.record.lease_id)
                await trio.sleep(_LONGEST_RETRY)

    async def connect(self, port: int) -> trio.abc.HalfCloseableStream:
        """A connection to a port of the job. Raises JobError."""
        if self.record.state != "running" or self._executor is None:
            raise JobError(f"the job on {self.record.lease_id} is not running", code="job_not_running")
        if port not in {declared.private for declared in self._spec.job.ports}:
            raise JobError(f"the job does not name port {port}", code="port_closed")
        try:
            return await self._executor.connect(self._spec, port)
        except ExecutorError as error:
            code = "executor_unavailable" if error.code == "unavailable" else "port_closed"
            raise JobError(error.message, code=code, hint=error.hint) from error

    # The steps

    async def _advance(self) -> None:
        record = self.record
        if record.exit is not None:
            await self._clear()
            return
        executor = self._required()
        found = await executor.find(self._spec)
        if found is not None and (found.digest, found.fence) != (self._spec.digest, self._spec.fence):
            # The name is ours, so it is of an earlier life of this lease.
            await executor.remove(self._spec)
            return
        if found is None:
            await self._without_job(executor)
            return
        self._absent = 0
        if found.state == "running":
            await self._attend(executor, found)
        elif found.state == "exited":
            await self._collect(executor, found)
        elif record.end is not None:
            await self._never_ran()
        else:
            await self._launch(executor)

    async def _without_job(self, executor: Executor) -> None:
        record = self.record
        if not record.ran:
            await (self._launch(executor) if record.end is None else self._never_ran())
            return
        self._absent += 1
        if self._absent < 2:
            await trio.sleep(_LOST_SECONDS)
            return
        message = f"{record.executor} does not know the job any more"
        await self._exited(JobExit(kind="lost", message=message))

    async def _launch(self, executor: Executor) -> None:
        try:
            # Before anything of it runs: capacity that a job uses is never free.
            await self._manager.attach_job(
                self.record.lease_id, self.record.digest, holder=self.record.holder, fence=self.record.fence
            )
        except LeaseError as error:
            await self._exited(JobExit(kind="failed", message=error.message[:512]))
            return
        try:
            executor.check(self._spec)
            await self._enter("pulling")
            with trio.CancelScope() as self._preparing:
                if self.record.end is None:
                    await executor.prepare(self._spec, self._tell_progress)
            self._preparing = None
            if self.record.end is not None:
                return
            await self._enter("starting")
            # From here on it may run whatever is answered; it is looked up before anything else is done.
            await executor.start(self._spec)
        except ExecutorError as error:
            if error.code == "unavailable":
                raise
            await self._exited(JobExit(kind="failed", message=error.message[:512]))
        finally:
            self._preparing = None

    async def _attend(self, executor: Executor, found: FoundJob) -> None:
        """Stays with a job that runs until it has exited."""
        if not self.record.ran or self.record.state not in ("running", "ending"):
            state = "running" if self.record.end is None else "ending"
            await self._enter(state, ran=True)
        if found.pid is not None:
            with suppress(LeaseError):
                await self._manager.attach_processes(self.record.lease_id, [found.pid], cgroup=found.cgroup)
        async with open_background(self._follow, self._sample, self._end_in_time):
            await executor.wait(self._spec)
        # What it left is collected as it is found.

    async def _end_in_time(self) -> None:
        """Ends the job as is wished: SIGTERM, and SIGKILL when its time is over."""
        executor = self._required()
        while True:
            woken = self._woken
            try:
                record = self.record
                if record.end is None:
                    await woken.wait()
                elif self._clock.steady() >= self._due:
                    if not record.terminated:
                        # Its grace passed while this peer was away.
                        await self._update(terminated=True)
                    await executor.signal(self._spec, signal.SIGKILL)
                    await trio.sleep(_KILL_AGAIN_SECONDS)
                elif not record.terminated:
                    # Written before: a second SIGTERM makes some programs end at once.
                    await self._update(terminated=True)
                    await executor.signal(self._spec, signal.SIGTERM)
                else:
                    with trio.move_on_after(self._due - self._clock.steady()):
                        await woken.wait()
            except (ExecutorError, OSError) as error:
                self._note_trouble(error)
                await trio.sleep(_FIRST_RETRY)

    async def _collect(self, executor: Executor, found: FoundJob) -> None:
        """Takes the rest of the output of a job that exited, and then its exit."""
        cut = ""
        with trio.move_on_after(_DRAIN_SECONDS) as draining:
            await self._drain(executor)
            await self._read_again(executor)
        if draining.cancelled_caught:
            cut = "the end of its output could not be read"
        how = found.exit or JobExit(kind="lost", message=f"{self.record.executor} does not say how it ended")
        await self._exited(replace(how, message="; ".join(filter(None, (how.message, cut)))[:512]))

    async def _never_ran(self) -> None:
        await self._exited(JobExit(kind="failed", message="it had not started yet"))

    async def _exited(self, how: JobExit) -> None:
        end = self.record.end
        if end is not None and (self.record.terminated or how.kind in ("signal", "lost", "failed")):
            said = self.record.end_reason or how.message
            how = replace(how, kind=end, message=said[:512])
        await self._enter("exited", exit=how, reason="", output=self._spool.end, dropped=self._spool.dropped)

    async def _clear(self) -> None:
        """Removes what is left of the job, and lets the ledger free what it used."""
        record = self.record
        if self._executor is not None:
            await self._executor.remove(self._spec)
        elif record.ran:
            self._required()
        how = record.exit.describe() if record.exit is not None else ""
        await self._manager.job_gone(record.lease_id, fence=record.fence, how=how)
        await self._update(gone=True)
        if self._spec.job.remove:
            with suppress(LeaseError):
                await self._manager.release(record.lease_id, holder=record.holder, fence=record.fence)

    def _required(self) -> Executor:
        if self._executor is None:
            raise ExecutorError(
                f"this peer has no executor {self.record.executor} any more",
                code="unavailable",
                hint="name it in peer.yaml again until its jobs have ended",
            )
        return self._executor

    # Output and use

    async def _follow(self) -> None:
        executor = self._required()
        while True:
            try:
                await self._drain(executor, self._settings.output_rate)
                return
            except (ExecutorError, OSError) as error:
                self._note_trouble(error)
                await trio.sleep(_FIRST_RETRY)

    async def _drain(self, executor: Executor, rate: float = math.inf) -> None:
        """Takes the output from where it was left until the job has exited and all of it is there."""
        if self._drained:
            return
        async with executor.output(self._spec, self._spool.end) as pieces:
            async for piece in pieces:
                await self._keep(piece)
                await trio.sleep(len(piece.data) / rate)
        self._drained = True

    async def _read_again(self, executor: Executor) -> None:
        """Puts the output right where it was followed with a gap: what an exited job wrote is read as a whole.

        Podman 4.3 was seen to lose a line of a log that is followed on a busy machine.
        """
        if self._spool.end > self._settings.output_bytes:
            # Parts of it are not kept, here or by the engine.
            return
        pieces: list[OutputPiece] = []
        async with executor.output(self._spec, 0) as output:
            async for piece in output:
                pieces.append(piece)
        whole = b"".join(piece.data for piece in pieces)
        if len(whole) > self._settings.output_bytes or any(piece.dropped for piece in pieces):
            return
        async with self._spooling:
            await self._worker(lambda: self._put_right(whole, pieces))
        self._tell()

    def _put_right(self, whole: bytes, pieces: list[OutputPiece]) -> None:
        kept = b"".join(piece.data for piece in self._spool.read(0, len(whole) + 1))
        if kept != whole and len(whole) >= len(kept):
            _log.warning("job on lease %s: its output was followed with gaps and is read anew", self.record.lease_id)
            self._spool.replace(pieces)

    async def _keep(self, piece: OutputPiece) -> None:
        async with self._spooling:
            await self._worker(lambda: self._spool.append([piece]))
        self._tell()

    async def _sample(self) -> None:
        executor = self._required()
        while True:
            with suppress(ExecutorError):
                self.consumption = await executor.usage(self._spec)
            await trio.sleep(_SAMPLE_SECONDS)

    def _tell_progress(self, message: str) -> None:
        self.record = replace(self.record, reason=message[:512])
        self._tell()

    # The record

    async def _enter(self, state: str, **changes: Any) -> None:
        await self._update(state=state, since=self._clock.wall(), reason=changes.pop("reason", ""), **changes)
        _log.info("job on lease %s: %s", self.record.lease_id, state)

    async def _update(self, **changes: Any) -> None:
        async with self._writing:
            record = replace(self.record, **changes)
            await self._worker(lambda: self._store.write(record))
            self.record = record
        self._tell()

    def _tell(self) -> None:
        self.changed.set()
        self.changed = trio.Event()

    def _note_trouble(self, error: ExecutorError | ResourcesError | OSError) -> None:
        said = error.strerror or str(error) if isinstance(error, OSError) else error.message
        if said != self.trouble:
            _log.warning("job on lease %s: %s", self.record.lease_id, said)
        self.trouble = said
        self._tell()


def job_name(peer_id: str, lease_id: str, fence: int) -> str:
    """The name of a job on this machine, made of its peer, its lease and its fencing number."""
    lease = hashlib.sha256(lease_id.encode()).hexdigest()[:16]
    return f"dms-{peer_id[-8:]}-{lease}-{fence}"
