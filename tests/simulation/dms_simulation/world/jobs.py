"""The jobs of one machine: they run on through the lives of its provider, and end with a reboot.

The provider's part is played by these rules: a job is attached before it is started; one task for
each lease makes all its steps; a job that should end is asked again until it is gone, and only then the ledger is told.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

import trio
from msgspec.structs import replace

from dms_resources.errors import LeaseError, StorageError
from dms_resources.ledger.book import Book
from dms_resources.ledger.events import EventKind
from dms_resources.ledger.leases import Lease, LeaseState
from dms_resources.manager import ResourceManager

from .story import Story

__all__ = ["JobRunner", "MachineJobs", "holders_view"]

_RETRY = 1.0
# A job that is asked to end takes its time, up to a minute.
_GRACES = (0.0, 0.5, 5.0, 20.0, 60.0)


def holders_view(lease: Lease) -> Lease | None:
    """The lease as its holder knows it; None where it has ended for the holder."""
    if lease.state is LeaseState.ENDING:
        return None
    return lease if lease.job is None else replace(lease, job=None)


@dataclass(slots=True, eq=False)
class _Job:
    """A job of a lease, which ends by itself at `ends` in the event loop's time."""

    fence: int
    ends: float


class MachineJobs:
    """What runs on one machine, known to the provider or not."""

    def __init__(self) -> None:
        self._jobs: dict[str, _Job] = {}

    def start(self, lease_id: str, fence: int, seconds: float) -> None:
        """Start the job of a lease; it ends by itself after so many seconds."""
        self._jobs[lease_id] = _Job(fence, trio.current_time() + seconds)

    def end(self, lease_id: str) -> None:
        """Kill the job of a lease, if it runs."""
        self._jobs.pop(lease_id, None)

    def reboot(self) -> None:
        """Nothing runs any more."""
        self._jobs.clear()

    def left(self, lease_id: str) -> float:
        """For how many seconds the job of this lease still runs; 0 when it does not."""
        job = self._jobs.get(lease_id)
        return 0.0 if job is None else max(0.0, job.ends - trio.current_time())

    def homeless(self, book: Book) -> str:
        """Which job runs although its lease does not count; empty when none does."""
        for lease_id, job in self._jobs.items():
            record = book.leases.get(lease_id)
            known = record is not None and record.lease.fence == job.fence and record.lease.runs_job
            if not known and self.left(lease_id):
                return f"the job of {lease_id} runs, and the ledger has {record.lease if record else 'no such lease'}"
        return ""


class JobRunner:
    """What one life of a provider does with the jobs of its leases.

    `alive` says whether this life still lasts; `before_attach` is called before a job is attached.
    """

    def __init__(
        self,
        manager: ResourceManager,
        jobs: MachineJobs,
        alive: Callable[[], bool],
        before_attach: Callable[[], None],
        story: Story,
        rng: random.Random,
    ) -> None:
        self._manager = manager
        self._jobs = jobs
        self._alive = alive
        self._before_attach = before_attach
        self._story = story
        self._rng = rng
        self._wishes: dict[str, trio.Event] = {}

    async def run(self) -> None:
        """Find the jobs of earlier lives again, then run jobs on what is allocated; until it is cancelled."""
        async with self._manager.events() as events, trio.open_nursery() as nursery:
            for lease in self._manager.leases_with_jobs():
                if lease.runs_job:
                    self._story.say("job found", lease=lease.lease_id, runs=self._jobs.left(lease.lease_id) > 0)
                    nursery.start_soon(self._follow, lease)
            async for event in events:
                if event.kind is EventKind.ENDING:
                    self._wish(event.lease_id).set()
                elif event.kind is EventKind.ALLOCATED and self._rng.random() < 0.8:
                    nursery.start_soon(self._start, event.lease_id, event.fence)

    async def _start(self, lease_id: str, fence: int) -> None:
        lease = await self._attach(lease_id, f"{self._rng.getrandbits(64):016x}", fence)
        if lease is None or not self._alive():
            return
        # It may have ended for its holder on the way.
        now = self._manager.lease(lease_id)
        if now is not None and now.state is LeaseState.ALLOCATED:
            self._jobs.start(lease_id, fence, self._rng.choice((0.1, 10.0, 100.0, 1e6)))
            self._story.say("job started", lease=lease_id)
        await self._follow(lease)

    async def _attach(self, lease_id: str, digest: str, fence: int) -> Lease | None:
        self._before_attach()
        # Whether it was attached, nobody knows when the disk failed: the same digest again answers that.
        while True:
            try:
                return await self._manager.attach_job(lease_id, digest, fence=fence)
            except LeaseError:
                lease = self._manager.lease(lease_id)
                mine = lease is not None and lease.job is not None and lease.job.digest == digest
                return lease if mine else None
            except StorageError:
                await trio.sleep(_RETRY)

    async def _follow(self, lease: Lease) -> None:
        """Wait until the job ends, or its lease does and the grace is over; then tell the ledger, until it has it."""
        wish = self._wish(lease.lease_id)
        if lease.state is LeaseState.ENDING:
            wish.set()
        with trio.move_on_after(self._jobs.left(lease.lease_id)):
            await wish.wait()
            self._story.say("job ending", lease=lease.lease_id)
            await trio.sleep(self._rng.choice(_GRACES))
        if not self._alive():
            return
        self._jobs.end(lease.lease_id)
        while True:
            try:
                await self._manager.job_gone(lease.lease_id, fence=lease.fence)
                break
            except StorageError:
                await trio.sleep(_RETRY)
        self._story.say("job gone", lease=lease.lease_id)

    def _wish(self, lease_id: str) -> trio.Event:
        return self._wishes.setdefault(lease_id, trio.Event())
