"""Hostile requesters: each act is one attack on one provider."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

import msgspec
import trio
from msgspec.structs import replace

from dms_host.errors import DialError
from dms_protocols.bidding.signing import open_bid, seal_bid
from dms_protocols.clients import AllocationClient, BidClient, SignedBid
from dms_protocols.errors import ProtocolError
from dms_protocols.messages.allocation import (
    AllocateRequest,
    CommitAnswer,
    CommitRequest,
    LeaseAnswer,
    ListRequest,
    ReleaseAnswer,
    ReleaseRequest,
    RenewRequest,
)
from dms_protocols.messages.bid import BidRequest, EnsembleRequest, NodeRequest
from dms_protocols.messages.resources import FreeRequest
from dms_protocols.protocol_ids import ALLOCATION_PROTOCOL, BID_PROTOCOL, RESOURCES_PROTOCOL
from dms_protocols.wire.conversion import to_bytes, to_map
from dms_protocols.wire.envelope import encode_request

from ..network import SimulatedNetwork
from ..providers import simulated_demand
from ..scheduling import EPOCH
from ..signing import SimulatedOpener, SimulatedSigner
from .provider import Provider
from .story import Story
from .witness import Tellings

__all__ = ["Attacker"]

_Answer = TypeVar("_Answer", bound=msgspec.Struct)

_TIMEOUT = 5.0


class Attacker:
    """One hostile peer."""

    def __init__(
        self,
        peer_id: str,
        network: SimulatedNetwork,
        providers: Sequence[Provider],
        story: Story,
        tellings: Tellings,
        rng: random.Random,
    ) -> None:
        self._peer_id = peer_id
        self._network = network
        self._providers = providers
        self._story = story
        self._tellings = tellings
        self._rng = rng
        self._acts: dict[str, Callable[[Provider], Awaitable[None]]] = {
            "replays": self._replay,
            "steals": self._steal,
            "meddles": self._meddle,
            "repeats": self._repeat,
            "floods": self._flood,
            "floods with bids": self._flood_bids,
            "crowds": self._crowd,
            "multiplies": self._multiply,
            "babbles": self._babble,
            "hoards": self._hoard,
            "forges": self._forge,
            "overstays": self._overstay,
        }

    async def act(self, acts: int, seconds: float) -> None:
        """Perform this many acts, over about this time, whatever their results."""
        for _ in range(acts):
            await trio.sleep(self._rng.uniform(0.0, 2.0 * seconds / acts))
            name = self._rng.choice(list(self._acts))
            provider = self._rng.choice(self._providers)
            self._story.say(f"attack {name}", by=self._peer_id, on=provider.peer_id)
            with suppress(ProtocolError, DialError, trio.BrokenResourceError, trio.ClosedResourceError):
                with trio.move_on_after(120.0):
                    await self._acts[name](provider)

    # Bids

    async def _replay(self, provider: Provider) -> None:
        """Commit a bid, release it, and commit it again: at once, and later."""
        bids = await self._bids(provider)
        async with self._allocations(provider) as client:
            for lease in await client.commit(bids, ttl=20.0):
                await client.release(lease.lease_id)
            for _ in range(2):
                with suppress(ProtocolError):
                    await client.commit(bids, ttl=20.0)
                    self._story.fail(f"{provider.peer_id} gave a released bid out again")
                await trio.sleep(self._rng.uniform(0.0, 10.0))

    async def _steal(self, provider: Provider) -> None:
        """Send the next bid that was made for another requester, before that requester does, alone or with
        an own one.
        """
        await self._tellings.wait_bids()
        others = [raw for bid, raw in self._tellings.bids if bid.requester != self._peer_id]
        if not others:
            return
        stolen = others[-1]
        provider = self._provider_of(stolen, provider)
        own = await self._bids(provider) if self._rng.random() < 0.5 else []
        async with self._allocations(provider) as client:
            await client.commit([*own, stolen], ttl=20.0)
            self._story.fail(f"{provider.peer_id} gave {self._peer_id} what it bid to somebody else")

    async def _forge(self, provider: Provider) -> None:
        """Send bids that were changed, that it signed itself, or that another provider made."""
        bids = await self._bids(provider)
        if not bids:
            return
        raw = bytearray(bids[0])
        raw[self._rng.randrange(len(raw))] ^= 1 << self._rng.randrange(8)
        forged = [bytes(raw)]
        own = [bid for bid, _ in self._tellings.bids if bid.requester == self._peer_id]
        if own:
            forged.append(seal_bid(replace(own[-1], lease_id="chosen"), SimulatedSigner(self._peer_id)))
        forged += [raw for bid, raw in self._tellings.bids if bid.provider != provider.peer_id][:1]
        async with self._allocations(provider) as client:
            for one in forged:
                with suppress(ProtocolError):
                    await client.commit([one], ttl=20.0)
                    self._story.fail(f"{provider.peer_id} took a bid that it did not make")

    async def _hoard(self, provider: Provider) -> None:
        """Request holds for bids that it never commits."""
        for _ in range(3):
            await self._bids(provider, hold=60.0)

    async def _overstay(self, provider: Provider) -> None:
        """Request impossible times, commit what it gets, and leave an allocation behind."""
        bids = await self._bids(provider)
        async with self._allocations(provider) as client:
            for ttl in (1e300, float("inf"), float("nan"), -1.0, 1e-9):
                with suppress(ProtocolError):
                    await client.commit(bids, ttl=ttl)
            for lease in await client.commit(await self._bids(provider), ttl=30.0):
                await client.allocate(lease.lease_id, fence=lease.fence)

    # Leases of others

    async def _meddle(self, provider: Provider) -> None:
        """Renew, allocate and release leases of others, whose ids and numbers it knows."""
        if not provider.witness.standing():
            # A requester with a bid is about to commit it.
            await self._tellings.wait_bids()
            await trio.sleep(self._rng.uniform(0.5, 3.0))
            provider = next((one for one in self._providers if one.witness.standing()), provider)
        others = [lease for lease in provider.witness.standing() if lease.holder != self._peer_id]
        async with self._allocations(provider) as client:
            for lease in self._rng.sample(others, min(len(others), 3)):
                fence = self._rng.choice((lease.fence, None))
                for call in (
                    partial(client.renew, lease.lease_id, ttl=0.001, fence=fence),
                    partial(client.allocate, lease.lease_id, fence=fence),
                    partial(client.release, lease.lease_id, fence=fence),
                ):
                    with suppress(ProtocolError):
                        await call()
            with suppress(ProtocolError):
                await client.list()

    # Repetitions

    async def _repeat(self, provider: Provider) -> None:
        """Send each request several times, together and later. The answers have to be the same."""
        bids = await self._bids(provider)
        committed = await self._same(provider, CommitRequest(bids=tuple(bids), ttl=20.0), CommitAnswer)
        lease_id = committed.leases[0].lease_id if committed else "unknown"
        if self._rng.random() < 0.5:
            await self._same(provider, AllocateRequest(lease_id=lease_id), LeaseAnswer)
        await self._same(provider, ReleaseRequest(lease_id=lease_id), ReleaseAnswer)

    async def _same(self, provider: Provider, request: msgspec.Struct, kind: type[_Answer]) -> _Answer | None:
        answers: list[_Answer] = []

        async def ask() -> None:
            with suppress(ProtocolError):
                answers.append(await client.call(request, kind, timeout=_TIMEOUT))

        async with self._network.peer(self._peer_id).client(provider.peer_id, ALLOCATION_PROTOCOL) as client:
            async with trio.open_nursery() as nursery:
                for _ in range(3):
                    nursery.start_soon(ask)
            await trio.sleep(self._rng.uniform(0.0, 3.0))
            await ask()
        if any(answer != answers[0] for answer in answers):
            self._story.fail(f"{provider.peer_id} answers {request} with {answers}")
        return answers[0] if answers else None

    # Floods

    async def _flood(self, provider: Provider) -> None:
        """Send hundreds of requests in one write, without reading the answers."""
        protocol, request = self._rng.choice(
            (
                (ALLOCATION_PROTOCOL, ListRequest()),
                (RESOURCES_PROTOCOL, FreeRequest()),
                (ALLOCATION_PROTOCOL, ReleaseRequest(lease_id="unknown")),
                (ALLOCATION_PROTOCOL, RenewRequest(lease_id="unknown", ttl=30.0)),
            )
        )
        await self._send(provider, protocol, [to_bytes(request)] * 150)

    async def _flood_bids(self, provider: Provider) -> None:
        ensemble = to_map(self._ensemble())
        requests = [to_bytes(BidRequest(ensemble={**ensemble, "nonce": number})) for number in range(80)]
        await self._send(provider, BID_PROTOCOL, requests)

    async def _crowd(self, provider: Provider) -> None:
        """Open streams until no more are accepted, and keep them."""
        network = self._network.peer(self._peer_id)
        streams = [await network.stream(provider.peer_id, RESOURCES_PROTOCOL) for _ in range(12)]
        await trio.sleep(self._rng.uniform(1.0, 20.0))
        for stream in streams:
            stream.close()

    async def _multiply(self, provider: Provider) -> None:
        """Use many peer ids, and use up the share of each, so that all of them have to be remembered."""
        question = to_bytes(FreeRequest())
        for number in range(10):
            stream = await self._network.peer(f"{self._peer_id}-{number}").stream(provider.peer_id, RESOURCES_PROTOCOL)
            await stream.send_all(b"".join(encode_request(one, question) for one in range(100)))
            await trio.sleep(0.2)
            stream.close()

    async def _babble(self, provider: Provider) -> None:
        """Send meaningless bytes, endless frames, half a frame."""
        stream = await self._network.peer(self._peer_id).stream(
            provider.peer_id, self._rng.choice((ALLOCATION_PROTOCOL, BID_PROTOCOL))
        )
        frame = encode_request(1, to_bytes(ListRequest()))
        noise = (
            self._rng.randbytes(500), b"\xff" * 20, b"\x80\x80\x08" + b"x" * 1000, frame[:-3],
            frame + b"\x05\x9f\x9f\x9f\x9f\x9f", b"\x7f" + b"\x81" * 127,
        )  # fmt: skip
        await stream.send_all(self._rng.choice(noise))
        await trio.sleep(self._rng.uniform(0.0, 20.0))
        stream.close()

    # Internal

    def _provider_of(self, raw: bytes, other: Provider) -> Provider:
        made_by = open_bid(raw, SimulatedOpener()).provider
        return next((one for one in self._providers if one.peer_id == made_by), other)

    async def _send(self, provider: Provider, protocol: str, requests: Sequence[bytes]) -> None:
        stream = await self._network.peer(self._peer_id).stream(provider.peer_id, protocol)
        await stream.send_all(b"".join(encode_request(number, one) for number, one in enumerate(requests)))
        await trio.sleep(self._rng.uniform(0.1, 5.0))
        stream.close()

    def _allocations(self, provider: Provider) -> _Allocations:
        return _Allocations(self._network, self._peer_id, provider.peer_id)

    def _ensemble(self) -> EnsembleRequest:
        nodes = tuple(
            NodeRequest(node_id=f"n{number}", resources=simulated_demand(cores=0.5))
            for number in range(self._rng.randint(1, 2))
        )
        deadline = EPOCH + trio.current_time() + 3600.0
        return EnsembleRequest(id="attack", nonce=self._rng.getrandbits(62), deadline=deadline, request=nodes)

    async def _bids(self, provider: Provider, *, hold: float = 0.0) -> list[bytes]:
        async with self._network.peer(self._peer_id).client(provider.peer_id, BID_PROTOCOL) as client:
            bidder = BidClient(
                client, SimulatedOpener(), requester=self._peer_id, provider=provider.peer_id, timeout=_TIMEOUT,
                clock=lambda: 0.0,
            )  # fmt: skip
            bids: Sequence[SignedBid] = (await bidder.request_bids(self._ensemble(), hold=hold)).bids
            return [bid.envelope for bid in bids]


class _Allocations:
    """A client of one provider's allocations, as a block."""

    def __init__(self, network: SimulatedNetwork, peer_id: str, provider: str) -> None:
        self._opening = network.peer(peer_id).client(provider, ALLOCATION_PROTOCOL)

    async def __aenter__(self) -> AllocationClient:
        return AllocationClient(await self._opening.__aenter__(), timeout=_TIMEOUT)

    async def __aexit__(self, *error: Any) -> bool | None:
        return await self._opening.__aexit__(*error)
