"""The running peer: `dms-peer run`.

It has the ledger open, so that only one can run in a home. It samples the machine in the background, serves other peers
on its libp2p host and its owner on a Unix socket. SIGTERM and SIGINT stop it in an orderly way. After kill -9 nothing
that was acknowledged is lost.

SIGHUP makes it read its configuration again. An invalid configuration is logged, and the old one stays in force.
However, if SIGHUP arrives because its terminal was closed, the peer stops in an orderly way. A peer that was started
with SIGHUP ignored (nohup) continues to ignore it.
"""

from __future__ import annotations

import logging
import re
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial, reduce
from operator import or_
from typing import Final
from urllib.parse import urlsplit

import trio

from dms_host import HardenedHost, host_addresses, parse_listen_address
from dms_host.keys.identity import Identity, load_or_create_identity
from dms_protocols.bidding.service import CurrentTerms
from dms_protocols.jobs.tunnels import TunnelsInUse
from dms_protocols.protocol_ids import newest_of_each
from dms_protocols.rpc.counts import ServiceCounts
from dms_protocols.rpc.shares import SharesInUse
from dms_resources.components import MachineResources
from dms_resources.errors import LedgerInUseError
from dms_resources.machine.listening import read_used_ports
from dms_resources.machine.registry import Registration
from dms_resources.machine.usage import UsageMonitor
from dms_resources.manager import AllocationTerms, Guard, ResourceManager, open_manager
from dms_resources.tasks import open_background

from . import __version__
from .config.access import OwnerAccess
from .config.effective import needs_restart
from .config.limits import PeerLimits
from .config.settings import PeerConfig
from .config.terms import OwnerTerms
from .discovery.open import open_discovery
from .discovery.peering import bootstrap_peers
from .discovery.settings import DiscoverySettings
from .errors import DocumentError
from .executors.executor import Executor
from .executors.loading import open_executors
from .executors.settings import ExecutorSettings
from .home.home import RETRY_INTERVAL, Home
from .home.host import open_listening_host
from .home.lease_journal import LeaseJournal
from .home.network import NetworkSettings
from .jobs.manager import JobManager, open_job_manager
from .jobs.offered import OfferedExecutors
from .owner.administration import LocalAdministration, administration_operations, terms_summary
from .owner.keeping import keep_deployments
from .owner.peer_list import peer_notes, peers_operations
from .owner.requesting_peer import requesting_operations
from .owner.revocations import Revocations, revocation_operations
from .owner.socket_server import serve_socket
from .owner.start_marker import StartMark
from .policies.open import open_policies
from .requesting.peers import PeerCalls
from .run_signals import RunSignals, has_terminal
from .serving import Serving, peer_operations, serve
from .signing import EnvelopeChecker
from .telemetry.heap import return_free_memory

__all__ = ["Node", "Ready"]

_log = logging.getLogger(__name__)

_LOOPBACK: Final = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class Ready:
    """A running peer: its id, the addresses that others can dial, whether its machine is simulated, whether it offers
    resources, and the URL of its metrics."""

    peer_id: str
    addrs: tuple[str, ...]
    simulated: bool
    offers: bool
    metrics: str | None = None


@dataclass(frozen=True, slots=True)
class Node:
    """A peer that can be run: its home, and its configuration as in PeerConfig.

    Without `discovery` it neither finds peers nor can be found. `reread` returns the current configuration; SIGHUP
    calls it. It blocks on disk and raises DocumentError. `config` is the configuration of the start, with which the new
    one is compared.
    """

    home: Home
    listen: tuple[str, ...] = ()
    announce: tuple[str, ...] = ()
    machine: str | None = None
    guard: Guard = "enforce"
    sample_interval: float = 5.0
    share_machine: bool = False
    terms: OwnerTerms | None = None
    discovery: DiscoverySettings | None = None
    access: OwnerAccess = field(default_factory=OwnerAccess)
    network: NetworkSettings | None = None
    metrics: str | None = None
    limits: PeerLimits = field(default_factory=PeerLimits)
    allocations: AllocationTerms = field(default_factory=AllocationTerms)
    executors: Mapping[str, ExecutorSettings] = field(default_factory=dict)
    config: PeerConfig | None = None
    reread: Callable[[], PeerConfig] | None = None

    @classmethod
    def of(cls, home: Home, config: PeerConfig, reread: Callable[[], PeerConfig] | None = None) -> Node:
        """The peer of a home with a configuration."""
        return cls(
            home=home,
            listen=config.listen,
            announce=config.announce,
            machine=config.machine,
            guard=config.guard,
            sample_interval=config.sample_interval,
            share_machine=config.share_machine,
            terms=config.terms,
            discovery=config.discovery,
            access=config.access,
            network=config.network,
            metrics=config.metrics,
            limits=config.limits,
            allocations=config.allocations,
            executors=config.executors,
            config=config,
            reread=reread,
        )

    async def run(self, announce: Callable[[Ready | None], None], mark: StartMark | None = None) -> None:
        """Run until a signal stops it. Calls `announce` when it is ready, and with None when it has stopped.

        `mark` is the mark of this start, if the caller has set it. It is removed when the peer answers its owner.
        Raises what `open` raises.
        """
        ends = RunSignals(has_terminal())
        with trio.open_signal_receiver(*ends.numbers) as signals:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(ends.follow, signals, nursery.cancel_scope)
                nursery.start_soon(return_free_memory)
                async with self._open(mark) as running:
                    announce(running.ready)
                    while True:
                        await ends.reload_asked()
                        await running.reload()
        if not ends.terminal_gone:
            announce(None)

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Ready]:
        """Runs the peer while the block runs.

        Raises IdentityError, MachineFileError, MachineInUseError, ListenError, AddressError, PolicyError,
        StorageError and PeerError.
        """
        async with self._open() as running:
            yield running.ready

    @asynccontextmanager
    async def _open(self, mark: StartMark | None = None) -> AsyncIterator[_Running]:
        home = self.home
        for address in self.listen:
            parse_listen_address(address)
        if self.discovery is not None:
            bootstrap_peers(self.discovery.bootstrap)
        home.prepare()
        identity = load_or_create_identity(home.key_path)
        owner_terms, access, limits = self.terms or OwnerTerms(), self.access, self.limits
        async with AsyncExitStack() as stack:
            # Until the socket answers, commands report that the peer is starting, and leave ledger and GPUs alone.
            start = stack.enter_context(mark or StartMark(home.start_path))
            machine = await trio.to_thread.run_sync(home.machine, self.machine)
            monitor = UsageMonitor(machine, home.path, interval=self.sample_interval)
            manager = await self._open_manager(stack, machine, monitor)
            home.remember_machine(self.machine, machine)
            registration = await self._register(stack, machine, manager)
            # Read only now: until this process has the ledger, another command may revoke a grant.
            revocations = Revocations(home.revocations_path)
            policies = await stack.enter_async_context(open_policies(owner_terms.policies))
            terms = CurrentTerms(owner_terms.bid_terms(policies))
            executors = await stack.enter_async_context(open_executors(self.executors, home.executors_path))
            offered = OfferedExecutors(executors, terms)
            await offered.probe()
            jobs = await self._open_jobs(stack, manager, executors, identity)
            await stack.enter_async_context(open_background(offered.run))
            host = await stack.enter_async_context(
                open_listening_host(
                    home, identity, self.listen, self.network,
                    limits=limits.host, relay_limits=limits.relay, announce=self.announce,
                )
            )  # fmt: skip
            counts, in_use, tunnels = ServiceCounts(), SharesInUse(access.shares), TunnelsInUse()
            metrics = await self._serve_metrics(stack, manager, counts, host, jobs)
            manager.reserve_ports(_own_ports(host, metrics))
            serving = await stack.enter_async_context(
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
                    jobs=jobs,
                    tunnels=tunnels,
                )
            )
            addrs = host_addresses(host)
            summary = terms_summary(self.terms) if self.terms else None
            administration = LocalAdministration(
                manager, identity.peer_id, partial(host_addresses, host), summary,
                counts=counts, limits_hit=host.swarm.limits_hit, registration=registration,
                jobs=jobs.jobs if jobs is not None else list, executors=lambda: offered.capabilities,
            )  # fmt: skip
            local = administration_operations(administration) | revocation_operations(revocations)
            served = peer_operations(manager, identity, terms)
            operations = reduce(or_, newest_of_each(served).values(), local)
            if self.discovery is not None:
                settings = replace(self.discovery, connection_limits=limits.connections, gossip_limits=limits.gossip)
                discovery = await stack.enter_async_context(
                    open_discovery(
                        host, identity, settings,
                        home=home, manager=manager, terms=terms, access=serving.current_rules, shares=in_use,
                    )
                )  # fmt: skip
                operations |= requesting_operations(host, discovery, manager, served, jobs, tunnels)
                calls = PeerCalls(discovery.network, EnvelopeChecker())
                await stack.enter_async_context(
                    open_background(partial(keep_deployments, LeaseJournal(home.path), calls))
                )
                operations |= peers_operations(partial(peer_notes, discovery), lambda: discovery.peering.connected)
            await stack.enter_async_context(serve_socket(home.socket_path, operations, identity.peer_id))
            start.remove()
            offers = manager.get_onboarded_resources() is not None
            ready = Ready(identity.peer_id, addrs, machine.simulated, offers, metrics)
            yield _Running(ready, self.reread, terms, offered, serving, administration, self.config)

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
                        allocation_terms=self.allocations,
                        read_ports=read_used_ports,
                    )
                )
            except LedgerInUseError:
                # A command of the owner has it for a moment only, but another peer keeps it.
                if trio.current_time() > deadline:
                    raise
                await trio.sleep(RETRY_INTERVAL)

    async def _register(
        self, stack: AsyncExitStack, machine: MachineResources, manager: ResourceManager
    ) -> Registration | None:
        """Registers this peer among those that offer this machine; None for a machine that is only described."""
        if machine.simulated:
            return None
        registration = Registration(self.home.path, machine, share_machine=self.share_machine)
        onboarded = manager.get_onboarded_resources()
        stack.enter_context(registration.registered(onboarded))
        for sentence in await trio.to_thread.run_sync(registration.sentences, onboarded):
            _log.warning("%s", sentence)
        return registration

    async def _open_jobs(
        self,
        stack: AsyncExitStack,
        manager: ResourceManager,
        executors: Mapping[str, Executor],
        identity: Identity,
    ) -> JobManager | None:
        # A peer without executors that never had one keeps nothing of jobs.
        if not executors and not self.home.jobs_path.exists():
            return None
        return await stack.enter_async_context(
            open_job_manager(manager, executors, self.home.jobs_path, peer_id=identity.peer_id)
        )

    async def _serve_metrics(
        self,
        stack: AsyncExitStack,
        manager: ResourceManager,
        counts: ServiceCounts,
        host: HardenedHost,
        jobs: JobManager | None,
    ) -> str | None:
        if self.metrics is None:
            return None
        # Metrics are off by default, and importing their library takes time.
        from .telemetry.metrics import PeerCollector
        from .telemetry.metrics_server import serve_metrics

        address, _, port = self.metrics.rpartition(":")
        collector = PeerCollector(
            manager,
            counts,
            connections=lambda: len(host.swarm.get_connections()),
            limits_hit=host.swarm.limits_hit,
            version=__version__,
            jobs=jobs.jobs if jobs is not None else list,
        )
        bound = await stack.enter_async_context(serve_metrics(collector, address or _LOOPBACK, int(port)))
        return f"http://{address or _LOOPBACK}:{bound}/metrics"


def _own_ports(host: HardenedHost, metrics: str | None) -> frozenset[int]:
    """The ports on which the peer itself listens: for other peers, and for its metrics."""
    found = (re.search(r"/(?:tcp|udp)/([0-9]+)", str(address)) for address in host.get_transport_addrs())
    ports = {int(match[1]) for match in found if match is not None}
    return frozenset(ports | ({urlsplit(metrics).port or 0} if metrics else set()))


@dataclass(slots=True)
class _Running:
    """A running peer, and its parts that follow a new configuration."""

    ready: Ready
    reread: Callable[[], PeerConfig] | None
    terms: CurrentTerms
    offered: OfferedExecutors
    serving: Serving
    administration: LocalAdministration
    started: PeerConfig | None

    async def reload(self) -> None:
        """Apply the current configuration. If it is invalid, this is logged and the old one stays in force."""
        if self.reread is None:
            _log.warning("SIGHUP: this peer has no configuration to read again")
            return
        try:
            new = await trio.to_thread.run_sync(self.reread)
        except DocumentError as error:
            _log.error("the old configuration stays in force: %s", "; ".join(filter(None, (error.message, error.hint))))
            return
        except OSError as error:
            # For example, the working directory was removed.
            _log.error("the old configuration stays in force: %s", error)
            return
        owner_terms = new.terms or OwnerTerms()
        # Policies have processes and connections, so those of the start are kept.
        self.offered.replace_terms(owner_terms.bid_terms(self.terms.terms.async_policies))
        self.serving.replace(new.access.rules, new.limits.service)
        self.administration.terms = terms_summary(new.terms) if new.terms else None
        _log.info("the configuration was read again")
        if self.started is not None and (unchanged := needs_restart(self.started, new)):
            _log.warning("changed in the configuration, but in force only after a restart: %s", ", ".join(unchanged))
