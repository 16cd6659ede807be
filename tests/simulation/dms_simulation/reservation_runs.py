"""Reservations under fault: one run for each seed, which decides everything that happens in it.

Providers die, restart, drain, fill up with other work, answer late or lose connections; the requester is cancelled,
fails, is killed, allocates, or simply ends; another requester may want the same. What has to hold:

1. While the block runs and the reservation is not lost, every node is committed at every provider that runs.
2. When the reservation is over, and its requester was not killed, it has no lease at any running provider, except what
   the log names, and what a late connection may still deliver.
3. When all deadlines have passed, no lease is left anywhere, and everything is free again. Only an allocation, which
has
   no deadline, may be left, at a provider that was down, and then the log names it.
"""

from __future__ import annotations

import logging
import random
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import trio

from dms_peer.requesting import AssignmentRules, Requester, RequesterLimits, Reservation
from dms_peer.requesting.errors import ReservationError, ReservationLostError
from dms_protocols.messages.bid import EnsembleRequest, NodeRequest
from dms_resources.components import FreeResources
from dms_resources.errors import ResourcesError
from dms_resources.ledger.leases import LeaseState

from .market import SimulatedMarket, open_market
from .network import LinkConditions
from .providers import simulated_demand, simulated_machine
from .scheduling import run_seeded

__all__ = ["ReservationRun", "run_reservations"]

_STRATEGIES = ("cheapest", "tightest", "spread", "nearest", "random")


class BrokenPromiseError(AssertionError):
    """A rule was violated."""


@dataclass
class ReservationRun:
    """The events of the run of one seed, in order, with the virtual time of each. `counts` sums them up."""

    seed: int
    events: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)

    def say(self, what: str, **details: object) -> None:
        """Note an event."""
        self.counts[what] += 1
        described = " ".join(f"{key}={value}" for key, value in details.items())
        self.events.append(f"{trio.current_time():9.4f} {what} {described}".rstrip())


def run_reservations(seed: int, directory: Path) -> ReservationRun:
    """One run, the same for the same seed. Raises AssertionError with the seed and the events."""
    run = ReservationRun(seed)
    try:
        run_seeded(_Scenario(run, directory).play, seed=seed)
    except BaseException as error:
        story = "\n".join(run.events[-60:])
        raise AssertionError(f"seed {seed}: {error!r}, after\n{story}") from error
    return run


class _Scenario:
    """Everything that one seed decides."""

    def __init__(self, run: ReservationRun, directory: Path) -> None:
        self._run = run
        self._directory = directory
        self._rng = random.Random(run.seed)
        self._onboarded: dict[str, FreeResources] = {}
        self._late: set[str] = set()
        self._reported: set[str] = set()
        self._ending = self._rng.choice(("normal", "normal", "normal", "error", "cancelled", "cancelled", "killed"))
        self._ttl = self._rng.choice((9.0, 15.0, 30.0))
        # A requester that is killed while it allocates leaves its allocations, which have no deadline.
        self._allocates = self._ending != "killed" and self._rng.random() < 0.25

    async def play(self) -> None:
        async with open_market(self._directory, random.Random(self._rng.getrandbits(64))) as market:
            for number in range(self._rng.randint(2, 5)):
                await self._open_provider(market, f"p{number}")
            with _reported_leases(self._reported):
                async with trio.open_nursery() as nursery:
                    for peer_id in market.peer_ids:
                        nursery.start_soon(self._trouble, market, peer_id)
                    if self._rng.random() < 0.3:
                        nursery.start_soon(self._rival, market)
                    await self._requester(market)
                    nursery.cancel_scope.cancel()
            await self._check_end(market)

    # The providers

    async def _open_provider(self, market: SimulatedMarket, peer_id: str) -> None:
        rng = self._rng
        machine = simulated_machine(cores=rng.choice((2, 4, 8)), gpus=rng.choice(((), (), (16,), (16, 24))))
        conditions = self._conditions()
        if conditions.late:
            self._late.add(peer_id)
        manager = await market.start(peer_id, machine, conditions=conditions)
        self._onboarded[peer_id] = manager.get_free_resources()

    def _conditions(self) -> LinkConditions:
        rng = self._rng
        match rng.random():
            case chance if chance < 0.5:
                return LinkConditions(latency=rng.uniform(0.001, 0.2))
            case chance if chance < 0.7:
                return LinkConditions(latency=0.02, cut=rng.choice((0.02, 0.1, 0.3)))
            case chance if chance < 0.85:
                return LinkConditions(latency=0.02, late=rng.choice((0.05, 0.3)), lateness=rng.choice((1.0, 4.0, 20.0)))
            case _:
                return LinkConditions(latency=0.02, stall=rng.choice((0.02, 0.1)))

    async def _trouble(self, market: SimulatedMarket, peer_id: str) -> None:
        """The faults of one provider."""
        rng = random.Random(self._rng.getrandbits(64))
        while rng.random() < 0.55:
            await trio.sleep(rng.choice((rng.uniform(0.0, 0.5), rng.uniform(0.0, 3.0), rng.uniform(3.0, 40.0))))
            match rng.choice(("die", "die", "die", "fill", "fill", "drain", "cut")):
                case "die":
                    silent = rng.random() < 0.5
                    self._run.say("died", peer=peer_id, silent=silent)
                    await market.stop(peer_id, silent=silent)
                    await trio.sleep(rng.choice((0.5, 5.0, 60.0, 60.0)))
                    await market.restart(peer_id)
                    self._run.say("restarted", peer=peer_id)
                case "fill":
                    await self._fill(market, peer_id, rng)
                case "drain":
                    self._run.say("drained", peer=peer_id)
                    await market.manager(peer_id).set_draining(True)
                    await trio.sleep(rng.uniform(0.0, 10.0))
                    await market.manager(peer_id).set_draining(False)
                case "cut":
                    market.network.cut("requester", peer_id)

    async def _fill(self, market: SimulatedMarket, peer_id: str, rng: random.Random) -> None:
        """Another requester takes what is free, for a while."""
        manager = market.manager(peer_id)
        free = manager.get_free_resources()
        demand = simulated_demand(cores=free.cpu.cores.millicores / 1000, ram=1)
        try:
            await manager.commit_resources(
                f"tenant-{rng.getrandbits(32)}", demand, holder="tenant", ttl=rng.uniform(0.1, 20.0)
            )
            self._run.say("filled", peer=peer_id)
        except ResourcesError:
            pass

    # The requesters

    def _ensemble(self, market: SimulatedMarket, rng: random.Random) -> tuple[EnsembleRequest, AssignmentRules]:
        nodes = [
            NodeRequest(
                node_id=f"n{number}",
                resources=simulated_demand(
                    cores=rng.choice((0.5, 1, 2)), gpus=(rng.choice((8, 16)),) if rng.random() < 0.15 else ()
                ),
            )
            for number in range(rng.randint(1, 4))
        ]
        pins = {node.node_id: rng.choice(market.peer_ids) for node in nodes if rng.random() < 0.1}
        rules = AssignmentRules(different_peers=rng.random() < 0.3, pins=pins)
        return market.ensemble(*nodes, seconds=rng.choice((5.0, 20.0))), rules

    async def _rival(self, market: SimulatedMarket) -> None:
        rng = random.Random(self._rng.getrandbits(64))
        await trio.sleep(rng.uniform(0.0, 1.0))
        ensemble, rules = self._ensemble(market, rng)
        try:
            async with market.requester("rival").reserve(ensemble, rules=rules, ttl=self._ttl):
                await trio.sleep(rng.uniform(0.0, 20.0))
        except ReservationError as error:
            self._run.say(f"rival {error.code}")

    async def _requester(self, market: SimulatedMarket) -> None:
        rng = self._rng
        requester = market.requester(limits=RequesterLimits(release_deadline=10.0))
        ensemble, rules = self._ensemble(market, rng)
        with trio.CancelScope() as scope:
            if self._ending in ("cancelled", "killed"):
                scope.deadline = trio.current_time() + rng.choice((rng.uniform(0.0, 1.0), rng.uniform(0.0, 40.0)))
            async with trio.open_nursery() as nursery:
                if self._ending == "killed":
                    nursery.start_soon(self._kill_at, market, scope.deadline)
                await self._reserve(market, requester, ensemble, rules)
                nursery.cancel_scope.cancel()
        if scope.cancelled_caught:
            self._run.say(self._ending)

    async def _kill_at(self, market: SimulatedMarket, when: float) -> None:
        # Just before the cancellation, so that nothing that it causes arrives anywhere.
        await trio.sleep_until(when - 1e-6)
        market.network.kill_peer("requester")

    async def _reserve(
        self, market: SimulatedMarket, requester: Requester, ensemble: EnsembleRequest, rules: AssignmentRules
    ) -> None:
        rng = self._rng
        strategy = rng.choice(_STRATEGIES)
        self._run.say("reserving", nodes=len(ensemble.request), ttl=self._ttl, strategy=strategy, rules=rules)
        try:
            async with requester.reserve(
                ensemble, strategy=strategy, rules=rules, ttl=self._ttl, wait=rng.random() < 0.3
            ) as reservation:
                self._run.say("reserved", peers=reservation.peers, attempts=reservation.progress.attempts)
                if sorted(reservation.leases) != sorted(node.node_id for node in ensemble.request):
                    raise BrokenPromiseError(f"only {sorted(reservation.leases)} were taken")
                self._check_taken(market, reservation)
                await self._use(market, reservation)
                self._run.say("used")
        except ReservationLostError as error:
            self._run.say("lost", why=error.message)
        except ReservationError as error:
            self._run.say(error.code, why=error.message[:300])
        except ZeroDivisionError:
            self._run.say("error")
        finally:
            if self._ending != "killed":
                self._check_given_back(market)

    async def _use(self, market: SimulatedMarket, reservation: Reservation) -> None:
        rng = self._rng
        for _ in range(rng.randint(0, 12)):
            await trio.sleep(rng.uniform(0.0, 5.0))
            self._check_taken(market, reservation)
        if self._allocates:
            await reservation.allocate()
            self._run.say("allocated")
            self._check_taken(market, reservation, LeaseState.ALLOCATED)
            await trio.sleep(rng.uniform(0.0, 2 * self._ttl))
            self._check_taken(market, reservation, LeaseState.ALLOCATED)
        if self._ending == "error":
            raise ZeroDivisionError

    # Checks

    def _check_given_back(self, market: SimulatedMarket) -> None:
        for peer_id in market.peer_ids:
            if not market.running(peer_id) or peer_id in self._late:
                continue
            left = [one for one in market.manager(peer_id).leases("requester") if one.lease_id not in self._reported]
            if left:
                raise BrokenPromiseError(f"{peer_id} was not given back {left}")
        self._run.say("given back")

    def _check_taken(
        self, market: SimulatedMarket, reservation: Reservation, state: LeaseState = LeaseState.COMMITTED
    ) -> None:
        if reservation.lost.is_set():
            return
        leases, peers = reservation.leases, reservation.peers
        for node_id, peer_id in peers.items():
            if not market.running(peer_id):
                continue
            lease = market.manager(peer_id).lease(leases[node_id].lease_id)
            if lease is None or lease.state is not state:
                raise BrokenPromiseError(f"{node_id} is not {state.value} at {peer_id}: {lease}")

    async def _check_end(self, market: SimulatedMarket) -> None:
        for peer_id in market.peer_ids:
            if not market.running(peer_id):
                await market.restart(peer_id)
            await market.manager(peer_id).set_draining(False)
        # A late request may arrive with the longest delay. Whatever it takes lasts for this time from then on.
        await trio.sleep(20.0 + self._ttl + 1.0)
        for peer_id in market.peer_ids:
            manager = market.manager(peer_id)
            left = [lease for lease in manager.leases() if lease.lease_id not in self._reported]
            if left:
                raise BrokenPromiseError(f"{peer_id} still has {left}")
            for lease in manager.leases():
                if lease.state is not LeaseState.ALLOCATED:
                    raise BrokenPromiseError(f"{peer_id} still has {lease}")
                self._run.say("left allocated", peer=peer_id)
                await manager.release(lease.lease_id)
            if manager.get_free_resources() != self._onboarded[peer_id]:
                raise BrokenPromiseError(f"{peer_id} has not everything free: {manager.get_free_resources()}")


class _LeaseHandler(logging.Handler):
    def __init__(self, lease_ids: set[str]) -> None:
        super().__init__()
        self._lease_ids = lease_ids

    def emit(self, record: logging.LogRecord) -> None:
        arguments: Any = record.args
        if record.msg.startswith("not given back"):
            self._lease_ids.add(arguments[0])


@contextmanager
def _reported_leases(lease_ids: set[str]) -> Iterator[None]:
    """Collects the leases that the log names as not released."""
    log = logging.getLogger("dms_peer.requesting.reservations")
    handler = _LeaseHandler(lease_ids)
    log.addHandler(handler)
    before, log.propagate = log.propagate, False
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.propagate = before
