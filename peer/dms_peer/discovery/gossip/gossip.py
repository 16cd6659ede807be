"""Gossipsub, protected: topics that all peers of the network hear, whatever strangers send.

Rules:

1. Nothing that a peer sends, and nothing that the library does with it, ends more than that peer's stream.
2. If the library fails nevertheless, gossip is restarted, after a longer pause each time, with one line in the log. The
   peer and everything else that it serves continue.
3. A message is lost if no subscriber is connected. A publisher that needs to be heard publishes again.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from enum import Enum, auto

import trio
from libp2p.abc import IHost
from libp2p.peer.id import ID
from libp2p.pubsub.pb import rpc_pb2
from libp2p.tools.anyio_service import background_trio_service

from dms_protocols.logs import LimitedLog
from dms_resources.tasks import open_background

from .limits import GossipLimits
from .peer_scores import PeerScores
from .pubsub import GuardedPubsub
from .router import new_router

__all__ = ["Gossip", "GossipStatistics", "GossipVerdict", "open_gossip"]

logger = logging.getLogger(__name__)
limited_log = LimitedLog(logger)


class GossipVerdict(Enum):
    """The verdict on a message: accept and pass on, ignore, or reject at the cost of its sender."""

    ACCEPT = auto()
    IGNORE = auto()
    REJECT = auto()


Validator = Callable[[str, bytes], Awaitable[GossipVerdict]]
Handler = Callable[[str, bytes], None]


@dataclass(frozen=True, slots=True)
class GossipStatistics:
    """The state of gossip at one moment: whether it runs, its restarts, its peers, and the messages that it dropped
    because there were too many."""

    running: bool
    restarts: int
    peers: int
    dropped: int


@dataclass(frozen=True, slots=True)
class _Topic:
    validator: Validator
    handler: Handler | None


class Gossip:
    """Publishes and receives messages on topics. `open_gossip` makes it."""

    def __init__(self, host: IHost, limits: GossipLimits) -> None:
        self._host = host
        self._limits = limits
        self._scores = PeerScores(limits)
        self._topics: dict[str, _Topic] = {}
        self._pubsub: GuardedPubsub | None = None
        self._nursery: trio.Nursery | None = None
        self._restarts = 0
        self._changed = trio.Event()

    @property
    def statistics(self) -> GossipStatistics:
        """The current state."""
        peers = 0 if self._pubsub is None else len(self._pubsub.peers)
        return GossipStatistics(self._pubsub is not None, self._restarts, peers, self._scores.dropped)

    def peers(self, topic: str) -> int:
        """The number of connected peers that subscribe to this topic."""
        return 0 if self._pubsub is None else len(self._pubsub.peer_topics.get(topic, ()))

    async def wait_running(self) -> None:
        """Wait until gossip runs."""
        while self._pubsub is None:
            await self._changed.wait()

    async def subscribe(self, topic: str, validator: Validator, handler: Handler | None = None) -> None:
        """Subscribe to a topic from now on, across restarts.

        `validator(bringer, data)` decides about each message, within some seconds; it gets the id of the peer that
        forwarded the message, and the data. `handler(origin, data)` gets each accepted message with the id of the peer
        that signed it; it must not wait. Both may see a message twice. Raises ValueError if the topic is already
        subscribed.
        """
        if topic in self._topics:
            raise ValueError(f"{topic} is heard already")
        self._topics[topic] = _Topic(validator, handler)
        if self._pubsub is not None and self._nursery is not None:
            await self._join(self._pubsub, self._nursery, topic)

    async def publish(self, topic: str, data: bytes) -> bool:
        """Send a message to all peers. Returns whether any peer can have received it. Raises ValueError if it is too
        large.
        """
        if len(data) > self._limits.message_bytes:
            raise ValueError(f"a message has at most {self._limits.message_bytes} bytes, not {len(data)}")
        pubsub = self._pubsub
        if pubsub is None:
            await trio.lowlevel.checkpoint()
            return False
        try:
            await pubsub.publish(topic, data)
        except Exception as error:
            _report("publishing failed", error)
            return False
        return self.peers(topic) > 0

    # Running

    async def keep(self) -> None:
        """Run gossip, and restart it whenever it has failed. `open_gossip` runs it."""
        pause = self._limits.first_pause
        while True:
            begun = trio.current_time()
            try:
                await self._run()
            except* Exception as group:
                # `except*`, because the library may raise its errors together with a cancellation, which must continue.
                _report("gossip failed and starts again", group)
            self._restarts += 1
            if trio.current_time() - begun > self._limits.healthy_after:
                pause = self._limits.first_pause
            await trio.sleep(pause)
            pause = min(2 * pause, self._limits.longest_pause)

    async def _run(self) -> None:
        router = new_router(self._limits)
        pubsub = GuardedPubsub(self._host, router, self._limits, self._scores)
        try:
            async with background_trio_service(router), background_trio_service(pubsub), trio.open_nursery() as nursery:
                await pubsub.wait_until_ready()
                for topic in self._topics:
                    await self._join(pubsub, nursery, topic)
                nursery.start_soon(pubsub.run_tasks)
                self._pubsub, self._nursery = pubsub, nursery
                self._changed.set()
                await trio.sleep_forever()
        finally:
            self._pubsub = self._nursery = None
            self._changed = trio.Event()
            await pubsub.retire()

    async def _join(self, pubsub: GuardedPubsub, nursery: trio.Nursery, name: str) -> None:
        topic = self._topics[name]

        async def validate(bringer: ID, message: rpc_pb2.Message) -> bool:
            return bringer == pubsub.my_id or await self._accepts(pubsub, topic, bringer, message)

        pubsub.set_topic_validator(name, validate, True)
        subscription = await pubsub.subscribe(name)

        async def handle() -> None:
            while True:
                message = await subscription.get()
                self._handle(pubsub, topic, message)

        nursery.start_soon(handle)

    async def _accepts(self, pubsub: GuardedPubsub, topic: _Topic, bringer: ID, message: rpc_pb2.Message) -> bool:
        try:
            verdict = await topic.validator(bringer.to_base58(), message.data)
        except Exception as error:
            _report("a validator failed", error)
            return False
        if verdict is GossipVerdict.REJECT:
            pubsub.penalty(bringer)
        return verdict is GossipVerdict.ACCEPT

    def _handle(self, pubsub: GuardedPubsub, topic: _Topic, message: rpc_pb2.Message) -> None:
        origin = ID(message.from_id)
        if topic.handler is None or origin == pubsub.my_id:
            return
        try:
            topic.handler(origin.to_base58(), message.data)
        except Exception as error:
            _report("a handler failed", error)


def _report(what: str, error: BaseException) -> None:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    limited_log.error("%s: %s", what, " ".join(repr(error).split())[:200])


@asynccontextmanager
async def open_gossip(host: IHost, limits: GossipLimits | None = None) -> AsyncIterator[Gossip]:
    """Gossip on `host` while the block runs, with all connected peers that speak it.

    At its end it removes the protocols from the host, within a few seconds, even if cancelled. An error of the block is
    raised as it is.
    """
    gossip = Gossip(host, limits or GossipLimits())
    async with open_background(gossip.keep):
        await gossip.wait_running()
        yield gossip
