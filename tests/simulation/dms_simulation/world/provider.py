"""An honest provider of the real code, which is killed, rebooted, stalled and lied to."""

from __future__ import annotations

import random
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import trio

from dms_protocols.bidding.service import BidTerms
from dms_protocols.rpc.counts import ServiceCounts
from dms_protocols.rpc.limits import ServiceLimits, Share, Shares
from dms_protocols.rpc.operations import Operations
from dms_protocols.rpc.shares import SharesInUse
from dms_resources.components import MachineResources
from dms_resources.errors import StorageError
from dms_resources.ledger.book import Book
from dms_resources.ledger.leases import Lease
from dms_resources.manager import ResourceManager

from ..network import GOOD_LINK, LinkConditions
from ..providers import open_simulated_manager, provider_operations
from ..scheduling import WorkTimer
from .invariants import oversold, unbounded, uneven
from .jobs import JobRunner, MachineJobs, holders_view
from .machines import BootClock, Disk, MachineTime
from .witness import Tellings, Witness, watched

if TYPE_CHECKING:
    from ..network import SimulatedNetwork
    from .story import Story

__all__ = ["LIMITS", "SHARES", "Provider"]

SHARES = Shares(
    peer=Share(
        requests=50, requests_burst=100, bids=20, bids_burst=60, bytes_in_flight=256 * 1024, operations=16, streams=8,
        commitments=64,
    ),
    total=Share(
        requests=400, requests_burst=800, bids=100, bids_burst=200, bytes_in_flight=1024 * 1024, operations=64,
        streams=32, commitments=256,
    ),
    remembered=6,
)  # fmt: skip
"""Small, so that the limits are reached."""

LIMITS = ServiceLimits(answer_bytes=256 * 1024, idle_deadline=60.0)


class _Life:
    """One run of the provider's program, from its start to its death."""

    def __init__(self, path: Path, clock: BootClock, disk: Disk, timer: WorkTimer) -> None:
        self.path = path
        self.clock = clock
        self.disk = disk
        self.scope = trio.CancelScope()
        self.manager: ResourceManager | None = None
        self.counts = ServiceCounts()
        self.shares = SharesInUse(SHARES, timer)
        self.settled = False
        self.dead = False
        self.seen: tuple[Book, int] | None = None

    def lasts(self) -> bool:
        """Whether it is not dead."""
        return not self.dead

    @property
    def book(self) -> Book | None:
        """The ledger in memory, without ending leases whose deadlines have passed."""
        return self.manager._ledger.book if self.manager is not None else None


class Provider:
    """One machine and the provider that runs on it, over all its lives and boots."""

    def __init__(
        self,
        peer_id: str,
        machine: MachineResources,
        folder: Path,
        network: SimulatedNetwork,
        nursery: trio.Nursery,
        story: Story,
        tellings: Tellings,
        rng: random.Random,
    ) -> None:
        self.peer_id = peer_id
        self.machine = machine
        self.time = MachineTime()
        self.jobs = MachineJobs()
        self.witness = Witness(peer_id, story.fail)
        self.conditions = GOOD_LINK
        self.disturbed_at = 0.0
        # When the owner ended which leases.
        self.evicted: dict[str, float] = {}
        """The last event that may leave a request on its way for longer than its link takes."""
        self.rebooted_at = -1.0
        self._folder = folder
        self._network = network
        self._nursery = nursery
        self._story = story
        self._tellings = tellings
        self._rng = rng
        self._died = trio.Event()
        self._killed_in_attach = False
        self._latency = rng.choice((0.0, 0.005, 0.05))
        self._lives = 0
        self._boots = 0
        self._reboot_unsettled = False
        self._clock = self._boot()
        self._path = folder / peer_id / "0" / "ledger.db"
        self._life: _Life | None = None

    # Life

    @property
    def up(self) -> bool:
        """Whether it answers."""
        return self._life is not None and self._life.manager is not None and not self._life.dead

    @property
    def manager(self) -> ResourceManager:
        """The ledger, while it is up."""
        assert self._life is not None
        assert self._life.manager is not None
        return self._life.manager

    async def start(self) -> None:
        """Start, with the ledger that the last life left. Returns when it answers, or died meanwhile."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        disk = Disk(self._path, random.Random(self._rng.getrandbits(64)), self._latency)
        timer = WorkTimer(random.Random(f"{self._story.seed} {self.peer_id} {self._lives}"))
        self._life = _Life(self._path, self._clock, disk, timer)
        self._lives += 1
        self._died = trio.Event()
        await self._nursery.start(self._live, self._life)

    def kill(self, *, silent: bool = False, reboot: bool = False, log_bytes: int | None = None) -> None:
        """kill -9 at this instant: what the file has now is all that is left; of its log, this many bytes."""
        life = self._life
        if life is None or life.dead:
            return
        life.dead = life.disk.dead = True
        self._died.set()
        self.disturbed_at = trio.current_time()
        with suppress(KeyError):
            self._network.stop_host(self.peer_id, silent=silent)
        self._path = life.disk.copy(self._folder / self.peer_id / str(self._lives), log_bytes)
        life.scope.cancel()
        self._check_counts(life)
        self._reboot_unsettled = self._reboot_unsettled and not life.settled
        if reboot:
            self._clock = self._boot()
            self.jobs.reboot()
            self.rebooted_at = trio.current_time()
            self._reboot_unsettled = True

    def kill_in_write(self) -> None:
        """kill -9 in the middle of the next write, which leaves a part of it in the log."""
        if self._life is not None and not self._life.dead:
            self._life.disk.tear = lambda log_bytes: self._torn(log_bytes)

    def kill_in_attach(self, *, wanted: bool = True) -> None:
        """kill -9 in the write that notes the next job; or no more, if not `wanted`."""
        self._killed_in_attach = wanted

    def _before_attach(self) -> None:
        if self._killed_in_attach:
            self._killed_in_attach = False
            self._story.say("killed in attach", peer=self.peer_id)
            self.kill_in_write()

    async def wait_dead(self) -> None:
        """Return when it is killed."""
        await self._died.wait()

    async def fail_disk(self, seconds: float) -> None:
        """Let the disk of this life fail for this time."""
        life = self._life
        if life is not None:
            life.disk.failing = True
            await trio.sleep(seconds)
            life.disk.failing = False
            self.disturbed_at = trio.current_time()

    async def evict(self, leases: Sequence[Lease]) -> None:
        """The owner ends these leases. For the witness this is as if their holders had released them."""
        life = self._life
        if life is None or life.dead:
            return
        asked = [(self.witness.begin("release", one.holder, one.lease_id), one) for one in leases]
        self.evicted |= {one.lease_id: trio.current_time() for one in leases}
        ended = False
        try:
            await self.manager.evict([one.lease_id for one in leases], reason="the owner wants it back")
            ended = not life.dead
        except StorageError:
            pass
        finally:
            for request, lease in asked:
                if ended:
                    self.witness.released(request, lease.holder, lease.lease_id, lease.holder)
                else:
                    self.witness.unknown(request, (lease.lease_id,))

    def heal(self) -> None:
        """Stop all failures."""
        if self._life is not None:
            self._life.disk.failing = False
            self._life.disk.tear = None

    def undisturbed_since(self, moment: float) -> bool:
        """Whether everything that was sent since then has arrived and was done soon, or never will be."""
        failing = self._life is None or self._life.disk.failing or self._life.disk.tear is not None
        return self.up and not failing and not self.conditions.late and self.disturbed_at < moment

    def set_conditions(self, conditions: LinkConditions) -> None:
        """Change how its connections behave."""
        if self.conditions.late:
            self.disturbed_at = trio.current_time()
        self.conditions = conditions
        with suppress(KeyError):
            self._network.set_conditions(self.peer_id, conditions)

    async def _live(self, life: _Life, *, task_status: Any) -> None:
        opened = trio.current_time(), self.time.wall()
        try:
            with life.scope:
                async with open_simulated_manager(
                    life.path, self.machine, clock=life.clock, worker=life.disk.work
                ) as manager:
                    self._open(life, manager, opened)
                    task_status.started()
                    rng = random.Random(f"{self._story.seed} {self.peer_id} {self._lives} jobs")
                    runner = JobRunner(manager, self.jobs, life.lasts, self._before_attach, self._story, rng)
                    await runner.run()
        except StorageError:
            if not life.dead:
                raise
        finally:
            life.dead = True
            if life.manager is None:
                task_status.started()

    def _open(self, life: _Life, manager: ResourceManager, opened: tuple[float, float]) -> None:
        if life.dead:
            return
        life.manager = manager
        book = life.book
        assert book is not None
        leases = _held(book)
        if self._reboot_unsettled:
            moments, walls = (opened[0], trio.current_time()), (opened[1], self.time.wall())
            self.witness.reopened(leases, moments, walls, sure=self.rebooted_at >= 0 and self._lives_since_boot == 0)
        self._lives_since_boot += 1
        self.witness.loaded()
        self.witness.check_groups(book.leases.keys() | book.ended.keys())
        self.check()
        self._network.add_host(
            self.peer_id, self._operations(life), conditions=self.conditions, limits=LIMITS, counts=life.counts,
            shares=life.shares,
        )  # fmt: skip

    def _operations(self, life: _Life) -> dict[str, Operations]:
        assert life.manager is not None
        operations = provider_operations(
            life.manager, self.peer_id, BidTerms(valid_seconds=120.0), clock=life.clock, shares=SHARES
        )
        return {
            protocol: watched(one, self.witness, self._tellings, lambda: not life.dead)
            for protocol, one in operations.items()
        }

    def _torn(self, log_bytes: int) -> None:
        self._story.say("killed in a write", peer=self.peer_id)
        self.kill(log_bytes=log_bytes)

    def _boot(self) -> BootClock:
        self._boots += 1
        self._lives_since_boot = 0
        return BootClock(self.time, f"{self.peer_id}-boot-{self._boots}")

    # Checks

    def step(self) -> bool:
        """Called after every step of every task: checks the ledger if it has changed, and returns whether it had."""
        life = self._life
        if life is None or life.dead or life.manager is None:
            return False
        book = life.manager._ledger.book
        if life.seen is not None and life.seen[0] is book and life.seen[1] == book.version:
            return False
        if life.seen is not None and life.seen[0] is not book:
            self.witness.loaded()
        life.seen = (book, book.version)
        self.check()
        return True

    def check(self) -> None:
        """Compare the ledger with the machine, with itself and with what was acknowledged."""
        life = self._life
        if life is None or life.dead or life.book is None:
            return
        book, clock = life.book, life.clock
        assert life.manager is not None
        life.settled = life.settled or life.manager._ledger.journal.idle
        wrong = oversold(book) or uneven(book) or unbounded(book, life.shares, LIMITS) or self.jobs.homeless(book)
        if wrong:
            self._story.fail(f"{self.peer_id}: {wrong}")
        self.witness.compare(
            _held(book),
            {key: clock.moment(record.due) for key, record in book.leases.items() if record.due is not None},
        )

    def check_end(self) -> None:
        """All requesters have left: nothing about them may be remembered except in the file."""
        life = self._life
        assert life is not None
        self._check_counts(life)
        total = life.shares._total
        if total.streams or total.operations or total.bytes or life.counts.streams:
            left = f"{total.streams} streams, {total.operations} operations, {total.bytes} bytes"
            self._story.fail(f"{self.peer_id} still counts {left}")

    def _check_counts(self, life: _Life) -> None:
        for (operation, outcome), count in life.counts.requests.items():
            if outcome == "internal":
                self._story.fail(f"{self.peer_id}: {count} requests {operation} failed inside")
            elif outcome != "ok":
                self._story.counts[f"refused {outcome}"] += count
            else:
                self._story.counts[f"answered {operation}"] += count


def _held(book: Book) -> dict[str, Lease]:
    """The leases that have not ended for their holders, as these know them."""
    seen = {key: holders_view(record.lease) for key, record in book.leases.items()}
    return {key: lease for key, lease in seen.items() if lease is not None}
