"""Providers and requesters in one simulated network. Providers can be started, stopped and started again."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trio

from dms_peer.requesting import Candidate, Requester
from dms_protocols.bidding.service import BidTerms
from dms_protocols.messages.bid import EnsembleRequest, NodeRequest
from dms_resources.components import MachineResources
from dms_resources.manager import ResourceManager

from .network import GOOD_LINK, LinkConditions, SimulatedNetwork
from .providers import open_simulated_manager, provider_operations, simulated_demand, simulated_machine
from .scheduling import EPOCH, VirtualClock
from .signing import SimulatedOpener

__all__ = ["ListSource", "SimulatedMarket", "open_market"]


class ListSource:
    """Names the candidates with which it was made, or that a function returns. `named` counts what was
    taken from it.
    """

    def __init__(self, name: str, candidates: Sequence[Candidate] | Callable[[], Sequence[Candidate]]) -> None:
        self.name = name
        self.named = 0
        self._candidates = candidates

    @asynccontextmanager
    async def candidates(self, request: EnsembleRequest) -> AsyncIterator[AsyncIterator[Candidate]]:
        """The candidates in their order."""
        found = self._candidates() if callable(self._candidates) else self._candidates
        yield _Named(self, iter(found))


class _Named:
    def __init__(self, source: ListSource, candidates: Iterator[Candidate]) -> None:
        self._source = source
        self._candidates = candidates

    def __aiter__(self) -> _Named:
        return self

    async def __anext__(self) -> Candidate:
        await trio.lowlevel.checkpoint()
        for candidate in self._candidates:
            self._source.named += 1
            return candidate
        raise StopAsyncIteration


@dataclass(slots=True)
class _Provider:
    machine: MachineResources
    terms: BidTerms
    conditions: LinkConditions
    manager: ResourceManager | None = None
    running: trio.CancelScope | None = None
    stopped: trio.Event | None = None


class SimulatedMarket:
    """Providers with ledgers in `directory`, and the network that they are in."""

    def __init__(self, nursery: trio.Nursery, directory: Path, rng: random.Random) -> None:
        self.network = SimulatedNetwork(nursery, rng)
        self.clock = VirtualClock()
        self._nursery = nursery
        self._directory = directory
        self._rng = rng
        self._providers: dict[str, _Provider] = {}

    @property
    def peer_ids(self) -> list[str]:
        """All providers, running or not, in the order of their first start."""
        return list(self._providers)

    async def start(
        self,
        peer_id: str,
        machine: MachineResources | None = None,
        *,
        terms: BidTerms | None = None,
        conditions: LinkConditions = GOOD_LINK,
    ) -> ResourceManager:
        """Start to offer a machine. Returns when the provider answers."""
        self._providers[peer_id] = _Provider(machine or simulated_machine(), terms or BidTerms(), conditions)
        return await self.restart(peer_id)

    async def restart(self, peer_id: str) -> ResourceManager:
        """Start a stopped provider, with the ledger that it left."""
        provider = self._providers[peer_id]
        await self._nursery.start(self._run, peer_id, provider)
        assert provider.manager is not None
        return provider.manager

    async def stop(self, peer_id: str, *, silent: bool = False) -> None:
        """Stop a provider: its connections are cut at once, and its ledger is closed."""
        provider = self._providers[peer_id]
        if provider.running is None or provider.stopped is None:
            return
        self.network.stop_host(peer_id, silent=silent)
        provider.running.cancel()
        await provider.stopped.wait()

    def running(self, peer_id: str) -> bool:
        """Whether a provider is running."""
        return self._providers[peer_id].running is not None

    def manager(self, peer_id: str) -> ResourceManager:
        """The ledger of a running provider."""
        manager = self._providers[peer_id].manager
        assert manager is not None, f"{peer_id} does not run"
        return manager

    def candidates(self, source: str = "known") -> list[Candidate]:
        """All providers, as a source would name them."""
        return [Candidate(peer_id, (f"/memory/{peer_id}",), source) for peer_id in self._providers]

    def requester(self, peer_id: str = "requester", **options: Any) -> Requester:
        """A requester that knows all providers, unless other `sources` are given."""
        options.setdefault("sources", [ListSource("known", self.candidates)])
        options.setdefault("rng", random.Random(self._rng.getrandbits(64)))
        return Requester(self.network.peer(peer_id), SimulatedOpener(), clock=self.clock.wall, **options)

    def ensemble(
        self, *nodes: NodeRequest | str, seconds: float = 30.0, exclude: Sequence[str] = (), **demand: Any
    ) -> EnsembleRequest:
        """A request for these nodes, open for this time. Names stand for nodes with the same `demand`."""
        wanted = tuple(
            NodeRequest(node_id=node, resources=simulated_demand(**demand)) if isinstance(node, str) else node
            for node in nodes or ("n1",)
        )
        return EnsembleRequest(
            id="ensemble",
            nonce=1,
            deadline=EPOCH + trio.current_time() + seconds,
            request=wanted,
            peer_exclusion=tuple(exclude),
        )

    async def _run(self, peer_id: str, provider: _Provider, *, task_status: Any) -> None:
        provider.stopped = trio.Event()
        try:
            with trio.CancelScope() as provider.running:
                path = self._directory / f"{peer_id}.db"
                async with open_simulated_manager(path, provider.machine, clock=self.clock) as provider.manager:
                    operations = provider_operations(provider.manager, peer_id, provider.terms, clock=self.clock)
                    self.network.add_host(peer_id, operations, conditions=provider.conditions)
                    task_status.started()
                    await trio.sleep_forever()
        finally:
            provider.running = provider.manager = None
            provider.stopped.set()


@asynccontextmanager
async def open_market(directory: Path, rng: random.Random) -> AsyncIterator[SimulatedMarket]:
    """A market whose providers run while the block does."""
    failure: BaseException | None = None
    async with trio.open_nursery() as nursery:
        try:
            yield SimulatedMarket(nursery, directory, rng)
        except BaseException as error:
            # Raised after the nursery, which would wrap it in a group.
            failure = error
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure
