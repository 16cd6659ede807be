"""Peers push their own adverts, and get those of others in pages."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio.testing

from dms_protocols.adverts.adverts import AdvertTable, open_advert, seal_advert
from dms_protocols.adverts.exchange import PeersClient, advert_exchange_operations
from dms_protocols.errors import RemoteError
from dms_protocols.messages.adverts import CapacityAdvert
from dms_protocols.rpc.client import open_client
from dms_protocols.rpc.operations import Caller
from dms_protocols.rpc.service import serve_stream
from dms_resources.components import CPU, RAM, Disk, FreeResources
from dms_resources.units import Cores

NOW = 1_700_000_000.0


def advert(peer_id: str, *, sequence: int = 1, cores: int = 8, issued_at: float = NOW) -> CapacityAdvert:
    return CapacityAdvert(
        peer_id=peer_id,
        addrs=(f"/ip4/192.0.2.1/tcp/1/p2p/{peer_id}",),
        sequence=sequence,
        issued_at=issued_at,
        ttl=600,
        free=FreeResources(
            cpu=CPU(cores=Cores.of(cores)), ram=RAM(size=2**35), disk=Disk(size=2**40), gpus=(), ports=9,
            onboarded=True, draining=False, simulated=False,
        ),
    )  # fmt: skip


@pytest.fixture
def table(provider: Any) -> AdvertTable:
    return AdvertTable(provider.opener, own_id=provider.signer.peer_id, clock=lambda: NOW)


@pytest.fixture
def exchange(table: AdvertTable, provider: Any) -> Callable[..., Any]:
    """Opens a client of the exchange as some peer."""
    own = seal_advert(advert(provider.signer.peer_id), provider.signer)

    @asynccontextmanager
    async def connect(peer_id: str, *, own: bytes | None = own) -> AsyncIterator[PeersClient]:
        operations = advert_exchange_operations(table, lambda: own, lambda: 45.0)
        ours, theirs = trio.testing.memory_stream_pair()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve_stream, theirs, operations, Caller(peer_id))
            async with open_client(ours) as client:
                yield PeersClient(client)

    return connect


async def test_a_peer_brings_its_own_advert(exchange: Any, table: AdvertTable, requester: Any) -> None:
    raw = seal_advert(advert(requester.peer_id), requester)
    async with exchange(requester.peer_id) as peers:
        assert await peers.advertise(raw) == 45.0
        assert await peers.advertise(raw) == 45.0
    assert table.get(requester.peer_id) is not None


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda raw: raw[:-1] + bytes([raw[-1] ^ 1]), "bad_signature"),
        (lambda raw: b"garbage", "bad_envelope"),
        (lambda raw: raw * 100, "bad_advert"),
    ],
)
async def test_what_proves_nothing_is_refused(exchange: Any, requester: Any, change: Any, code: str) -> None:
    raw = change(seal_advert(advert(requester.peer_id), requester))
    async with exchange(requester.peer_id) as peers:
        with pytest.raises(RemoteError) as refused:
            await peers.advertise(raw)
    assert refused.value.code == code


async def test_nobody_brings_anothers(exchange: Any, table: AdvertTable, requester: Any, stranger: Any) -> None:
    async with exchange(stranger.peer_id) as peers:
        with pytest.raises(RemoteError) as refused:
            await peers.advertise(seal_advert(advert(requester.peer_id), requester))
    assert refused.value.code == "not_your_advert"
    assert len(table) == 0


async def test_an_old_advert_is_refused(exchange: Any, requester: Any) -> None:
    async with exchange(requester.peer_id) as peers:
        await peers.advertise(seal_advert(advert(requester.peer_id, sequence=5), requester))
        with pytest.raises(RemoteError) as refused:
            await peers.advertise(seal_advert(advert(requester.peer_id, sequence=4), requester))
    assert refused.value.code == "old_advert"


async def test_whoever_asks_gets_the_peers_own_first(
    exchange: Any, table: AdvertTable, provider: Any, requester: Any
) -> None:
    table.accept(seal_advert(advert(requester.peer_id), requester))
    async with exchange("anybody") as peers:
        answer = await peers.adverts()
    opened = [open_advert(raw, provider.opener, now=NOW).peer_id for raw in answer.adverts]
    assert opened == [provider.signer.peer_id, requester.peer_id]
    assert answer.next == ""


async def test_a_peer_without_an_advert_gives_those_of_others(
    exchange: Any, table: AdvertTable, requester: Any
) -> None:
    table.accept(seal_advert(advert(requester.peer_id), requester))
    async with exchange("anybody", own=None) as peers:
        assert len((await peers.adverts()).adverts) == 1


async def test_pages_give_everybody_once(exchange: Any, table: AdvertTable, provider: Any, new_signer: Any) -> None:
    signers = [new_signer(number) for number in range(10, 30)]
    for signer in signers:
        table.accept(seal_advert(advert(signer.peer_id), signer))
    seen: list[str] = []
    async with exchange("anybody", own=None) as peers:
        after = ""
        while True:
            answer = await peers.adverts(limit=7, after=after)
            seen += [open_advert(raw, provider.opener, now=NOW).peer_id for raw in answer.adverts]
            after = answer.next
            if not after:
                break
    assert sorted(seen) == sorted(signer.peer_id for signer in signers)


async def test_a_demand_leaves_out_who_has_no_room(
    exchange: Any, table: AdvertTable, provider: Any, new_signer: Any, node: Any
) -> None:
    small, large = new_signer(10), new_signer(11)
    table.accept(seal_advert(advert(small.peer_id, cores=2), small))
    table.accept(seal_advert(advert(large.peer_id, cores=32), large))
    async with exchange("anybody", own=None) as peers:
        answer = await peers.adverts(demand=node(cores=16).resources)
    assert [open_advert(raw, provider.opener, now=NOW).peer_id for raw in answer.adverts] == [large.peer_id]
