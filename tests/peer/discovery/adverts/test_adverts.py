"""Adverts name candidates, by gossip and by exchange."""

from __future__ import annotations

from typing import Any

import pytest
import trio

from dms_peer.discovery.adverts.advertiser import AdvertKeeper, AdvertPusher
from dms_peer.discovery.adverts.exchange import ExchangeSource
from dms_peer.discovery.adverts.schedule import AdvertSchedule
from dms_peer.discovery.adverts.source import AdvertSource, AdvertValidator
from dms_peer.discovery.gossip.gossip import GossipVerdict
from dms_protocols.adverts.exchange import PeersClient
from dms_protocols.messages.adverts import ADVERT_DOMAIN, ADVERT_PAYLOAD_TYPE
from dms_simulation.signing import SimulatedSigner


async def test_what_was_heard_is_named_with_its_age(
    autojump_clock: Any, new_peer: Any, machine: Any, demand: Any, ensemble: Any, found: Any
) -> None:
    requester = await new_peer("requester")
    provider = await new_peer("provider", machine(cores=8))
    small = await new_peer("small", machine(cores=1))
    for peer in (provider, small):
        assert requester.table.accept(peer.advertise()).outcome == "new"
    await trio.sleep(7)
    request = ensemble(demand(cores=4))
    (candidate,) = await found(AdvertSource(requester.table), request)
    assert (candidate.peer_id, candidate.addrs, candidate.source) == ("provider", ("/memory/provider",), "adverts")
    assert candidate.free.cpu.cores.to_number() == 8
    assert candidate.age(candidate.free_at + 7) == 7


async def test_what_is_new_goes_on_and_what_was_known_does_not(
    autojump_clock: Any, new_peer: Any, machine: Any
) -> None:
    requester, provider = await new_peer("requester"), await new_peer("provider", machine())
    validate = AdvertValidator(requester.table)
    raw = provider.advertise(ttl=100)
    assert await validate("bringer", raw) is GossipVerdict.ACCEPT
    assert await validate("bringer", raw) is GossipVerdict.IGNORE
    assert await validate("bringer", provider.advertise()) is GossipVerdict.ACCEPT
    assert await validate("bringer", raw) is GossipVerdict.IGNORE
    assert await validate("bringer", b"garbage") is GossipVerdict.REJECT
    assert await validate("bringer", SimulatedSigner("liar").sign(ADVERT_DOMAIN, ADVERT_PAYLOAD_TYPE, b"\xa0")) is (
        GossipVerdict.REJECT
    )
    assert requester.count.estimate() == 1


async def test_an_advert_that_expired_on_its_way_is_nobodys_fault(
    autojump_clock: Any, new_peer: Any, machine: Any
) -> None:
    requester, provider = await new_peer("requester"), await new_peer("provider", machine())
    raw = provider.advertise(ttl=10)
    await trio.sleep(11)
    assert await AdvertValidator(requester.table)("bringer", raw) is GossipVerdict.IGNORE


# The exchange


async def test_one_address_leads_to_every_able_provider(
    autojump_clock: Any, new_peer: Any, machine: Any, demand: Any, ensemble: Any, found: Any
) -> None:
    """With the exchange alone: providers push their adverts to one peer, and a new peer queries only that one."""
    bootstrap = await new_peer("bootstrap", machine(cores=2))
    bootstrap.advertise()
    for number in range(30):
        provider = await new_peer(f"p{number:02}", machine(cores=8 if number % 3 else 1))
        raw = provider.advertise()
        async with provider.network.client("bootstrap", "/dms/peers/1.0.0") as client:
            await PeersClient(client).advertise(raw)
    newcomer = await new_peer("newcomer")
    source = ExchangeSource(newcomer.network, newcomer.table, lambda: {"bootstrap": ()})
    named = await found(source, ensemble(demand(cores=4)))
    assert sorted(one.peer_id for one in named) == [f"p{number:02}" for number in range(30) if number % 3]
    assert {one.source for one in named} == {"exchange"}
    # The answering peer is named too, if it is able.
    named = await found(source, ensemble(demand(cores=2)))
    assert "bootstrap" in {one.peer_id for one in named}


async def test_more_than_one_page_is_asked_for(
    autojump_clock: Any, new_peer: Any, machine: Any, demand: Any, ensemble: Any, found: Any
) -> None:
    bootstrap, maker = await new_peer("bootstrap"), await new_peer("maker", machine())
    for number in range(300):
        signer = SimulatedSigner(f"p{number:03}")
        maker.own._signer = signer
        assert bootstrap.table.accept(maker.advertise(), sender=signer.peer_id).outcome == "new"
    requester = await new_peer("p150x")
    source = ExchangeSource(requester.network, requester.table, lambda: {"bootstrap": ()})
    named = [one.peer_id for one in await found(source, ensemble(demand(), demand(cores=2)))]
    assert sorted(named) == [f"p{number:03}" for number in range(300)]
    # It began after its own place in the order.
    assert named[0] == "p151"


async def test_a_partner_that_lies_is_not_believed(
    autojump_clock: Any, new_peer: Any, machine: Any, demand: Any, ensemble: Any, found: Any
) -> None:
    liar, provider = await new_peer("liar"), await new_peer("provider", machine())
    good = provider.advertise()
    liar.own._raw = good[:-1] + bytes([good[-1] ^ 1])
    liar.own._ends = float("inf")
    requester = await new_peer("requester")
    source = ExchangeSource(requester.network, requester.table, lambda: {"liar": (), "nobody": (), "requester": ()})
    assert await found(source, ensemble(demand())) == []


async def test_leaving_early_asks_no_further(
    autojump_clock: Any, new_peer: Any, machine: Any, demand: Any, ensemble: Any, network: Any
) -> None:
    bootstrap, maker = await new_peer("bootstrap"), await new_peer("maker", machine())
    for number in range(300):
        signer = SimulatedSigner(f"p{number:03}")
        maker.own._signer = signer
        bootstrap.table.accept(maker.advertise(), sender=signer.peer_id)
    requester = await new_peer("requester")
    source = ExchangeSource(requester.network, requester.table, lambda: {"bootstrap": ()})
    with pytest.raises(KeyError):  # noqa: PT012
        async with source.candidates(ensemble(demand())) as named:
            await anext(named)
            raise KeyError("mine")
    assert len(requester.table) < 100


# Pushing the own advert


class Partners(dict[str, tuple[str, ...]]):
    """Connected peers. The pusher is told when they change. Counts how often it checks."""

    def __init__(self, *names: str) -> None:
        super().__init__(dict.fromkeys(names, ()))
        self.changed, self.looks = trio.Event(), 0

    def __call__(self) -> dict[str, tuple[str, ...]]:
        self.looks += 1
        return self

    def become(self, *names: str) -> None:
        self.clear()
        self.update(dict.fromkeys(names, ()))
        self.changed.set()
        self.changed = trio.Event()

    async def wait_changed(self) -> None:
        await self.changed.wait()


def pusher_of(peer: Any, partners: Partners, **fields: Any) -> tuple[AdvertKeeper, AdvertPusher]:
    schedule = AdvertSchedule(**fields)
    keeper = AdvertKeeper(peer.own, peer.manager, schedule, peer.count, None)
    return keeper, AdvertPusher(peer.own, keeper, peer.network, partners, partners.wait_changed, schedule)


async def test_connected_peers_are_told_and_told_of_changes(
    autojump_clock: Any, new_peer: Any, machine: Any, nursery: trio.Nursery, demand: Any
) -> None:
    partner, provider = await new_peer("partner", again_after=200.0), await new_peer("provider", machine(cores=8))
    keeper, pusher = pusher_of(provider, Partners("partner"), interval=60, gap=5)
    nursery.start_soon(keeper.keep)
    nursery.start_soon(pusher.keep)
    await trio.sleep(1)
    first = partner.table.get("provider").advert
    await trio.sleep(150)
    # It wants the next advert only in 200 s.
    assert partner.table.get("provider").advert.sequence == first.sequence
    await provider.manager.commit_resources("lease-1", demand(cores=4), holder="somebody", ttl=1000)
    # At once, or when the gap after the last advert is over.
    await trio.sleep(6)
    assert partner.table.get("provider").advert.free.cpu.cores.to_number() == 4
    await trio.sleep(400)
    later = partner.table.get("provider").advert
    assert later.issued_at >= first.issued_at + 300


async def test_a_partner_that_cannot_be_told_costs_little(
    autojump_clock: Any, new_peer: Any, machine: Any, nursery: trio.Nursery, network: Any
) -> None:
    provider = await new_peer("provider", machine())
    network.add_host("old", {})
    keeper, pusher = pusher_of(provider, Partners("nobody", "old", "provider"), interval=1, gap=1)
    nursery.start_soon(keeper.keep)
    nursery.start_soon(pusher.keep)
    await trio.sleep(600)
    # One dial to each, and further ones to the peer that may return; none to itself.
    assert network.traffic.dials <= 2 + 600 / 30


async def test_a_partner_that_comes_later_is_told_at_once(
    autojump_clock: Any, new_peer: Any, machine: Any, nursery: trio.Nursery
) -> None:
    partner, provider = await new_peer("partner"), await new_peer("provider", machine())
    partners = Partners()
    keeper, pusher = pusher_of(provider, partners)
    nursery.start_soon(keeper.keep)
    nursery.start_soon(pusher.keep)
    await trio.sleep(20)
    assert len(partner.table) == 0
    partners.become("partner")
    await trio.sleep(0.5)
    assert partner.table.get("provider") is not None


async def test_nobody_looks_while_nothing_happens(
    autojump_clock: Any, new_peer: Any, machine: Any, nursery: trio.Nursery
) -> None:
    await new_peer("partner", again_after=3600.0)
    provider = await new_peer("provider", machine())
    partners = Partners("partner")
    keeper, pusher = pusher_of(provider, partners, interval=10_000, ttl=20_000)
    nursery.start_soon(keeper.keep)
    nursery.start_soon(pusher.keep)
    await trio.sleep(10)
    before = partners.looks
    await trio.sleep(1000)
    assert partners.looks == before


async def test_partners_that_come_and_go_are_looked_at_five_times_a_second_at_most(
    autojump_clock: Any, new_peer: Any, machine: Any, nursery: trio.Nursery
) -> None:
    await new_peer("partner")
    provider = await new_peer("provider", machine())
    partners = Partners()
    keeper, pusher = pusher_of(provider, partners)
    nursery.start_soon(keeper.keep)
    nursery.start_soon(pusher.keep)
    for number in range(1000):
        partners.become(*(["partner"] if number % 2 else []))
        await trio.sleep(0.01)
    assert partners.looks <= 52


async def test_freed_capacity_is_told_a_second_later_at_most(
    autojump_clock: Any, new_peer: Any, machine: Any, nursery: trio.Nursery, demand: Any
) -> None:
    partner, provider = await new_peer("partner"), await new_peer("provider", machine(cores=8))
    keeper, pusher = pusher_of(provider, Partners("partner"))
    nursery.start_soon(keeper.keep)
    nursery.start_soon(pusher.keep)

    def told() -> float:
        return float(partner.table.get("provider").advert.free.cpu.cores.to_number())

    for number in range(10):
        await trio.sleep(10 + number / 7)
        await provider.manager.commit_resources(f"lease-{number}", demand(cores=4), holder="somebody", ttl=1000)
        # At once, if nothing was published for a second.
        await trio.sleep(0.5)
        assert told() == 4
        await provider.manager.uncommit_resources(f"lease-{number}")
        await trio.sleep(1.5)
        assert told() == 8


async def test_a_partner_that_does_not_answer_holds_up_no_other(
    autojump_clock: Any, new_peer: Any, machine: Any, nursery: trio.Nursery, network: Any
) -> None:
    silent, partner = await new_peer("a silent one"), await new_peer("partner")
    provider = await new_peer("provider", machine())
    network.stop_host(silent.peer_id, silent=True)
    partners = Partners(silent.peer_id)
    keeper, pusher = pusher_of(provider, partners)
    nursery.start_soon(keeper.keep)
    nursery.start_soon(pusher.keep)
    await trio.sleep(1)
    partners.become(silent.peer_id, "partner")
    await trio.sleep(0.5)
    assert partner.table.get("provider") is not None


async def test_a_partner_that_could_not_be_told_is_told_when_it_is_back(
    autojump_clock: Any, new_peer: Any, machine: Any, nursery: trio.Nursery, network: Any
) -> None:
    partner, provider = await new_peer("partner"), await new_peer("provider", machine())
    network.stop_host("partner")
    keeper, pusher = pusher_of(provider, Partners("partner"), interval=10_000, ttl=20_000)
    nursery.start_soon(keeper.keep)
    nursery.start_soon(pusher.keep)
    await trio.sleep(20)
    network.add_host("partner", partner.operations)
    # There is no new advert, and the old one was not accepted.
    await trio.sleep(31)
    assert partner.table.get("provider") is not None
