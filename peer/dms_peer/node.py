"""The running peer: `dms-peer run`.

It holds the ledger, so that there is one of it per home; it measures the machine in the background, answers other peers
on its libp2p host and its owner on a Unix socket. SIGTERM and SIGINT end it in good order, kill -9 loses nothing that
was acknowledged.
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
import signal
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial, reduce
from operator import or_
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import trio

from dms_host import HardenedHost, host_addresses, parse_listen_address
from dms_host.errors import ListenError
from dms_host.keys.identity import Identity, load_or_create_identity
from dms_protocols.protocol_ids import newest_of_each
from dms_protocols.rpc.counts import ServiceCounts
from dms_protocols.rpc.shares import SharesInUse
from dms_resources.components import MachineResources
from dms_resources.errors import LedgerInUseError
from dms_resources.machine.listening import read_used_ports
from dms_resources.machine.usage import UsageMonitor
from dms_resources.manager import Guard, ResourceManager, open_manager

from .config.access import OwnerAccess, read_access_file
from .config.limits import PeerLimits, read_limits_file
from .config.terms import OwnerTerms, read_terms_file
from .discovery.open import open_discovery
from .discovery.peering import bootstrap_peers
from .discovery.settings import DiscoverySettings
from .home.home import RETRY_INTERVAL, Home
from .home.host import NetworkSettings, open_home_host
from .owner.administration import LocalAdministration, administration_operations, terms_summary
from .owner.peer_list import peer_notes, peers_operations
from .owner.revocations import Revocations, revocation_operations
from .owner.socket_server import serve_socket
from .policies.open import open_policies
from .serving import peer_operations, serve
from .telemetry.heap import return_free_memory

__all__ = ["Node", "Ready", "announce", "announce_json"]

_log = logging.getLogger(__name__)

_ANY_PORT: Final = "/ip4/0.0.0.0/tcp/0"
_LOOPBACK: Final = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class Ready:
    """A peer that answers: its id, the addresses that others may dial, whether its machine is simulated, and where its
    metrics are."""

    peer_id: str
    addrs: tuple[str, ...]
    simulated: bool
    offers: bool
    metrics: str | None = None


@dataclass(frozen=True, slots=True)
class Node:
    """What a peer is started with: its home, where it listens, its machine (None: as remembered), what it does with a
    promise that the machine itself is short of now, every how many seconds it samples the machine's use, the file of
    the terms on which it bids, how it finds others and is found (None: not at all), and the file that says who may do
    what."""

    home: Home
    listen: tuple[str, ...] = ()
    machine: str | None = None
    guard: Guard = "warn"
    sample_interval: float = 5.0
    terms: Path | None = None
    discovery: DiscoverySettings | None = None
    access: Path | None = None
    network: NetworkSettings | None = None
    metrics: str | None = None
    limits: Path | None = None

    async def run(self, announce: Callable[[Ready | None], None]) -> None:
        """Runs until a signal asks it to stop; `announce` is told when it is ready, and (None) when it has stopped.

        Raises what `open` raises.
        """
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_stop_on_signal, signals, nursery.cancel_scope)
                nursery.start_soon(return_free_memory)
                async with self.open() as ready:
                    announce(ready)
                    await trio.sleep_forever()
        announce(None)

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Ready]:
        """A peer that answers while the block runs.

        Raises IdentityError, MachineFileError, ListenError, AddressError, DocumentError, PolicyError, StorageError and
        PeerError.
        """
        home = self.home
        for address in self.listen:
            parse_listen_address(address)
        if self.discovery is not None:
            bootstrap_peers(self.discovery.bootstrap)
        owner_terms = await trio.to_thread.run_sync(read_terms_file, self.terms) if self.terms else OwnerTerms()
        access = await trio.to_thread.run_sync(read_access_file, self.access) if self.access else OwnerAccess()
        limits = await trio.to_thread.run_sync(read_limits_file, self.limits) if self.limits else PeerLimits()
        home.prepare()
        identity = load_or_create_identity(home.key_path)
        machine = await trio.to_thread.run_sync(home.machine, self.machine)
        monitor = UsageMonitor(machine, home.path, interval=self.sample_interval)
        async with AsyncExitStack() as stack:
            manager = await self._open_manager(stack, machine, monitor)
            home.remember_machine(self.machine, machine)
            # Only now: until then another command may have had the home, and revoked something.
            revocations = Revocations(home.revocations_path)
            policies = await stack.enter_async_context(open_policies(owner_terms.policies))
            terms = owner_terms.bid_terms(policies)
            host = await self._open_host(stack, identity, limits)
            counts, in_use = ServiceCounts(), SharesInUse(access.shares)
            metrics = await self._serve_metrics(stack, manager, counts, host)
            manager.reserve_ports(_own_ports(host, metrics))
            await stack.enter_async_context(
                serve(
                    host,
                    manager,
                    identity=identity,
                    terms=terms,
                    limits=limits.service,
                    counts=counts,
                    shares=in_use,
                    access=access.rules,
                    revoked=revocations,
                )
            )
            addrs = host_addresses(host)
            summary = terms_summary(owner_terms) if self.terms else None
            local = administration_operations(
                LocalAdministration(
                    manager, identity.peer_id, addrs, summary, counts=counts, limits_hit=host.swarm.limits_hit
                )
            )
            local |= revocation_operations(revocations)
            operations = reduce(or_, newest_of_each(peer_operations(manager, identity, terms)).values(), local)
            if self.discovery is not None:
                settings = replace(self.discovery, connection_limits=limits.connections, gossip_limits=limits.gossip)
                may_ask = partial(access.rules.admits, "bid_request")
                discovery = await stack.enter_async_context(
                    open_discovery(
                        host, identity, settings,
                        home=home, manager=manager, terms=terms, may_ask=may_ask, shares=in_use,
                    )
                )  # fmt: skip
                operations |= peers_operations(partial(peer_notes, discovery), lambda: discovery.peering.connected)
            await stack.enter_async_context(serve_socket(home.socket_path, operations, identity.peer_id))
            offers = manager.get_onboarded_resources() is not None
            yield Ready(identity.peer_id, addrs, machine.simulated, offers, metrics)

    async def _open_manager(
        self, stack: AsyncExitStack, machine: MachineResources, monitor: UsageMonitor
    ) -> ResourceManager:
        deadline = trio.current_time() + self.home.patience
        while True:
            try:
                return await stack.enter_async_context(
                    open_manager(
                        self.home.ledger_path,
                        machine,
                        usage_monitor=monitor,
                        guard=self.guard,
                        read_ports=read_used_ports,
                    )
                )
            except LedgerInUseError:
                # A command of the owner has it for a moment; another peer keeps it.
                if trio.current_time() > deadline:
                    raise
                await trio.sleep(RETRY_INTERVAL)

    async def _open_host(self, stack: AsyncExitStack, identity: Identity, limits: PeerLimits) -> HardenedHost:
        if self.listen:
            return await stack.enter_async_context(self._host(identity, self.listen, limits))
        with contextlib.suppress(ListenError):
            # The addresses that others know from last time.
            if remembered := self.home.listen_addresses():
                return await stack.enter_async_context(self._host(identity, remembered, limits))
        host = await stack.enter_async_context(self._host(identity, [_ANY_PORT], limits))
        self.home.remember_listen_addresses([str(address) for address in host.get_transport_addrs()])
        return host

    def _host(
        self, identity: Identity, listen: Sequence[str], limits: PeerLimits
    ) -> AbstractAsyncContextManager[HardenedHost]:
        return open_home_host(self.home, identity, listen, self.network, limits=limits.host, relay_limits=limits.relay)

    async def _serve_metrics(
        self, stack: AsyncExitStack, manager: ResourceManager, counts: ServiceCounts, host: HardenedHost
    ) -> str | None:
        if self.metrics is None:
            return None
        # Off by default, and who does not want metrics does not wait for what makes them.
        from .telemetry.metrics import PeerCollector
        from .telemetry.metrics_server import serve_metrics

        address, _, port = self.metrics.rpartition(":")
        collector = PeerCollector(
            manager, counts, connections=lambda: len(host.swarm.get_connections()), limits_hit=host.swarm.limits_hit
        )
        bound = await stack.enter_async_context(serve_metrics(collector, address or _LOOPBACK, int(port)))
        return f"http://{address or _LOOPBACK}:{bound}/metrics"


def _own_ports(host: HardenedHost, metrics: str | None) -> frozenset[int]:
    """The ports on which the peer itself listens: for other peers, and for its metrics."""
    found = (re.search(r"/(?:tcp|udp)/([0-9]+)", str(address)) for address in host.get_transport_addrs())
    ports = {int(match[1]) for match in found if match is not None}
    return frozenset(ports | ({urlsplit(metrics).port or 0} if metrics else set()))


async def _stop_on_signal(signals: AsyncIterator[int], scope: trio.CancelScope) -> None:
    async for number in signals:
        _log.info("stopping on %s", signal.Signals(number).name)
        scope.cancel()


def announce(ready: Ready | None) -> None:
    """Tells a person that the peer is ready, or has stopped."""
    if ready is None:
        print("stopped", flush=True)
        return
    print(f"peer {ready.peer_id} listens on {' '.join(ready.addrs)}", flush=True)
    if ready.simulated:
        print("its machine is simulated", flush=True)
    if ready.metrics:
        print(f"metrics at {ready.metrics}", flush=True)
    if not ready.offers:
        print("it offers nothing yet: use `dms-peer onboard`", flush=True)


def announce_json(ready: Ready | None) -> None:
    """Tells a program the same: one JSON object per line."""
    if ready is None:
        print(json.dumps({"event": "stopped"}), flush=True)
        return
    event = {
        "event": "ready",
        "peer_id": ready.peer_id,
        "addrs": list(ready.addrs),
        "simulated": ready.simulated,
        "onboarded": ready.offers,
    }
    if ready.metrics:
        event["metrics"] = ready.metrics
    print(json.dumps(event), flush=True)
