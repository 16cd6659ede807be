"""A libp2p host that strangers cannot exhaust. `builder.open_host` starts it."""

from __future__ import annotations

import logging
from contextlib import suppress

from libp2p.host.basic_host import BasicHost
from libp2p.peer.id import ID
from libp2p.tools.anyio_service.exceptions import LifecycleError
from multiaddr import Multiaddr  # type: ignore[import-untyped]  # it has no types

from .addresses import announced_addresses, host_addresses
from .identify.address_watch import AddressWatch
from .keys.identity import Identity
from .limits import HostLimits
from .relay.reservations import Reservations
from .relay.service import RelayService
from .streams.handlers import guarded
from .swarm.connection_gater import ConnectionGater
from .swarm.swarm import HardenedSwarm
from .transport.multistream import BoundedClient, BoundedMultiselect

__all__ = ["HardenedHost"]

logger = logging.getLogger(__name__)


class HardenedHost(BasicHost):
    """A libp2p host on a HardenedSwarm. Its negotiations are bounded, and a failing handler ends only its own stream.

    What breaks in `BasicHost`, in addition to what the parts say: identify runs as a trio system task, where an
    exception ends the whole program, and the host advertises any address under which a stranger claims to have seen it.
    """

    def __init__(
        self,
        identity: Identity,
        limits: HostLimits,
        gate: ConnectionGater | None = None,
        psk: bytes | None = None,
        agent: str = "",
        announced: tuple[str, ...] = (),
    ) -> None:
        self.agent = agent
        self.announced = announced
        self.swarm = HardenedSwarm(identity.key_pair(), limits, gate, psk)
        super().__init__(self.swarm, disable_identify_address_discovery=True)
        self.limits = limits
        self.address_watch = AddressWatch(lambda: self.announced_addresses, limits.address_interval)
        self.relay: RelayService | None = None
        self.reservations: Reservations | None = None
        self.multiselect = BoundedMultiselect(self.multiselect.handlers, limits)
        self.multiselect_client = BoundedClient(limits)
        self.swarm.set_stream_handler(guarded(self._swarm_stream_handler, limits.close_timeout))

    def get_addrs(self) -> list[Multiaddr]:
        """The addresses for identify. The original also lists wildcards such as 0.0.0.0."""
        return [Multiaddr(address) for address in self.announced_addresses]

    @property
    def announced_addresses(self) -> tuple[str, ...]:
        """The addresses with the peer id that others are told: at most eight, the best first. Queries the operating
        system.
        """
        return announced_addresses(host_addresses(self), self.announced)

    @property
    def relayed_addresses(self) -> tuple[str, ...]:
        """The addresses of this host behind the relays where it now has a reservation."""
        return () if self.reservations is None else self.reservations.addresses

    @property
    def gate(self) -> ConnectionGater:
        """The lists of allowed and denied peers and addresses."""
        return self.swarm.gate

    async def change_gater(self, gate: ConnectionGater) -> int:
        """Use these lists from now on, and close the connections that they do not allow. Returns how many were closed.

        Not cancellable; bounded by close_timeout.
        """
        return await self.swarm.change_gater(gate)

    def _schedule_identify(self, peer_id: ID, *, reason: str) -> None:
        known = peer_id in self._identify_inflight or self._has_cached_protocols(peer_id)
        if known or not self._should_identify_peer(peer_id):
            return
        self._identify_inflight.add(peer_id)
        # A swarm that is stopping starts no more tasks.
        with suppress(LifecycleError):
            self.swarm.manager.run_task(self._identify_task_entry, peer_id, reason)

    async def _identify_task_entry(self, peer_id: ID, reason: str) -> None:
        try:
            await super()._identify_task_entry(peer_id, reason)
        except* Exception as group:
            logger.debug("identify of %s failed: %r", peer_id, group.exceptions[0])
