"""Honest requesters of the real code: they take what they need, use it for a while and release it, or die."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import trio

from dms_peer.requesting import AssignmentRules, Candidate, Requester, RequesterLimits, Reservation
from dms_peer.requesting.errors import ReservationError, ReservationLostError
from dms_protocols.messages.bid import EnsembleRequest, NodeRequest
from dms_resources.demands import PortDemand
from dms_resources.ledger.leases import LeaseState

from ..market import ListSource
from ..network import SimulatedNetwork
from ..providers import simulated_demand
from ..scheduling import EPOCH
from ..signing import SimulatedOpener
from .provider import Provider
from .story import Story

__all__ = ["Block", "Tenant", "check_block"]

_STRATEGIES = ("cheapest", "tightest", "spread", "nearest", "random")


class _JobError(Exception):
    """The job failed, which needs no explanation."""


@dataclass(slots=True, eq=False)
class Block:
    """A block that runs with an ensemble; `allocated` is set when all of it is."""

    reservation: Reservation
    began: float
    allocated: bool = False


def check_block(block: Block, providers: Mapping[str, Provider]) -> str:
    """What part of the ensemble is missing although its block runs; empty if none is.

    A provider that is down says nothing. After a reboot only the wall clock determines what is left of a commitment.
    """
    reservation = block.reservation
    if reservation.lost.is_set():
        return ""
    leases = reservation.leases
    for node_id, peer_id in reservation.peers.items():
        provider = providers.get(peer_id)
        if provider is None or not provider.up or provider.rebooted_at >= block.began - 60.0:
            continue
        lease = provider.manager._ledger.book.leases.get(leases[node_id].lease_id)
        state = None if lease is None or lease.lease.state is LeaseState.ENDING else lease.lease.state
        evicted = provider.evicted.get(leases[node_id].lease_id)
        if state is None and evicted is not None and trio.current_time() < evicted + leases[node_id].ttl:
            # Its requester learns it with the next renewal.
            continue
        if state is not LeaseState.ALLOCATED and (block.allocated or state is not LeaseState.COMMITTED):
            return f"the block runs and {node_id} is {state} at {peer_id}: {leases[node_id]}"
    return ""


class Tenant:
    """One honest requester."""

    def __init__(
        self,
        peer_id: str,
        network: SimulatedNetwork,
        providers: Mapping[str, Provider],
        candidates: Sequence[str],
        blocks: list[Block],
        reported: set[str],
        story: Story,
        rng: random.Random,
    ) -> None:
        self._peer_id = peer_id
        self._network = network
        self._providers = providers
        self._candidates = candidates
        self._blocks = blocks
        self._reported = reported
        self._story = story
        self._rng = rng
        self._ttl = rng.choice((15.0, 30.0, 60.0))
        self._requester = Requester(
            network.peer(peer_id),
            SimulatedOpener(),
            [ListSource("known", self._named)],
            clock=lambda: EPOCH + trio.current_time(),
            rng=random.Random(rng.getrandbits(64)),
            limits=RequesterLimits(release_deadline=10.0),
        )

    async def live(self, reservations: int, seconds: float) -> None:
        """Reserve this often, over about this time. Being killed ends it."""
        for _ in range(reservations):
            await trio.sleep(self._rng.uniform(0.0, 2.0 * seconds / reservations))
            ending = self._rng.choice(("used", "used", "used", "failed", "cancelled", "cancelled", "killed"))
            await self._reserve_until(ending)
            if ending == "killed":
                return

    async def _reserve_until(self, ending: str) -> None:
        with trio.CancelScope() as scope:
            if ending in ("cancelled", "killed"):
                scope.deadline = trio.current_time() + self._rng.choice(
                    (self._rng.uniform(0.0, 1.0), self._rng.uniform(0.0, 60.0))
                )
            async with trio.open_nursery() as nursery:
                if ending == "killed":
                    nursery.start_soon(self._kill_at, scope.deadline)
                await self._reserve(ending)
                nursery.cancel_scope.cancel()
        if scope.cancelled_caught:
            self._story.say(ending, tenant=self._peer_id)

    async def _kill_at(self, when: float) -> None:
        # Just before the cancellation, so that nothing that it causes arrives anywhere.
        await trio.sleep_until(when - 1e-6)
        self._network.kill_peer(self._peer_id)

    async def _reserve(self, ending: str) -> None:
        rng, began = self._rng, trio.current_time()
        ensemble, rules = self._ensemble()
        self._story.say("reserving", tenant=self._peer_id, nodes=len(ensemble.request), ttl=self._ttl)
        try:
            async with self._requester.reserve(
                ensemble, strategy=rng.choice(_STRATEGIES), rules=rules, ttl=self._ttl, wait=rng.random() < 0.3
            ) as reservation:
                self._story.say("reserved", tenant=self._peer_id, peers=reservation.peers)
                with self._block(reservation, ensemble) as block:
                    await self._use(block, ending)
                self._story.say("used", tenant=self._peer_id)
        except ReservationLostError as error:
            self._story.say("lost", tenant=self._peer_id, why=error.message[:200])
        except ReservationError as error:
            self._story.say(error.code, tenant=self._peer_id, why=error.message[:200])
        except _JobError:
            self._story.say("failed", tenant=self._peer_id)
        finally:
            if ending != "killed":
                self._check_given_back(began)

    @contextmanager
    def _block(self, reservation: Reservation, ensemble: EnsembleRequest) -> Iterator[Block]:
        if sorted(reservation.leases) != sorted(node.node_id for node in ensemble.request):
            self._story.fail(f"{self._peer_id} was given {sorted(reservation.leases)} and no more")
        block = Block(reservation, trio.current_time())
        self._blocks.append(block)
        wrong = check_block(block, self._providers)
        if wrong:
            self._story.fail(wrong)
        try:
            yield block
        finally:
            self._blocks.remove(block)

    async def _use(self, block: Block, ending: str) -> None:
        rng = self._rng
        await trio.sleep(rng.choice((rng.uniform(0.0, 5.0), rng.uniform(0.0, 60.0))))
        # A requester that is killed while it allocates leaves its allocations, which have no deadline.
        if ending != "killed" and rng.random() < 0.3:
            await block.reservation.allocate()
            block.allocated = True
            self._story.say("allocated", tenant=self._peer_id)
            await trio.sleep(rng.uniform(0.0, 60.0))
        if ending == "failed":
            raise _JobError

    def _check_given_back(self, began: float) -> None:
        """Everything is released when the reservation ends, where no request may be on its way any more."""
        for provider in self._providers.values():
            if not provider.undisturbed_since(began - 40.0):
                continue
            left = [
                lease.lease_id
                for lease in provider.manager.leases(self._peer_id)
                if lease.state is not LeaseState.ENDING and lease.lease_id not in self._reported
            ]
            if left:
                self._story.fail(f"{provider.peer_id} was not given back {left} by {self._peer_id}")
            self._story.counts["given back"] += 1

    def _ensemble(self) -> tuple[EnsembleRequest, AssignmentRules]:
        rng = self._rng
        nodes = tuple(
            NodeRequest(
                node_id=f"n{number}",
                resources=simulated_demand(
                    cores=rng.choice((0.5, 1, 2)), gpus=(rng.choice((8, 16)),) if rng.random() < 0.2 else ()
                ),
                public_ports=PortDemand(dynamic=rng.choice((0, 0, 2)), static=(16400,) if rng.random() < 0.1 else ()),
            )
            for number in range(rng.randint(1, 4))
        )
        now = EPOCH + trio.current_time()
        request = EnsembleRequest(id="ensemble", nonce=1, deadline=now + rng.choice((5.0, 20.0)), request=nodes)
        return request, AssignmentRules(different_peers=rng.random() < 0.4)

    def _named(self) -> list[Candidate]:
        named = list(self._candidates)
        self._rng.shuffle(named)
        return [Candidate(peer_id, (f"/memory/{peer_id}",), "known") for peer_id in named]
