"""The clients of the three protocols, each over a Client. They check each answer before they return it.

Every call has a deadline of `timeout` seconds, sends the `token` if one is given, and raises what `Client.call` raises.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager

from dms_resources.components import FreeResources, MachineResources, OnboardedResources, Resources
from dms_resources.ledger.leases import EndedLease, Lease

from .bidding.checks import BidChecker, Bids, SignedBid
from .bidding.signing import EnvelopeOpener
from .bidding.versions import bid_version
from .messages.allocation import (
    AllocateRequest,
    CommitAnswer,
    CommitRequest,
    LeaseAnswer,
    ListAnswer,
    ListRequest,
    ReleaseAnswer,
    ReleaseRequest,
    RenewRequest,
)
from .messages.bid import (
    BidAnswer,
    BidRequest,
    EnsembleRequest,
    OfferAnswer,
)
from .messages.resources import (
    AllocatedRequest,
    FreeRequest,
    MachineRequest,
    OnboardedRequest,
    UsageRequest,
    WatchRequest,
)
from .rpc.client import Client
from .wire.conversion import to_map

__all__ = ["AllocationClient", "BidClient", "Bids", "ResourcesClient", "SignedBid"]

_TIMEOUT = 10.0


class ResourcesClient:
    """A client of `/dms/resources/1.0.0`."""

    def __init__(self, client: Client, *, timeout: float = _TIMEOUT, token: bytes | None = None) -> None:
        self._client = client
        self._timeout = timeout
        self._token = token

    async def free(self) -> FreeResources:
        """What could be committed now."""
        return await self._client.call(FreeRequest(), FreeResources, timeout=self._timeout, token=self._token)

    async def onboarded(self) -> OnboardedResources:
        """What the owner offers. RemoteError `not_onboarded` if nothing is onboarded."""
        return await self._client.call(OnboardedRequest(), OnboardedResources, timeout=self._timeout, token=self._token)

    async def allocated(self) -> Resources:
        """The sum of all allocations."""
        return await self._client.call(AllocatedRequest(), Resources, timeout=self._timeout, token=self._token)

    async def machine(self) -> MachineResources:
        """What the hardware has."""
        return await self._client.call(MachineRequest(), MachineResources, timeout=self._timeout, token=self._token)

    async def usage(self) -> Resources:
        """What the machine uses now. RemoteError `usage_unknown` if the peer does not measure it."""
        return await self._client.call(UsageRequest(), Resources, timeout=self._timeout, token=self._token)

    def watch(self) -> AbstractAsyncContextManager[AsyncIterator[FreeResources]]:
        """The free capacity now and after every change. A slow reader gets the newest."""
        return self._client.watch(WatchRequest(), FreeResources, timeout=self._timeout, token=self._token)


class BidClient:
    """A client of `/dms/bid` at one provider, for one requester.

    Raises what BidChecker raises for a bid that it does not accept.
    """

    def __init__(
        self,
        client: Client,
        opener: EnvelopeOpener,
        *,
        requester: str,
        provider: str,
        timeout: float = _TIMEOUT,
        token: bytes | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._client = client
        self._version = bid_version(client.protocol)
        self._checker = BidChecker(opener, requester, clock)
        self._provider = provider
        self._timeout = timeout
        self._token = token

    async def request_bids(self, ensemble: EnsembleRequest, *, hold: float = 0.0, ttl: float = 0.0) -> Bids:
        """Request bids. `hold` (seconds) requests a hold of the offers; `ttl` says for how many seconds they will be
        committed.
        """
        request = BidRequest(ensemble=to_map(ensemble), hold=hold, ttl=ttl)
        answer = await self._client.call(request, BidAnswer, timeout=self._timeout, token=self._token)
        bids = tuple(
            self._checker.open(raw, ensemble, request.ensemble, provider=self._provider, version=self._version)
            for raw in answer.bids
        )
        return Bids(bids, answer.refusals)

    async def dry_run(self, ensemble: EnsembleRequest, *, hold: float = 0.0, ttl: float = 0.0) -> OfferAnswer:
        """Request what the provider would bid, or why it would not bid. The answer is unsigned and binds no peer."""
        request = BidRequest(ensemble=to_map(ensemble), dry_run=True, hold=hold, ttl=ttl)
        return await self._client.call(request, OfferAnswer, timeout=self._timeout, token=self._token)


class AllocationClient:
    """A client of `/dms/allocation`, in the newest version that both sides know."""

    def __init__(self, client: Client, *, timeout: float = _TIMEOUT, token: bytes | None = None) -> None:
        self._client = client
        self._timeout = timeout
        self._token = token

    async def commit(self, envelopes: Sequence[bytes], *, ttl: float) -> tuple[Lease, ...]:
        """Commit bids for `ttl` seconds, all or none. A repeated request with the same bids has the same answer."""
        request = CommitRequest(bids=tuple(envelopes), ttl=ttl)
        return (await self._client.call(request, CommitAnswer, timeout=self._timeout, token=self._token)).leases

    async def renew(self, lease_id: str, *, ttl: float, fence: int | None = None) -> Lease:
        """Move the deadline of a commitment to `ttl` seconds from now, or restart the keep-alive of an allocation.

        A provider that knows only `/dms/allocation/1.0.0` refuses to renew an allocation with `not_committed`.
        """
        request = RenewRequest(lease_id=lease_id, ttl=ttl, fence=fence)
        return (await self._client.call(request, LeaseAnswer, timeout=self._timeout, token=self._token)).lease

    async def allocate(self, lease_id: str, *, fence: int | None = None) -> Lease:
        """Turn a commitment into an allocation. If the `ttl` of the lease is not 0, renew it within that time."""
        request = AllocateRequest(lease_id=lease_id, fence=fence)
        return (await self._client.call(request, LeaseAnswer, timeout=self._timeout, token=self._token)).lease

    async def release(self, lease_id: str, *, fence: int | None = None) -> EndedLease:
        """Release a lease in any state."""
        request = ReleaseRequest(lease_id=lease_id, fence=fence)
        return (await self._client.call(request, ReleaseAnswer, timeout=self._timeout, token=self._token)).lease

    async def list(self, *, after: str = "", limit: int = 100) -> ListAnswer:
        """One page of this requester's leases, ordered by id. The first page also has the leases that the owner
        evicted.
        """
        return await self._client.call(
            ListRequest(after=after, limit=limit), ListAnswer, timeout=self._timeout, token=self._token
        )
