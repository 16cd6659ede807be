"""Opens all ways to find peers, as the settings say, for a running peer or for a requester."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Final

import trio
from libp2p.abc import IHost

from dms_host import HardenedHost, host_addresses
from dms_host.addresses import announced_addresses
from dms_host.keys.identity import Identity
from dms_protocols.adverts.adverts import AdvertTable
from dms_protocols.bidding.service import BidTerms, CurrentTerms
from dms_protocols.rpc.access import AccessRules, CurrentRules
from dms_protocols.rpc.shares import SharesInUse
from dms_resources.manager import ResourceManager
from dms_resources.tasks import open_background

from ..connections import ConnectionPool, open_connections
from ..home.home import Home
from ..home.journal_recorder import JournalRecorder
from ..home.lease_journal import LeaseJournal
from ..requesting.limits import RequesterLimits
from ..requesting.network import Broadcast, CandidateSource, PeerNetwork
from ..requesting.recording import LeaseRecorder
from ..requesting.requester import Requester
from ..signing import EnvelopeChecker, host_identity
from .adverts.open import Adverts, AdvertSetup, Provider, open_adverts
from .dht.kademlia import Kademlia, open_kademlia
from .dht.providing import keep_providing
from .identity_copies import IdentityCopies
from .known_peers import KnownPeers, open_known_peers
from .mdns import MDNSPeers, open_mdns
from .peering import Peering, bootstrap_peers
from .settings import DiscoverySettings

__all__ = ["Discovery", "open_discovery", "open_requester"]

# Seconds that a search waits for the first connections: more than a dial takes, less than a failing dial takes.
_FIRST_DIALS: Final = 5.0
_SOME: Final = 8


@dataclass(frozen=True, slots=True)
class Discovery:
    """The open ways to find peers. `sources` are in the order of their cost. A source that is switched off is None."""

    network: ConnectionPool
    sources: tuple[CandidateSource, ...]
    broadcast: Broadcast | None
    known: KnownPeers
    peering: Peering
    adverts: Adverts
    mdns: MDNSPeers | None = None
    dht: Kademlia | None = None
    recorder: LeaseRecorder | None = None

    def requester(
        self, limits: RequesterLimits | None = None, token: bytes | None = None, network: PeerNetwork | None = None
    ) -> Requester:
        """A requester that queries all sources, and whose answers make the next search cheaper.

        It sends the `token` to providers that require one. `network` replaces the connections, for a peer that is to be
        its own requester.
        """
        return Requester(
            network or self.network,
            EnvelopeChecker(),
            self.sources,
            broadcast=self.broadcast,
            observer=self.known,
            limits=limits,
            token=token,
            skip_self=network is None,
            recorder=self.recorder,
        )


@asynccontextmanager
async def open_discovery(
    host: IHost,
    identity: Identity,
    settings: DiscoverySettings | None = None,
    *,
    home: Home | None = None,
    manager: ResourceManager | None = None,
    terms: BidTerms | CurrentTerms | None = None,
    connections: ConnectionPool | None = None,
    access: AccessRules | CurrentRules | None = None,
    shares: SharesInUse | None = None,
) -> AsyncIterator[Discovery]:
    """Find peers and, with a `manager`, let others find this one, while the block runs.

    Known peers, and the leases of reservations, are saved in the `home`; without one they are kept in memory. `access`
    says which facts are published, and whose broadcast requests are answered. `shares` are the limits of other peers:
    pass those of `serve`, so that all their streams count together. Nothing is waited for: sources fill while they are
    used. Raises AddressError for an invalid bootstrap address, and ProtocolError if the host already serves one of the
    protocols. Later errors are logged.
    """
    settings = settings or DiscoverySettings()
    current = access if isinstance(access, CurrentRules) else CurrentRules(access)
    bootstrap = bootstrap_peers(settings.bootstrap)

    def addrs() -> tuple[str, ...]:
        return announced_addresses(host_addresses(host), getattr(host, "announced", ()))

    async def moved() -> tuple[str, ...]:
        copies.note_own()
        await wait_moved()
        return addrs()

    wait_moved = host.address_watch.wait_changed if isinstance(host, HardenedHost) else trio.sleep_forever

    copies = IdentityCopies(partial(host_addresses, host))
    if manager is not None:
        copies.heard(bootstrap.get(identity.peer_id, ()))
    async with AsyncExitStack() as stack:
        path = home.peers_path if home is not None and settings.known else None
        known = await stack.enter_async_context(open_known_peers(path, most=settings.max_known_peers))
        # Other peers get the addresses of this one only if it offers something.
        mdns = None
        if settings.mdns:
            mdns = await stack.enter_async_context(
                open_mdns(identity.peer_id, addrs(), changes=moved, on_own=copies.heard)
                if manager
                else open_mdns(identity.peer_id)
            )
        if connections is None:
            book = partial(_addresses, known, mdns)
            connections = await stack.enter_async_context(
                open_connections(host, addresses=book, limits=settings.connection_limits)
            )
        dht = None
        if settings.dht:
            dht = await stack.enter_async_context(open_kademlia(host, connections, addrs, server=manager is not None))
            if manager is not None:
                await stack.enter_async_context(open_background(partial(keep_providing, dht, manager, access=current)))
        peering = Peering(host, connections, bootstrap, known)
        in_use = shares or SharesInUse()
        provider = Provider(manager, terms, current, in_use.limits) if manager else None
        adverts = await stack.enter_async_context(
            open_adverts(
                AdvertSetup(
                    host,
                    identity,
                    addrs,
                    settings,
                    connections,
                    peering.partners,
                    peering.wait_changed,
                    in_use,
                    on_own=copies.heard_advert,
                    addrs_changed=wait_moved,
                    trusts=await _trust(home, known),
                ),
                provider,
            )
        )
        peering.add_source(partial(_heard, mdns, adverts.table))
        await stack.enter_async_context(open_background(partial(peering.keep, settings.bootstrap_interval)))
        likely, others = (known, known.others) if settings.known else (None, None)
        sources: list[CandidateSource | None] = [likely, *adverts.sources, mdns, dht, others]
        yield Discovery(
            network=connections,
            sources=tuple(source for source in sources if source is not None),
            broadcast=adverts.broadcast,
            known=known,
            peering=peering,
            adverts=adverts,
            mdns=mdns,
            dht=dht,
            recorder=JournalRecorder(home.path) if home is not None else None,
        )


async def _trust(home: Home | None, known: KnownPeers) -> Callable[[str], bool]:
    """Tells the peers that this one traded with, or that answered it, from strangers."""
    traded = await trio.to_thread.run_sync(LeaseJournal(home.path).providers) if home is not None else []
    partners = frozenset(provider.peer_id for provider in traded)
    return lambda peer_id: peer_id in partners or known.answered(peer_id)


def _addresses(known: KnownPeers, mdns: MDNSPeers | None, peer_id: str) -> Sequence[str]:
    """The possible addresses of a peer, from all sources."""
    peer = known.get(peer_id)
    heard = mdns.peers().get(peer_id, ()) if mdns else ()
    return (*(peer.addrs if peer else ()), *heard)


def _heard(mdns: MDNSPeers | None, adverts: AdvertTable) -> Mapping[str, Sequence[str]]:
    """Some peers that were heard of: those on the local network, and a random choice of the others."""
    near = mdns.peers() if mdns else {}
    return {one.advert.peer_id: one.advert.addrs for one in adverts.some(_SOME)} | near


@asynccontextmanager
async def open_requester(
    host: IHost,
    settings: DiscoverySettings | None = None,
    *,
    identity: Identity | None = None,
    home: Home | None = None,
    limits: RequesterLimits | None = None,
    token: bytes | None = None,
) -> AsyncIterator[Requester]:
    """Yield a requester on any libp2p host while the block runs.

    Before that, the first connections are tried, for some seconds at most. The host's key must be Ed25519 if no
    `identity` is given (IdentityError). Raises what `open_discovery` raises.
    """
    async with open_discovery(host, identity or host_identity(host), settings, home=home) as discovery:
        with trio.move_on_after(_FIRST_DIALS):
            await discovery.peering.wait_tried()
        yield discovery.requester(limits, token)
