"""The library's pubsub with replacements for what it reads, what it writes, and which peers take part.

What breaks in py-libp2p's `Pubsub`, in addition to what `gossip_rpcs` says:
- Each message becomes a task, however many there are, and a task that fails ends the service. If a message arrives from
  two sides at once, both copies are handled and passed on.
- A peer whose stream failed is tried for ever, every ten seconds, even if it does not speak the protocol.
- A new peer waits in a channel that a dead service never empties, and so do all peers that connect later.
- The cache of seen messages is unbounded and has a thread of its own that is never stopped.
- The router remembers for ever when each message came, and which peers stay out of a mesh.
Measure: this class. One task reads each stream and passes what it has read to the library one by one, so that a slow
validator delays only its own peer. An error ends only that stream. Routing is in `router`.
Upstream: no upstream report found (November 2026).
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from contextlib import suppress
from typing import Any, Final

import trio
from libp2p.abc import IHost, INetStream
from libp2p.custom_types import TProtocol
from libp2p.peer.id import ID
from libp2p.pubsub.gossipsub import GossipSub
from libp2p.pubsub.pb import rpc_pb2
from libp2p.pubsub.pubsub import Pubsub
from libp2p.pubsub.rpc_queue import RpcQueue

from dms_host.errors import DialError
from dms_host.streams.handlers import guarded
from dms_host.streams.outbound import living_connections, open_stream
from dms_host.streams.stream import PeerStream
from dms_host.swarm.connection_events import ConnectionEvents, notifees
from dms_host.tasks import shielded
from dms_protocols.errors import FrameError
from dms_protocols.logs import LimitedLog
from dms_protocols.wire.frames import FrameReader, Oversize, encode_frame
from dms_resources.bounded_dict import BoundedDict

from .limits import GossipLimits
from .peer_scores import PeerScores
from .router import PROTOCOLS
from .rpcs import GossipViolationError, read_rpc

__all__ = ["GuardedPubsub"]

logger = logging.getLogger(__name__)
limited_log = LimitedLog(logger)

_CLOSE_TIMEOUT: Final = 2.0
_SWEEP_INTERVAL: Final = 60.0


class _SeenMessages:
    """Message ids, `most` at most, each for `ttl` seconds."""

    def __init__(self, most: int, ttl: float) -> None:
        self._ttl = ttl
        self._seen: BoundedDict[bytes, float] = BoundedDict(most)

    def __len__(self) -> int:
        return len(self._seen)

    def add(self, key: bytes) -> bool:
        new = not self.has(key)
        self._seen[key] = trio.current_time() + self._ttl
        return new

    def has(self, key: bytes) -> bool:
        end = self._seen.get(key)
        return end is not None and end > trio.current_time()


class GuardedPubsub(Pubsub):
    """One run of pubsub on a host: strict signatures, and every byte of a peer is checked first.

    `run_tasks` has to run in a nursery beside the service, and `retire` has to be called when both have ended.
    """

    router: GossipSub

    def __init__(self, host: IHost, router: GossipSub, limits: GossipLimits, scores: PeerScores) -> None:
        before = len(notifees(host))
        super().__init__(
            host, router, strict_signing=True, validation_timeout=limits.validation_timeout, allowed_topics=frozenset()
        )
        # The library's notifee waits until its service handles each event.
        del notifees(host)[before:]
        self.seen_messages.stop()
        self.seen_messages: Any = _SeenMessages(limits.seen, limits.seen_ttl)
        self.limits = limits
        self.scores = scores
        self._events = ConnectionEvents(self._enrol_later, self._check_gone)
        self._reading: set[trio.CancelScope] = set()
        self._looking_at: set[bytes] = set()
        self._streams: Counter[ID] = Counter()
        self._enrolling: set[ID] = set()
        self._turns = trio.CapacityLimiter(limits.enrolling)
        self._nursery: trio.Nursery | None = None
        self._retired = False
        close_timeout = getattr(getattr(host, "limits", None), "close_timeout", _CLOSE_TIMEOUT)
        for protocol in PROTOCOLS:
            host.set_stream_handler(protocol, guarded(self.stream_handler, close_timeout))

    # Running

    async def run_tasks(self) -> None:
        """Enrol peers as they connect, and drop what the library would keep. Runs until cancelled."""
        try:
            async with trio.open_nursery() as self._nursery:
                self.host.get_network().register_notifee(self._events)
                for peer_id in self.host.get_connected_peers():
                    self._enrol_later(peer_id)
                while True:
                    await trio.sleep(_SWEEP_INTERVAL)
                    self._sweep()
        finally:
            self._nursery = None

    def _sweep(self) -> None:
        now = time.time()
        self.router.recent_message_deliveries.clear()
        for peers in self.router.back_off.values():
            for peer_id in [peer_id for peer_id, until in peers.items() if until <= now]:
                del peers[peer_id]

    async def retire(self) -> None:
        """Remove the protocols from the host and end all streams. Not cancellable, but bounded by a few seconds."""
        self._retired = True
        with suppress(ValueError):
            notifees(self.host).remove(self._events)
        for protocol in PROTOCOLS:
            self.host.remove_stream_handler(protocol)
        for scope in self._reading:
            scope.cancel()
        with shielded(_CLOSE_TIMEOUT):
            async with trio.open_nursery() as nursery:
                for stream in self._outbound():
                    nursery.start_soon(stream.areset)

    def _outbound(self) -> list[PeerStream]:
        streams: list[Any] = list(self.peers.values())
        return streams

    # Reading

    async def stream_handler(self, stream: INetStream) -> None:
        """Read one stream of a peer until its end. An error ends only this stream."""
        peer_id = stream.muxed_conn.peer_id
        if self._retired or self.is_peer_blacklisted(peer_id) or self._streams[peer_id] >= self.limits.peer_streams:
            await stream.reset()
            return
        self._streams[peer_id] += 1
        scope = trio.CancelScope()
        self._reading.add(scope)
        try:
            with scope:
                self._meet(peer_id)
                await self._read(PeerStream(stream), peer_id)
        except (GossipViolationError, FrameError) as error:
            self._penalize(peer_id, str(error))
            await stream.reset()
        except trio.BrokenResourceError:
            # The peer disconnected.
            await stream.reset()
        finally:
            self._reading.discard(scope)
            self._streams[peer_id] -= 1
            if not self._streams[peer_id]:
                del self._streams[peer_id]
        if scope.cancelled_caught:
            await stream.reset()

    async def _read(self, stream: PeerStream, peer_id: ID) -> None:
        frames = FrameReader(self.limits.rpc_bytes, self.limits.rpc_bytes)
        while data := await stream.receive_some():
            frames.feed(data)
            for frame in frames:
                if isinstance(frame, Oversize):
                    raise GossipViolationError(f"an RPC of {frame.length} bytes")
                await self._take(peer_id, read_rpc(frame, self.topic_ids, self.limits))

    async def _take(self, peer_id: ID, rpc: rpc_pb2.RPC) -> None:
        scores = self.scores.of(peer_id.to_bytes())
        for change in rpc.subscriptions:
            if not scores.subscriptions.take(trio.current_time()):
                raise GossipViolationError("subscriptions that come and go")
            self.handle_subscription(peer_id, change)
        for message in rpc.publish:
            await self._push(peer_id, message)
        if rpc.HasField("control") and scores.controls.take(trio.current_time()):
            await self.router.handle_rpc(rpc, peer_id)
        # However much there is to read, other tasks get their turn.
        await trio.lowlevel.checkpoint()

    async def _push(self, peer_id: ID, message: rpc_pb2.Message) -> None:
        name = self.get_message_id(message)
        # A message comes from many sides, and often while its first copy is still being examined.
        if name in self._looking_at or self.seen_messages.has(name):
            return
        if not self.scores.admits_message(peer_id.to_bytes()):
            return
        self._looking_at.add(name)
        try:
            await self.push_msg(peer_id, message)
        finally:
            self._looking_at.discard(name)
        # The peer is ignored because of this message.
        if self.is_peer_blacklisted(peer_id):
            raise GossipViolationError("messages that are none")

    def handle_subscription(self, origin_id: ID, sub_message: rpc_pb2.RPC.SubOpts) -> None:
        """Like the original, but only for our own topics."""
        self.allowed_topics = frozenset(self.topic_ids)
        super().handle_subscription(origin_id, sub_message)

    def is_peer_blacklisted(self, peer_id: ID) -> bool:
        """Whether this peer is ignored now."""
        return self.scores.ignores(peer_id.to_bytes())

    def penalty(self, peer_id: ID) -> None:
        """Note that a peer passed on what no honest peer would."""
        self._penalize(peer_id, "a message that cannot be believed")

    def _penalize(self, peer_id: ID, why: str) -> None:
        ignored = self.scores.penalty(peer_id.to_bytes())
        limited_log.log(logging.INFO, "%s sent %s%s", peer_id, why, "; ignored" if ignored else "")
        if ignored:
            self._handle_dead_peer(peer_id)

    # Taking part

    def _meet(self, peer_id: ID) -> None:
        """A peer opened a stream. If ours to it has ended since, it has restarted and does not know us."""
        stream: Any = self.peers.get(peer_id)
        if stream is not None and stream.over:
            self._handle_dead_peer(peer_id)
        self._enrol_later(peer_id)

    def _check_gone(self, peer_id: ID) -> None:
        if not living_connections(self.host, peer_id):
            self._handle_dead_peer(peer_id)

    def _handle_dead_peer(self, peer_id: ID) -> None:
        stream: Any = self.peers.get(peer_id)
        super()._handle_dead_peer(peer_id)
        if stream is not None and self._nursery is not None and not self._retired:
            self._nursery.start_soon(stream.areset)

    def _schedule_peer_stream_retry(self, peer_id: ID) -> None:
        # Not at once: a peer that ends every stream would otherwise get a new one for every message.
        self._enrol_later(peer_id, self.limits.enrol_pause)

    def _enrol_later(self, peer_id: ID, seconds: float = 0.0) -> None:
        known = peer_id in self.peers or peer_id in self._enrolling
        if known or self._retired or self._nursery is None or self.is_peer_blacklisted(peer_id):
            return
        self._enrolling.add(peer_id)
        self._nursery.start_soon(self._enrol, peer_id, seconds)

    async def _enrol(self, peer_id: ID, seconds: float) -> None:
        pause = self.limits.enrol_pause
        try:
            await trio.sleep(seconds)
            for _ in range(self.limits.enrol_attempts):
                if await self._try_to_enrol(peer_id):
                    return
                await trio.sleep(pause)
                pause *= 2
        finally:
            self._enrolling.discard(peer_id)

    async def _try_to_enrol(self, peer_id: ID) -> bool:
        """Open the stream on which we send to a peer. Returns whether no further attempt is needed for now."""
        try:
            async with self._turns:
                stream = await open_stream(self.host, peer_id.to_base58(), PROTOCOLS, self.limits.stream_timeout)
        except DialError as error:
            return error.code in ("protocol_not_supported", "not_connected")
        try:
            await stream.send_all(encode_frame(self.get_hello_packet().SerializeToString()))
            self.router.add_peer(peer_id, TProtocol(stream.protocol))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            await stream.areset()
            return False
        except trio.Cancelled:
            await stream.areset()
            raise
        self._begin(peer_id, stream)
        return True

    def _begin(self, peer_id: ID, stream: PeerStream) -> None:
        sending: Any = stream
        self.peers[peer_id] = sending
        queue = self.peer_queues[peer_id] = RpcQueue(max_message_size=self.limits.rpc_bytes // 2)
        if self._nursery is not None:
            self._nursery.start_soon(self._send, peer_id, stream, queue)
            self._nursery.start_soon(self._catch_up, peer_id)

    async def _catch_up(self, peer_id: ID) -> None:
        """Send what waited for this peer: it may have subscribed before we could write to it."""
        await self.router.flush_pending_messages(peer_id)
        await self._send_recent_messages_to_new_peer(peer_id)
        for topic in list(self.topic_ids):
            if peer_id in self.peer_topics.get(topic, ()):
                await self.router.on_peer_subscribed(peer_id, topic)

    def get_hello_packet(self) -> rpc_pb2.RPC:
        """The topics that we subscribe to."""
        return rpc_pb2.RPC(
            subscriptions=[rpc_pb2.RPC.SubOpts(subscribe=True, topicid=topic) for topic in self.topic_ids]
        )

    # Writing

    async def _send(self, peer_id: ID, stream: PeerStream, queue: RpcQueue) -> None:
        try:
            while (rpc := await queue.pop()) is not None:
                # Addresses are sent elsewhere, and only to peers that request them.
                rpc.ClearField("senderRecord")
                await stream.send_all(encode_frame(rpc.SerializeToString()))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            sending: Any = self.peers.get(peer_id)
            if sending is stream:
                self._handle_dead_peer(peer_id)
