"""Lying providers: the answers of each kind. They have no ledger and no capacity.

`overbids`: bids on everything and then refuses the commitments. `swaps`: answers commitments with leases of other ids
and holders. `poses`: signs bids in the name of others, or passes theirs on. `forgets`: commits everything and knows
nothing of it afterwards. `mute`: accepts requests and never answers. `babbles`: answers with meaningless bytes.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from typing import Any

import trio
from msgspec.structs import replace

from dms_protocols.bidding.signing import open_bid, seal_bid
from dms_protocols.bidding.versions import BID_1_0, BID_1_1, BidVersion
from dms_protocols.errors import BusyError
from dms_protocols.messages.allocation import (
    AllocateRequest,
    CommitAnswer,
    CommitRequest,
    LeaseAnswer,
    ReleaseAnswer,
    ReleaseRequest,
    RenewRequest,
)
from dms_protocols.messages.bid import Bid, BidAnswer, BidRequest, EnsembleRequest, bid_lease_id
from dms_protocols.protocol_ids import ALLOCATION_PROTOCOL, BID_PROTOCOL, BID_PROTOCOL_1_1
from dms_protocols.rpc.operations import Caller, Operations
from dms_protocols.wire.conversion import from_map
from dms_resources.components import CPU, GPU, RAM, Disk, GPUVendor, Resources
from dms_resources.demands import Demand
from dms_resources.errors import NotCommittedError, StaleFenceError
from dms_resources.ledger.leases import EndedLease, EndReason, Lease, LeaseState
from dms_resources.refusals import InsufficientError

from ..scheduling import EPOCH
from ..signing import SimulatedOpener, SimulatedSigner
from ..streams import DelayedStream
from .story import Story
from .witness import Tellings

__all__ = ["LIES", "Liar", "babbler"]

LIES = ("overbids", "swaps", "poses", "forgets", "mute", "babbles")


class Liar:
    """One lying provider of a kind. `operations` is what it serves."""

    def __init__(
        self, peer_id: str, kind: str, victims: list[str], story: Story, tellings: Tellings, rng: random.Random
    ) -> None:
        self._peer_id = peer_id
        self._kind = kind
        self._victims = victims
        self._story = story
        self._tellings = tellings
        self._rng = rng
        self._fence = 0

    @property
    def operations(self) -> dict[str, Operations]:
        """The protocols of bids and allocations, by protocol id."""
        allocations = Operations()
        allocations.slow(CommitRequest, self._commit)
        allocations.slow(RenewRequest, self._renew)
        allocations.slow(AllocateRequest, self._allocate)
        allocations.slow(ReleaseRequest, self._release)
        return {
            BID_PROTOCOL: self._bid_operations(BID_1_0),
            BID_PROTOCOL_1_1: self._bid_operations(BID_1_1),
            ALLOCATION_PROTOCOL: allocations,
        }

    def _bid_operations(self, version: BidVersion) -> Operations:
        async def bid(request: BidRequest, caller: Caller) -> BidAnswer:
            return await self._bid(request, caller, version)

        operations = Operations()
        operations.slow(BidRequest, bid)
        return operations

    async def _bid(self, request: BidRequest, caller: Caller, version: BidVersion) -> BidAnswer:
        self._story.say(f"lie {self._kind}", liar=self._peer_id, to=caller.peer_id)
        if self._kind == "mute":
            await trio.sleep_forever()
        if self._kind == "poses" and self._tellings.bids and self._rng.random() < 0.5:
            return BidAnswer(bids=tuple(raw for _, raw in self._tellings.bids[-4:]), refusals=())
        ensemble = from_map(request.ensemble, EnsembleRequest)
        bids = self._made_up(ensemble, caller.peer_id, version.digest(request.ensemble))
        return BidAnswer(bids=tuple(seal_bid(bid, SimulatedSigner(self._peer_id)) for bid in bids), refusals=())

    def _made_up(self, ensemble: EnsembleRequest, requester: str, digest: bytes) -> list[Bid]:
        provider = self._rng.choice(self._victims) if self._kind == "poses" else self._peer_id
        return [
            Bid(
                request_digest=digest,
                ensemble_id=ensemble.id,
                nonce=ensemble.nonce,
                node_id=node.node_id,
                lease_id=bid_lease_id(requester=requester, digest=digest, node_id=node.node_id, provider=provider),
                requester=requester,
                provider=provider,
                demand=node.resources,
                public_ports=node.public_ports,
                resources=_as_asked(node.resources),
                valid_until=EPOCH + trio.current_time() + 60.0,
            )
            for node in ensemble.request
        ]

    async def _commit(self, request: CommitRequest, caller: Caller) -> CommitAnswer:
        self._story.say(f"lie {self._kind} about a commitment", liar=self._peer_id, to=caller.peer_id)
        if self._kind == "overbids":
            raise InsufficientError("there never was any", shortages=())
        bids = [open_bid(raw, SimulatedOpener()) for raw in request.bids]
        leases = [self._lease(bid, caller.peer_id, request.ttl) for bid in bids]
        if self._kind == "swaps":
            leases = [
                replace(lease, lease_id=f"other-{lease.lease_id}", holder=self._rng.choice(self._victims))
                for lease in leases
            ]
        return CommitAnswer(leases=tuple(leases))

    async def _renew(self, request: RenewRequest, caller: Caller) -> LeaseAnswer:
        if self._rng.random() < 0.5:
            raise BusyError("later", retry_after=1.0)
        raise NotCommittedError("what lease?", lease_id=request.lease_id)

    async def _allocate(self, request: AllocateRequest, caller: Caller) -> LeaseAnswer:
        raise NotCommittedError("what lease?", lease_id=request.lease_id)

    async def _release(self, request: ReleaseRequest, caller: Caller) -> ReleaseAnswer:
        if self._rng.random() < 0.5:
            raise StaleFenceError("what lease?", lease_id=request.lease_id)
        ended = EndedLease(
            lease_id="another",
            holder="nobody",
            state=LeaseState.ALLOCATED,
            fence=7,
            reason=EndReason.REPAIRED,
            ended=0.0,
        )
        return ReleaseAnswer(lease=ended)

    def _lease(self, bid: Bid, holder: str, ttl: float) -> Lease:
        self._fence += 1
        now = EPOCH + trio.current_time()
        return Lease(
            lease_id=bid.lease_id,
            holder=holder,
            state=LeaseState.COMMITTED,
            demand=bid.demand,
            resources=bid.resources,
            fence=self._fence,
            created=now,
            ttl=ttl,
            deadline=now + ttl,
        )


def _as_asked(demand: Demand) -> Resources:
    return Resources(
        cpu=CPU(cores=demand.cpu.cores),
        ram=RAM(size=demand.ram.size),
        disk=Disk(size=demand.disk.size),
        gpus=tuple(
            GPU(uuid=f"GPU-{index}", vendor=GPUVendor.NVIDIA, vram=gpu.vram) for index, gpu in enumerate(demand.gpus)
        ),
    )


def babbler(story: Story, rng: random.Random) -> Callable[[DelayedStream], Awaitable[None]]:
    """Answer every stream with noise, some of which looks like frames."""

    async def babble(stream: DelayedStream) -> None:
        story.say("lie babbles")
        try:
            while await stream.receive_some():
                await stream.send_all(rng.choice(_NOISE)(rng))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        stream.close()

    return babble


_NOISE: tuple[Callable[[random.Random], Any], ...] = (
    lambda rng: rng.randbytes(rng.randint(1, 300)),
    lambda rng: b"\xff" * 12,
    lambda rng: bytes([40]) + rng.randbytes(40),
    # An answer to the first request, with an "ok" of an unexpected form.
    lambda rng: b"\x0a\xa2\x62id\x00\x62ok\xa0" + b"\x00" * 3,
)
