"""One world for each seed, which decides everything that happens in it."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from unittest.mock import patch

import trio

from dms_host.errors import DialError
from dms_protocols.errors import ProtocolError
from dms_protocols.messages.allocation import (
    AllocateRequest,
    CommitAnswer,
    CommitRequest,
    LeaseAnswer,
    ReleaseAnswer,
    ReleaseRequest,
)
from dms_protocols.protocol_ids import ALLOCATION_PROTOCOL
from dms_resources.ledger.leases import LeaseState

from ..network import GOOD_LINK, LinkConditions, SimulatedNetwork
from ..providers import simulated_machine
from ..scheduling import run_seeded
from .attackers import Attacker
from .liars import LIES, Liar, babbler
from .machines import MOST_SKEW
from .provider import Provider
from .story import BrokenInvariantError, Story
from .tenants import Block, Tenant, check_block
from .witness import Tellings

__all__ = ["run_world"]

_SECONDS = 600.0
# The longest time that a write may take, and then a commitment lasts.
_LATENESS = 20.0
_LONGEST_TTL = 60.0
# So long a fault waits for a job.
_JOB_SECONDS = 200.0
# A job that is asked to end is gone by then.
_LONGEST_GRACE = 61.0


def run_world(seed: int, directory: Path) -> Story:
    """Run the world of one seed, the same for the same seed. Raises BrokenInvariantError with the events before."""
    story = Story(seed)
    failure: BaseException | None = None
    try:
        run_seeded(_World(story, directory).play, seed=seed)
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        failure = error
    if story.broken or failure is not None:
        told = "\n".join(story.events[-50:])
        raise BrokenInvariantError(f"seed {seed}: {story.broken or repr(failure)}, after\n{told}") from failure
    return story


class _Steps(trio.abc.Instrument):
    """Checks everything after every step of every task."""

    def __init__(self, world: _World) -> None:
        self._world = world

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        try:
            self._world.look()
        except BaseException as error:
            # Trio removes an instrument that raises, and continues.
            self._world.story.fail(repr(error))


class _World:
    def __init__(self, story: Story, directory: Path) -> None:
        self.story = story
        self._directory = directory
        self._rng = random.Random(story.seed)
        self._providers: dict[str, Provider] = {}
        self._blocks: list[Block] = []
        self._reported: set[str] = set()
        self._tellings = Tellings()
        self._network: SimulatedNetwork

    async def play(self) -> None:
        """Begin, run and end."""
        before = trio.lowlevel.current_statistics().tasks_living
        steps = _Steps(self)
        trio.lowlevel.add_instrument(steps)
        with self.story.world, _reported_leases(self._reported), _nobody_listening():
            async with trio.open_nursery() as nursery:
                await self._begin(nursery)
                await self._live()
                await self._end()
                nursery.cancel_scope.cancel()
        trio.lowlevel.remove_instrument(steps)
        left = trio.lowlevel.current_statistics().tasks_living - before
        if left:
            self.story.fail(f"{left} tasks are left")

    def look(self) -> None:
        """Compare everything observable with the invariants."""
        for provider in self._providers.values():
            if provider.step():
                self.story.counts["steps of ledgers"] += 1
                for block in self._blocks:
                    wrong = check_block(block, self._providers)
                    if wrong:
                        self.story.fail(wrong)

    # Beginning

    async def _begin(self, nursery: trio.Nursery) -> None:
        rng = self._rng
        self._network = SimulatedNetwork(nursery, random.Random(rng.getrandbits(64)))
        for number in range(rng.choice((2, 2, 2, 2, 3, 3, 4, 5))):
            peer_id = f"p{number}"
            machine = simulated_machine(cores=rng.choice((2, 4, 8)), gpus=rng.choice(((), (), (16,), (16, 24))))
            provider = self._providers[peer_id] = Provider(
                peer_id, machine, self._directory, self._network, nursery, self.story, self._tellings,
                random.Random(rng.getrandbits(64)),
            )  # fmt: skip
            await provider.start()
            self._set_conditions(provider)
        self._liars = [f"liar{number}" for number in range(rng.choice((0, 1, 1, 2)))]
        for peer_id in self._liars:
            self._add_liar(peer_id, rng.choice(LIES))

    def _add_liar(self, peer_id: str, kind: str) -> None:
        rng = random.Random(self._rng.getrandbits(64))
        liar = Liar(peer_id, kind, list(self._providers), self.story, self._tellings, rng)
        answer = babbler(self.story, rng) if kind == "babbles" else None
        self._network.add_host(peer_id, liar.operations, answer=answer)
        self.story.say("liar", peer=peer_id, kind=kind)

    def _set_conditions(self, provider: Provider) -> None:
        conditions = _conditions(self._rng)
        for name in ("stall", "cut", "late"):
            if getattr(conditions, name):
                self.story.say(f"link may {name}", peer=provider.peer_id)
        provider.set_conditions(conditions)

    # Living

    async def _live(self) -> None:
        rng = self._rng
        candidates = [*self._providers, *self._liars]
        async with trio.open_nursery() as faults:
            for provider in self._providers.values():
                faults.start_soon(self._trouble, provider, random.Random(rng.getrandbits(64)))
            faults.start_soon(self._echo, random.Random(rng.getrandbits(64)))
            async with trio.open_nursery() as people:
                for number in range(rng.choice((2, 2, 2, 2, 3, 4))):
                    tenant = Tenant(
                        f"t{number}", self._network, self._providers, candidates, self._blocks, self._reported,
                        self.story, random.Random(rng.getrandbits(64)),
                    )  # fmt: skip
                    people.start_soon(tenant.live, rng.randint(1, 2), _SECONDS)
                for number in range(rng.choice((1, 1, 1, 2))):
                    attacker = Attacker(
                        f"a{number}", self._network, list(self._providers.values()), self.story, self._tellings,
                        random.Random(rng.getrandbits(64)),
                    )  # fmt: skip
                    people.start_soon(attacker.act, rng.randint(2, 4), _SECONDS)
            faults.cancel_scope.cancel()

    async def _trouble(self, provider: Provider, rng: random.Random) -> None:
        """The faults of one provider."""
        while True:
            await trio.sleep(rng.choice((rng.uniform(0.0, 5.0), rng.uniform(0.0, 400.0), rng.uniform(0.0, 400.0))))
            await getattr(self, rng.choice(_TROUBLES))(provider, rng)

    async def _killed(self, provider: Provider, rng: random.Random, *, reboot: bool = False) -> None:
        silent = rng.random() < 0.5
        self.story.say("rebooted" if reboot else "killed", peer=provider.peer_id, silent=silent)
        provider.kill(silent=silent, reboot=reboot)
        await self._rest(provider, rng)

    async def _rebooted(self, provider: Provider, rng: random.Random) -> None:
        await self._killed(provider, rng, reboot=True)

    async def _killed_in_write(self, provider: Provider, rng: random.Random) -> None:
        provider.kill_in_write()
        with trio.move_on_after(60.0) as waiting:
            await provider.wait_dead()
        if not waiting.cancelled_caught:
            await self._rest(provider, rng)

    async def _killed_in_attach(self, provider: Provider, rng: random.Random) -> None:
        """When its next job is noted, if that is soon."""
        provider.kill_in_attach()
        with trio.move_on_after(_JOB_SECONDS) as waiting:
            await provider.wait_dead()
        provider.kill_in_attach(wanted=False)
        if not waiting.cancelled_caught:
            await self._rest(provider, rng)

    async def _rest(self, provider: Provider, rng: random.Random) -> None:
        await trio.sleep(rng.choice((0.1, 1.0, 1.0, 5.0, 70.0)))
        await provider.start()
        # It may have died again meanwhile.
        self.story.say("started", peer=provider.peer_id)

    async def _clock_set(self, provider: Provider, rng: random.Random) -> None:
        most = rng.choice((1.0, 20.0, 20.0, MOST_SKEW))
        provider.time.skew = rng.uniform(-most, most)
        self.story.say("clock set", peer=provider.peer_id, skew=f"{provider.time.skew:.3f}")

    async def _evicted(self, provider: Provider, rng: random.Random) -> None:
        """The owner ends one lease, or all of them."""
        leases = [one for one in provider.manager.leases() if one.state is not LeaseState.ENDING] if provider.up else []
        if not leases:
            return
        chosen = leases if rng.random() < 0.3 else (rng.choice(leases),)
        self.story.say("evicted", peer=provider.peer_id, leases=len(chosen))
        provider.disturbed_at = trio.current_time()
        await provider.evict(chosen)

    async def _disk_failed(self, provider: Provider, rng: random.Random) -> None:
        self.story.say("disk failed", peer=provider.peer_id)
        await provider.fail_disk(rng.choice((0.5, 5.0, 30.0)))

    async def _link_changed(self, provider: Provider, rng: random.Random) -> None:
        self._set_conditions(provider)

    async def _connection_cut(self, provider: Provider, rng: random.Random) -> None:
        dialer = f"t{rng.randrange(4)}"
        self.story.say("connection cut", peer=provider.peer_id, dialer=dialer)
        self._network.cut(dialer, provider.peer_id)

    async def _echo(self, rng: random.Random) -> None:
        """Repeat requests of tenants in their name: they arrive twice, soon or late."""
        while True:
            await trio.sleep(rng.uniform(0.0, 30.0))
            told = [one for one in self._tellings.requests if one[1].startswith("t")][-10:]
            if told:
                again = rng.choice(told)
                self._tellings.requests.remove(again)
                await self._say_again(*again)

    async def _say_again(self, peer_id: str, caller: str, request: object) -> None:
        kind = _REPEATED.get(type(request))
        if kind is None:
            return
        self.story.say("repeated", peer=peer_id, caller=caller, what=type(request).__name__)
        if isinstance(request, CommitRequest):
            # What was refused or released meanwhile may be committed now.
            self._providers[peer_id].disturbed_at = trio.current_time()
        with suppress(ProtocolError, DialError, trio.TooSlowError), trio.fail_after(10.0):
            async with self._network.peer(caller).client(peer_id, ALLOCATION_PROTOCOL) as client:
                await client.call(request, kind, timeout=5.0)

    # Ending

    async def _end(self) -> None:
        """All faults have ended and all requesters have left: when all deadlines have passed, no lease may be left."""
        for provider in self._providers.values():
            provider.set_conditions(GOOD_LINK)
            if not provider.up:
                await provider.start()
            provider.heal()
        await trio.sleep(_LATENESS + 2 * _LONGEST_TTL)
        for provider in self._providers.values():
            await self._check_end(provider)

    async def _check_end(self, provider: Provider) -> None:
        manager, book = provider.manager, provider.manager._ledger.book
        for lease in [record.lease for record in book.leases.values()]:
            # An allocation has no deadline: its holder or its owner has to release it.
            known = lease.lease_id in self._reported or lease.holder.startswith("a")
            if lease.state is LeaseState.ENDING:
                # Its job has its time; below everything has to be free.
                continue
            if lease.state is not LeaseState.ALLOCATED or not known:
                self.story.fail(f"{provider.peer_id} still has {lease}")
            self.story.say("left allocated", peer=provider.peer_id, holder=lease.holder)
            provider.witness.promises.pop(lease.lease_id, None)
            await manager.release(lease.lease_id)
        with trio.move_on_after(_LONGEST_GRACE):
            await manager.wait_drained()
        for finding in await manager.audit():
            self.story.fail(f"{provider.peer_id}: {finding}")
        await manager.set_draining(False)
        free, offered = manager.get_free_resources(), manager.get_onboarded_resources()
        if offered is None or (free.cpu, free.ram, free.disk) != (offered.cpu, offered.ram, offered.disk):
            self.story.fail(f"{provider.peer_id} has not everything free: {free}")
        provider.check_end()


_REPEATED = {CommitRequest: CommitAnswer, AllocateRequest: LeaseAnswer, ReleaseRequest: ReleaseAnswer}

_TROUBLES = (
    "_killed", "_killed", "_killed_in_write", "_killed_in_write", "_killed_in_attach", "_rebooted", "_clock_set",
    "_disk_failed", "_link_changed", "_connection_cut", "_evicted",
)  # fmt: skip


def _conditions(rng: random.Random) -> LinkConditions:
    match rng.random():
        case chance if chance < 0.5:
            return LinkConditions(latency=rng.uniform(0.001, 0.2))
        case chance if chance < 0.65:
            return LinkConditions(latency=0.02, cut=rng.choice((0.02, 0.1, 0.3)))
        case chance if chance < 0.85:
            return LinkConditions(latency=0.02, late=rng.choice((0.05, 0.3)), lateness=rng.choice((1.0, _LATENESS)))
        case _:
            return LinkConditions(latency=0.02, stall=rng.choice((0.02, 0.1)))


def _nobody_listening() -> AbstractContextManager[object]:
    """Audits read the ports of the real machine, which have nothing to do with this world."""
    return patch("psutil.net_connections", return_value=[])


class _LeaseHandler(logging.Handler):
    def __init__(self, lease_ids: set[str]) -> None:
        super().__init__()
        self._lease_ids = lease_ids

    def emit(self, record: logging.LogRecord) -> None:
        if record.msg.startswith("not given back") and isinstance(record.args, tuple):
            self._lease_ids.add(str(record.args[0]))


@contextmanager
def _reported_leases(lease_ids: set[str]) -> Iterator[None]:
    """Collects the leases that the log names as not released, and does not pass the log on meanwhile."""
    root = logging.getLogger()
    handler = _LeaseHandler(lease_ids)
    before, root.handlers = root.handlers, [handler]
    try:
        yield
    finally:
        root.handlers = before
