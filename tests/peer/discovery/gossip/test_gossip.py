"""Gossip between real hosts on loopback."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from libp2p.pubsub.gossipsub import GossipSub

from dms_peer.discovery.gossip.gossip import Gossip, GossipVerdict, open_gossip
from dms_peer.discovery.gossip.limits import GossipLimits

TOPIC = "/test/topic/1.0.0"


async def test_everybody_hears_what_is_published(gossipers: Any, eventually: Any) -> None:
    async with gossipers(9) as peers:
        await peers[4].gossip.publish(TOPIC, b"news")
        await eventually(lambda: all(peer.heard == [b"news"] for peer in peers if peer is not peers[4]), 30)
        assert all(peer.origins == {peers[4].peer_id} for peer in peers if peer is not peers[4])
        assert peers[4].heard == []


async def test_the_living_hear_when_a_quarter_is_gone(gossipers: Any, eventually: Any) -> None:
    async with gossipers(9) as peers:
        await peers[0].gossip.publish(TOPIC, b"before")
        await eventually(lambda: all(peer.heard for peer in peers[1:]), 30)
        for peer in peers[1:3]:
            await peer.stop()
        living = peers[3:]
        await peers[0].gossip.publish(TOPIC, b"after")
        await eventually(lambda: all(b"after" in peer.heard for peer in living), 30)


async def test_what_a_validator_does_not_accept_goes_no_further(gossipers: Any, eventually: Any) -> None:
    # A line of three, so that the one in the middle has to pass it on.
    async with gossipers(3, line=True) as (first, middle, last):
        middle.verdicts[b"no"] = GossipVerdict.IGNORE
        await first.gossip.publish(TOPIC, b"no")
        await first.gossip.publish(TOPIC, b"yes")
        await eventually(lambda: b"yes" in last.heard, 30)
        assert b"no" in middle.asked
        assert middle.heard == [b"yes"]
        assert b"no" not in last.asked


async def test_a_message_is_handled_once_from_however_many_sides_it_comes(gossipers: Any, eventually: Any) -> None:
    async with gossipers(5) as peers:
        for peer in peers:
            peer.validation_time = 0.02
        messages = [b"%d" % number for number in range(20)]
        for message in messages:
            await peers[0].gossip.publish(TOPIC, message)
        await eventually(lambda: all(set(peer.heard) >= set(messages) for peer in peers[1:]), 30)
        # By now all copies have arrived at every host that received this message.
        for peer in peers:
            await peer.gossip.publish(TOPIC, b"the last of %s" % peer.peer_id.encode())
        await eventually(lambda: all(len(set(peer.heard)) == 24 for peer in peers[1:]), 30)
        assert all(sorted(peer.heard) == sorted(set(peer.heard)) for peer in peers)
        assert all(sorted(peer.asked) == sorted(set(peer.asked)) for peer in peers)


async def test_a_validator_that_fails_costs_its_message_only(gossipers: Any, eventually: Any) -> None:
    async with gossipers(2) as (first, second):
        second.verdicts[b"boom"] = ZeroDivisionError("ours")
        await first.gossip.publish(TOPIC, b"boom")
        await first.gossip.publish(TOPIC, b"next")
        await eventually(lambda: second.heard == [b"next"])
        assert second.gossip.statistics.restarts == 0


async def test_who_passes_on_what_is_rejected_is_shunned(gossipers: Any, eventually: Any) -> None:
    limits = GossipLimits(penalties=3)
    async with gossipers(3, limits=limits) as (first, second, third):
        bad = [b"bad %d" % number for number in range(3)]
        second.verdicts.update(dict.fromkeys(bad, GossipVerdict.REJECT))
        third.verdicts.update(dict.fromkeys(bad, GossipVerdict.IGNORE))
        for message in bad:
            await first.gossip.publish(TOPIC, message)
        await eventually(lambda: second.gossip.statistics.peers == 1)
        await first.gossip.publish(TOPIC, b"good")
        await eventually(lambda: third.heard == [b"good"])
        # A later message on the same path arrives, so the other one would have arrived too.
        await third.gossip.publish(TOPIC, b"later")
        await eventually(lambda: b"later" in second.heard)
        assert second.heard == [b"later"]


async def test_gossip_that_fails_starts_again(gossipers: Any, eventually: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async with gossipers(3, limits=GossipLimits(first_pause=0.05)) as peers:
        original, victim = GossipSub.mesh_heartbeat, peers[1]
        router, failed = victim.gossip._pubsub.router, []

        def failing(self: GossipSub) -> Any:
            if self is router and not failed:
                failed.append(self)
                raise KeyError("the library's own")
            return original(self)

        monkeypatch.setattr(GossipSub, "mesh_heartbeat", failing)
        await eventually(lambda: victim.gossip.statistics.restarts == 1)
        await eventually(lambda: all(peer.gossip.peers(TOPIC) == 2 for peer in peers), 30)
        await peers[0].gossip.publish(TOPIC, b"after")
        await eventually(lambda: b"after" in victim.heard and b"after" in peers[2].heard, 30)
        await victim.gossip.publish(TOPIC, b"mine")
        await eventually(lambda: b"mine" in peers[0].heard, 30)


async def test_what_is_published_while_nobody_listens_is_lost(server: Any) -> None:
    async with open_gossip(server) as gossip:
        await gossip.subscribe(TOPIC, accept_all, ignore)
        assert not await gossip.publish(TOPIC, b"alone")
        with pytest.raises(ValueError, match="bytes"):
            await gossip.publish(TOPIC, bytes(GossipLimits().message_bytes + 1))
        with pytest.raises(ValueError, match="already"):
            await gossip.subscribe(TOPIC, accept_all, ignore)


async def test_the_host_is_as_before_when_gossip_ends(server: Any, client: Any) -> None:
    before = set(server.get_mux().get_protocols())
    notifees = list(server.get_network().notifees)
    for _ in range(3):
        async with open_gossip(server) as gossip:
            assert isinstance(gossip, Gossip)
            assert "/meshsub/1.1.0" in server.get_mux().get_protocols()
    assert set(server.get_mux().get_protocols()) == before
    assert server.get_network().notifees == notifees


async def test_an_error_of_the_caller_comes_out_as_it_is(server: Any) -> None:
    with pytest.raises(KeyError):
        async with open_gossip(server):
            raise KeyError("mine")


async def accept_all(bringer: str, data: bytes) -> GossipVerdict:
    await trio.lowlevel.checkpoint()
    return GossipVerdict.ACCEPT


def ignore(origin: str, data: bytes) -> None:
    pass
