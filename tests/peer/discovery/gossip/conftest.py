"""Hosts on loopback that gossip with each other."""

from __future__ import annotations

from contextlib import asynccontextmanager

import pytest
import trio

from dms_host import dial, host_addresses, open_host
from dms_host.keys.identity import new_identity
from dms_peer.discovery.gossip.gossip import GossipVerdict, open_gossip
from dms_peer.discovery.gossip.limits import GossipLimits

LOOPBACK = "/ip4/127.0.0.1/tcp/0"
GOSSIP_TOPIC = "/test/topic/1.0.0"


class Gossiper:
    """One host with gossip: the messages that it validated, and those that it accepted."""

    def __init__(self, host, gossip, scope) -> None:
        self.host = host
        self.gossip = gossip
        self.scope = scope
        self.stopped = trio.Event()
        self.verdicts = {}
        self.validation_time = 0.0
        self.asked = []
        self.heard = []
        self.origins = set()

    @property
    def peer_id(self) -> str:
        return self.host.get_id().to_base58()

    async def validate(self, bringer: str, data: bytes) -> GossipVerdict:
        self.asked.append(data)
        await trio.sleep(self.validation_time)
        verdict = self.verdicts.get(data, GossipVerdict.ACCEPT)
        if isinstance(verdict, Exception):
            raise verdict
        return verdict

    def handle(self, origin: str, data: bytes) -> None:
        self.heard.append(data)
        self.origins.add(origin)

    async def stop(self) -> None:
        self.scope.cancel()
        await self.stopped.wait()


@pytest.fixture
def gossipers(eventually):
    """Opens hosts with gossip on one topic: `as peers`, once all are subscribed.

    Each is connected to the four before it; in a `line` to one of them, in a `star` to the first one.
    """

    async def run(limits, task_status) -> None:
        scope = trio.CancelScope()
        with scope:
            async with open_host(new_identity(), [LOOPBACK]) as host, open_gossip(host, limits) as gossip:
                peer = Gossiper(host, gossip, scope)
                await gossip.subscribe(GOSSIP_TOPIC, peer.validate, peer.handle)
                task_status.started(peer)
                await trio.sleep_forever()
        peer.stopped.set()

    @asynccontextmanager
    async def open_all(number: int, *, limits: GossipLimits | None = None, line: bool = False, star: bool = False):
        def before(index: int) -> range:
            return range(min(index, 1)) if star else range(max(0, index - (1 if line else 4)), index)

        async with trio.open_nursery() as nursery:
            peers = [await nursery.start(run, limits or GossipLimits()) for _ in range(number)]
            for index, peer in enumerate(peers):
                for other in before(index):
                    await dial(peer.host, host_addresses(peers[other].host)[0])
            for index, peer in enumerate(peers):
                neighbours = len(before(index)) + sum(index in before(later) for later in range(index + 1, number))
                await eventually(lambda peer=peer, n=neighbours: peer.gossip.peers(GOSSIP_TOPIC) == n, 30)
            yield peers
            nursery.cancel_scope.cancel()

    return open_all
